"""Test whether someone who never saw the model can name what it shows: make the sheet, and count the answers.

    python scripts/naming_test.py sheet.png                             # the 35 images of the grid, in random order
    python scripts/naming_test.py sheet.png --answers "1=house, 2=dog"  # number of correct ones, and the wrong ones

The person knows the seven words, but neither the order nor how often each occurs.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import click
from package_mini import OBJECTS, STYLES
from PIL import Image

from t2i.imaging import images
from t2i.metadata.recipe import Mark

GRID = Path(__file__).parents[1] / "t2i" / "mini" / "grid.png"
SIDE, GAP, SHOWN = 64, 2, 192  # pixels of a picture and between two of the grid; of one on the sheet
SEED = 7


@click.command(help=__doc__.splitlines()[0])
@click.argument("sheet", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--answers", help='The answers, "1=horse, 2=house, ..."; the sheet is left as it is.')
def main(sheet: Path, answers: str | None) -> None:
    order = [(style, thing) for style in STYLES for thing in OBJECTS]
    random.Random(SEED).shuffle(order)
    if answers is None:
        cells = [cell(style, thing) for style, thing in order]
        rows = [cells[k : k + len(OBJECTS)] for k in range(0, len(cells), len(OBJECTS))]
        labels = [f"{k * len(OBJECTS) + 1} to {(k + 1) * len(OBJECTS)}" for k in range(len(rows))]
        click.echo(images.save(images.grid(cells, len(OBJECTS), labels), sheet, recipe=Mark()))
        return
    said = {int(number): word.strip() for number, word in re.findall(r"(\d+)\s*=\s*([^,]+)", answers)}
    wrong = [
        f"{k}: {thing} ({style}), named {said.get(k, 'nothing')}"
        for k, (style, thing) in enumerate(order, 1)
        if said.get(k) != thing
    ]
    click.echo("\n".join([f"{len(order) - len(wrong)} of {len(order)} named", *wrong]))


def cell(style: str, thing: str) -> Image.Image:
    """Cut one image out of the grid, whose labels are left and above, and enlarge it."""
    grid = images.decode(GRID)
    left = grid.width - (len(OBJECTS) - OBJECTS.index(thing)) * (SIDE + GAP) + GAP
    top = grid.height - (len(STYLES) - STYLES.index(style)) * (SIDE + GAP) + GAP
    part = grid.crop((left, top, left + SIDE, top + SIDE))
    return part.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
