"""Make the data of `classifier-pairs`, the judge of text-to-image: object and style of an image.

    python scripts/prepare_pairs.py --data ../shared/data --out data/pairs

train.parquet and held-out.parquet, with columns image (size x size), object (the seven of PACS), style (photo,
painting, cartoon, sketch, Van Gogh) and source. Objects come from PACS; Van Gogh's paintings have a style and no
object, and none of the stylised copies that `mini` is trained on is among them. Training images are crops of most of
the side, so that framing carries no information; held-out ones, from the validation files alone, are whole squares.
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
from package_mini import OBJECTS
from package_mini import STYLES as NAMES
from PIL import Image
from prepare_mini import STYLES, lossless, read, square
from prepare_vangogh import WORK, vangogh
from tqdm import tqdm

from t2i.imaging import images
from t2i.randomness import derive_seed

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "object": datasets.ClassLabel(names=list(OBJECTS)),
        "style": datasets.ClassLabel(names=list(NAMES)),
        "source": datasets.Value("string"),
    }
)
LEAST = 0.75  # least part of the side of a PACS image in a crop, so that the object stays in it


@click.command(help=__doc__.splitlines()[0])
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), default="../shared/data")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="data/pairs")
@click.option("--size", type=click.IntRange(16, WORK), default=64, help="Pixels per side.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--crops", type=click.IntRange(1), default=3, help="Of each training picture of PACS.")
@click.option("--paintings", type=click.IntRange(1), default=48, help="Crops of each of Van Gogh's paintings.")
def main(data: Path, out: Path, size: int, seed: int, crops: int, paintings: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, part, each, least in (("train", "train", crops, LEAST), ("held-out", "validation", 1, 1.0)):
        rng = random.Random(derive_seed(seed, f"pairs, {name}"))
        rows = [*pacs(data / f"pacs128/{part}.parquet", each, least, size, rng)]
        his = vangogh(data / f"vangogh/{part}.parquet", paintings if name == "train" else 8, rng)
        rows += [row(picture, None, "Van Gogh", source, size) for picture, _, source in his]
        rng.shuffle(rows)
        temporary = out / f"{name}.part"
        pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), temporary)
        os.replace(temporary, out / f"{name}.parquet")
        sheet = [images.decode(r["image"]["bytes"]) for r in rows[:60]]  # type: ignore[index]
        images.grid(sheet, columns=10).save(out / f"{name}.png")
        click.echo(f"{out / name}.parquet: {len(rows):,} pictures")


def pacs(path: Path, crops: int, least: float, size: int, rng: random.Random) -> Iterator[dict[str, object]]:
    """Yield crops of every image, from `least` of its side to all of it."""
    for data, columns in tqdm(list(read(path)), desc="PACS", unit="image"):
        image = images.decode(data, columns["source"])
        for _ in range(crops):
            crop = square(image, rng.uniform(least, 1.0), rng)[0]
            yield row(crop, columns["object"], STYLES[columns["style"]], f"pacs/{columns['source']}", size)


def row(picture: Image.Image, thing: str | None, style: str, source: str, size: int) -> dict[str, object]:
    small = picture.resize((size, size), Image.Resampling.LANCZOS)
    numbers = {"object": None if thing is None else OBJECTS.index(thing), "style": NAMES.index(style)}
    return {"image": {"bytes": lossless(small), "path": None}, **numbers, "source": source}


if __name__ == "__main__":
    main()
