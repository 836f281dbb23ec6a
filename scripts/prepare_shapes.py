"""Draw configs/shapes.parquet: 600 circles, squares and triangles, 16 x 16 pixels, for configs that run in a minute.

    python scripts/prepare_shapes.py

Every picture is a function of its number: colour, place and size come from it, nothing is downloaded.
"""

from __future__ import annotations

import colorsys
import io
from pathlib import Path

import datasets
import torch
from PIL import Image, ImageDraw

from t2i.randomness import generator

SHAPES = ("circle", "square", "triangle")
COUNT, SIZE, FINE = 600, 16, 8  # drawn FINE times larger, then averaged: smooth edges
PATH = Path(__file__).parents[1] / "configs" / "shapes.parquet"


def draw(index: int) -> Image.Image:
    """Draw image number `index`: the shape in turn, one bright colour on a dark ground."""
    hue, x, y, size, ground = torch.rand(5, generator=generator(0, "shape", index)).tolist()
    radius = FINE * (3 + 2.5 * size)
    left, right = radius, FINE * SIZE - radius
    cx, cy = left + x * (right - left), left + y * (right - left)
    picture = Image.new("RGB", (FINE * SIZE, FINE * SIZE), (int(40 * ground),) * 3)
    pen = ImageDraw.Draw(picture)
    colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, 1.0))
    box = (cx - radius, cy - radius, cx + radius, cy + radius)
    shape = SHAPES[index % len(SHAPES)]
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        side = 0.85 * radius
        pen.rectangle((cx - side, cy - side, cx + side, cy + side), fill=colour)
    else:
        pen.polygon([(cx, box[1]), (box[0], box[3]), (box[2], box[3])], fill=colour)
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def encoded(picture: Image.Image) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return {"bytes": buffer.getvalue(), "path": None}


def main() -> None:
    features = datasets.Features({"image": datasets.Image(), "shape": datasets.ClassLabel(names=list(SHAPES))})
    rows = {"image": [encoded(draw(k)) for k in range(COUNT)], "shape": [k % len(SHAPES) for k in range(COUNT)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(PATH)
    print(PATH)


if __name__ == "__main__":
    main()
