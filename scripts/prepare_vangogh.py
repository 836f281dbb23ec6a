"""Make the data of `classifier-vangogh`, which recognises paintings by Van Gogh.

    python scripts/prepare_vangogh.py --data ../shared/data --out data/vangogh

train.parquet and held-out.parquet, with columns image (size x size), by ("other", "Van Gogh"), kind (van gogh,
painting, photo) and source. Half of each file are crops of his paintings, a quarter other paintings (PACS), an eighth
each PACS and Tiny ImageNet photographs. No painting or photograph is in both: held-out ones come from the validation
files alone. Every image is a crop of half to all of its side, so that neither sharpness nor framing gives the painter
away; a few of PACS' paintings may be his, and count as others.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import click
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from prepare_mini import chroma, lossless, read, rounds, square
from tqdm import tqdm

from t2i.imaging import images
from t2i.randomness import derive_seed

BY = ("other", "Van Gogh")
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "by": datasets.ClassLabel(names=list(BY)),
        "kind": datasets.Value("string"),
        "source": datasets.Value("string"),
    }
)
WORK = 128  # pixels per side of every image before it is cropped: the size of PACS
GREY = 0.02  # mean Oklab chroma below which a reproduction is grey: that alone would give it away

Shown = tuple[Image.Image, str, str]  # a picture, its kind and its source


@click.command(help=__doc__.splitlines()[0])
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), default="../shared/data")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="data/vangogh")
@click.option("--size", type=click.IntRange(16, WORK), default=64, help="Pixels per side.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--crops", type=click.IntRange(1), default=64, help="Crops of each of his paintings.")
def main(data: Path, out: Path, size: int, seed: int, crops: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, part, nouns in (("train", "train", "train-*"), ("held-out", "validation", "validation")):
        rng = random.Random(derive_seed(seed, f"vangogh or not, {name}"))
        his = list(vangogh(data / f"vangogh/{part}.parquet", crops, rng))
        count = len(his) // 2
        others = [
            *crops_of(pacs(data / f"pacs128/{part}.parquet", "art_painting"), "painting", count, size, rng),
            *crops_of(pacs(data / f"pacs128/{part}.parquet", "photo"), "photo", count // 2, size, rng),
            *crops_of(tiny(data / f"tinyimagenet64/{nouns}.parquet"), "photo", count - count // 2, size, rng),
        ]
        rows = [row(picture, 1, kind, source, size) for picture, kind, source in his]
        rows += [row(picture, 0, kind, source, size) for picture, kind, source in others]
        rng.shuffle(rows)
        write(rows, out / f"{name}.parquet")
        click.echo(f"{out / name}.parquet: {len(his)} crops of his paintings, {len(others)} of others")
        sheet = [images.decode(r["image"]["bytes"]) for r in rows[:60]]  # type: ignore[index]
        images.grid(sheet, columns=10).save(out / f"{name}.png")


def vangogh(path: Path, crops: int, rng: random.Random) -> Iterator[Shown]:
    """Yield crops of every painting in colour, from half of its short side to all of it."""
    for data, columns in tqdm(list(read(path)), desc="paintings", unit="image"):
        painting = images.decode(data, columns["source"])
        if columns["kind"] != "drawing" and chroma(painting).norm(dim=0).mean() >= GREY:
            for _ in range(crops):
                whole = square(painting, 1.0, rng)[0].resize((WORK, WORK), Image.Resampling.LANCZOS)
                yield square(whole, rng.uniform(0.5, 1.0), rng)[0], "van gogh", f"vangogh/{columns['source']}"


def pacs(path: Path, style: str) -> list[tuple[bytes, str]]:
    return [(image, f"pacs/{columns['source']}") for image, columns in read(path) if columns["style"] == style]


def tiny(path: Path) -> list[tuple[bytes, str]]:
    return [(image, f"tinyimagenet/{columns['source']}") for image, columns in read(path)]


def crops_of(
    pictures: list[tuple[bytes, str]], kind: str, count: int, size: int, rng: random.Random
) -> Iterator[Shown]:
    """Yield `count` crops, of as many different images as there are; an image of the target size stays whole."""
    for data, source in rounds(pictures, count, rng):
        image = images.decode(data, source)
        least = max(0.5, size / min(image.size))
        yield square(image, rng.uniform(least, 1.0), rng)[0], kind, source


def row(picture: Image.Image, by: int, kind: str, source: str, size: int) -> dict[str, object]:
    small = picture.resize((size, size), Image.Resampling.LANCZOS)
    return {"image": {"bytes": lossless(small), "path": None}, "by": by, "kind": kind, "source": source}


def write(rows: list[dict[str, object]], path: Path) -> None:
    temporary = path.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), temporary)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
