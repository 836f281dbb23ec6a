"""Make the training data of `mini`: seven parquet files of small pictures with object, style and origin.

    python scripts/prepare_mini.py --data DATASETS --out data/mini

DATASETS is a folder with these parquet files, whose column `image` holds encoded pictures; object and style are
ClassLabel features, all else is text:

    pacs128/train.parquet           image, object, style, source: PACS (Li et al. 2017), cut to 128 x 128 pixels;
                                    on GitHub as MachineLearning2020/Homework3-PACS
    tinyimagenet64/train-*.parquet  image, name, source: Tiny ImageNet (Stanford CS231n), 83 of its classes, each named
                                    by a plain word; on GitHub as seshuad/IMagenet
    horses128/train.parquet         image, source: photographs of horses (Weizmann horses and other public sets)
    vangogh/train.parquet           image, title, kind, source: paintings by Vincent van Gogh (public domain); kind is
                                    landscape, portrait, still life, interior, drawing or another word
    vangogh256/train.parquet        image, source: his paintings from Arles on; on GitHub as
                                    M-Yang23/Convert-the-photos-to-Van-Gogh-painting

Only training files are read. Columns of every file made: image (an Image feature of `datasets`), object (what it shows,
"" where that cannot honestly be said), style (photo, painting, cartoon, sketch, vangogh), source (where it comes from).
`vangogh` and `arles` hold crops of real paintings, `vangogh-stylised` photographs, paintings and cartoons of the seven
PACS objects painted over by `stylise.py`, which no painter made.
`typical` repeats some pictures of the other files: those that show each of the seven objects best in each of the five
styles, named in `chosen.txt` where outlines alone do not find them. A contact sheet is written beside each file.
"""

from __future__ import annotations

import io
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import click
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps
from stylise import stylise, to_oklab
from tqdm import tqdm
from typical import typical

from t2i.config import Source
from t2i.data.sources import open_source
from t2i.errors import DataError
from t2i.imaging import images
from t2i.randomness import derive_seed, generator

STYLES = {"photo": "photo", "art_painting": "painting", "cartoon": "cartoon", "sketch": "sketch"}
FEATURES = datasets.Features(
    {"image": datasets.Image(), **{name: datasets.Value("string") for name in ("object", "style", "source")}}
)
SHEET = 60  # pictures on a contact sheet
CHOSEN = Path(__file__).with_name("chosen.txt")  # sources of pictures chosen by eye, for paintings, dogs and the like
OBJECTS = {"golden retriever": "dog"}  # a noun whose chosen pictures show one of the seven objects
HELD_OUT = ("lighthouse", "red panda", "teapot")  # nouns that no part of mini sees: a proof for fine-tuning
WORK = 128  # pixels per side at which strokes are painted; at 64 they are then about two pixels wide
BATCH = 28  # pictures stylised at once
GREY, COLOURFUL = 0.02, 0.045  # mean Oklab chroma below which a reproduction is grey; from which it lends its palette
# What a title honestly says about the whole picture, first match; a crop of a part says nothing.
TITLES = {
    r"Portrait|Young Man|Woman|Girl|Child": "person",
    r"Wheat": "wheat field",
    r"Sunflowers": "sunflowers",
    r"Irises": "irises",
    r"^Pink Roses|Poppies|Flower|Rose-Mallows|with Roses": "flowers",
    r"Starry Night": "starry night",
    r"Bedroom": "bedroom",
    r"Church at": "church",
    r"Garden": "garden",
    r"^House|^The House|Cottages|Farm|Town Hall": "house",
}


@dataclass(frozen=True)
class Picture:
    """One row of an output file, and what stands above it on the contact sheet."""

    data: bytes
    object: str
    style: str
    source: str
    above: Image.Image | None = None


@dataclass(frozen=True)
class Job:
    """One picture to stylise: its file bytes, what it shows, and the number that all its draws come from."""

    data: bytes
    object: str
    source: str
    number: int


@click.command(help=__doc__.splitlines()[0])
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder that holds the data sets, laid out as the head of this file says.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="data/mini")
@click.option("--size", type=click.IntRange(16, WORK), default=128, help="Pixels per side.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--crops", type=click.IntRange(1), default=40, help="Crops of each real painting.")
@click.option("--arles-crops", type=click.IntRange(1), default=12, help="Crops of each painting of Arles and later.")
@click.option("--copies", type=click.IntRange(1), default=800, help="Stylised pictures of each object.")
@click.option("--best", type=click.IntRange(1), default=40, help="Typical pictures of each object in each style.")
@click.option("--processes", type=click.IntRange(1), default=2)
@click.option("--only", multiple=True, help="Make these files only.")
def main(
    data: Path,
    out: Path,
    size: int,
    seed: int,
    crops: int,
    arles_crops: int,
    copies: int,
    best: int,
    processes: int,
    only: tuple[str, ...],
) -> None:
    files = {
        "pacs": lambda: pacs(data, size),
        "nouns": lambda: nouns(data, size),
        "horses": lambda: horses(data, size),
        "vangogh": lambda: vangogh(data, size, seed, crops),
        "arles": lambda: arles(data, size, seed, arles_crops),
        "vangogh-stylised": lambda: stylised(data, size, seed, copies, processes),
        "typical": lambda: most_typical(out, best),  # of the files above
    }
    if unknown := set(only) - set(files):
        raise click.UsageError(f"--only {', '.join(sorted(unknown))}: choose from {', '.join(files)}")
    out.mkdir(parents=True, exist_ok=True)
    for name, make in files.items():
        if not only or name in only:
            try:
                pictures = list(tqdm(make(), desc=name, unit="image"))
            except DataError as e:
                raise click.ClickException(str(e)) from None
            write(pictures, out / f"{name}.parquet")
            contact_sheet(pictures, out / f"{name}.png", size)
            styles = Counter(picture.style for picture in pictures)
            objects = Counter(picture.object or "(none)" for picture in pictures)
            click.echo(f"{name}: {len(pictures)} images, {(out / f'{name}.parquet').stat().st_size / 1e6:.1f} MB")
            for title, counts in (("styles", styles), ("objects", objects)):
                top = ", ".join(f"{key} {count}" for key, count in counts.most_common(14))
                click.echo(f"  {len(counts)} {title}: {top}{' ...' if len(counts) > 14 else ''}")


def read(path: Path) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Undecoded images and columns of a parquet file or glob."""
    for row in open_source(Source(path=str(path))).rows:
        assert isinstance(row.image, bytes)
        yield row.image, row.columns


def pacs(data: Path, size: int) -> Iterator[Picture]:
    for image, row in read(data / "pacs128/train.parquet"):
        yield Picture(fitted(image, size), row["object"], STYLES[row["style"]], f"pacs/{row['source']}")


def nouns(data: Path, size: int) -> Iterator[Picture]:
    for image, row in read(data / "tinyimagenet64/train-*.parquet"):
        if row["name"] not in HELD_OUT:
            yield Picture(fitted(image, size), row["name"], "photo", f"tinyimagenet/{row['source']}")


def horses(data: Path, size: int) -> Iterator[Picture]:
    for image, row in read(data / "horses128/train.parquet"):
        yield Picture(fitted(image, size), "horse", "photo", f"horses/{row['source']}")


def vangogh(data: Path, size: int, seed: int, crops: int) -> Iterator[Picture]:
    """Squares of every painting, from the largest that fits down to a quarter of its side, small ones more often."""
    for number, (painting, row) in enumerate(paintings(data / "vangogh/train.parquet")):
        if row["kind"] == "drawing" or chroma(painting).norm(dim=0).mean() < GREY:
            continue
        rng = random.Random(derive_seed(seed, "vangogh", number))
        for k in range(crops):
            scale = 1.0 if k < crops // 8 else 0.25 ** rng.random()
            crop, box = square(painting, scale, rng)
            words = said(row["title"], row["kind"])
            shows = (
                rng.choice(words) if scale >= 0.75 else words[-1] if scale >= 0.5 and words[-1] == "landscape" else ""
            )
            crop = crop.resize((size, size), Image.Resampling.LANCZOS)
            yield Picture(lossless(crop), shows, "vangogh", f"vangogh/{row['source']}#{box}")


def arles(data: Path, size: int, seed: int, crops: int) -> Iterator[Picture]:
    """Squares of the later paintings, from the whole down to half of the side; what they show is not known."""
    for number, (painting, row) in enumerate(paintings(data / "vangogh256/train.parquet")):
        rng = random.Random(derive_seed(seed, "arles", number))
        for k in range(crops):
            crop, box = square(painting, 1.0 if k == 0 else rng.uniform(0.5, 1.0), rng)
            crop = crop.resize((size, size), Image.Resampling.LANCZOS)
            yield Picture(lossless(crop), "", "vangogh", f"vangogh256/{row['source']}#{box}")


def said(title: str, kind: str) -> list[str]:
    """The words that hold for a whole painting: by its title, and by its kind."""
    by_title = [word for pattern, word in TITLES.items() if re.search(pattern, title)][:1]
    return by_title + ([kind] if kind in ("landscape", "portrait", "still life", "interior") else [""])


def stylised(data: Path, size: int, seed: int, copies: int, processes: int) -> Iterator[Picture]:
    """`copies` pictures of every PACS object: two thirds of photographs, the rest of paintings and cartoons."""
    photos: dict[str, list[tuple[bytes, str]]] = {}
    drawn: dict[str, list[tuple[bytes, str]]] = {}
    for image, row in read(data / "pacs128/train.parquet"):
        if row["style"] != "sketch":
            group = photos if row["style"] == "photo" else drawn
            group.setdefault(row["object"], []).append((image, f"pacs/{row['source']}"))
    for image, row in read(data / "horses128/train.parquet"):
        photos["horse"].append((image, f"horses/{row['source']}"))
    rng = random.Random(derive_seed(seed, "stylised"))
    picked: list[tuple[bytes, str, str]] = []
    for name in sorted(photos):
        of_photos = max(copies * 2 // 3, min(copies, len(photos[name])))
        chosen = rounds(photos[name], of_photos, rng) + rounds(drawn[name], copies - of_photos, rng)
        picked += [(image, name, source) for image, source in chosen]
    rng.shuffle(picked)
    jobs = [Job(image, name, source, number) for number, (image, name, source) in enumerate(picked)]
    batches = [jobs[i : i + BATCH] for i in range(0, len(jobs), BATCH)]
    work = partial(paint, data / "vangogh/train.parquet", size, seed)
    if processes == 1:
        yield from (picture for batch in batches for picture in work(batch))
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=one_core) as pool:
        for pictures in pool.map(work, batches):
            yield from pictures


def most_typical(made: Path, best: int) -> Iterator[Picture]:
    """The `best` pictures of each object and style in the files made; in Van Gogh's manner, of the best photographs.

    Those chosen by eye, where there are any; else the most typical. All that show the same in the same style face the
    same way.
    """
    by_eye = frozenset(CHOSEN.read_text().split())
    groups: dict[tuple[str, str], list[Picture]] = {}
    for name in ("pacs", "horses", "nouns", "vangogh-stylised"):
        for image, row in read(made / f"{name}.parquet"):
            if name != "nouns" or row["source"] in by_eye:
                shows = OBJECTS.get(row["object"], row["object"])
                groups.setdefault((row["style"], shows), []).append(Picture(image, shows, row["style"], row["source"]))
    faces: dict[str, bool] = {}  # the best photographs, and which of them are mirrored
    for (style, _), group in sorted(groups.items(), key=lambda item: item[0]):
        if style == "vangogh":  # its strokes leave no plain background
            copies = [(p, p.source.split(", stylised")[0]) for p in group]
            chosen = [(p, faces[source]) for p, source in copies if source in faces][:best]
        else:
            group = [p for p in group if p.source in by_eye] or group
            pixels = torch.stack([images.pixels(images.decode(p.data)) for p in group])
            chosen = [(group[i], mirror) for i, mirror in typical(pixels, best)]
            if style == "photo":
                faces |= {p.source: mirror for p, mirror in chosen}
        for p, mirror in chosen:
            yield replace(p, data=lossless(ImageOps.mirror(images.decode(p.data)))) if mirror else p


def rounds(items: list[tuple[bytes, str]], count: int, rng: random.Random) -> list[tuple[bytes, str]]:
    """`count` items: all of them in a random order, then all of them again, and so on."""
    chosen: list[tuple[bytes, str]] = []
    while len(chosen) < count:
        chosen += rng.sample(items, len(items))
    return chosen[:count]


def one_core() -> None:
    torch.set_num_threads(1)


def paint(references: Path, size: int, seed: int, jobs: list[Job]) -> list[Picture]:
    """Stylise one batch, each picture after a crop of a colourful painting of its own.  Runs in a worker."""
    views, palettes, sources = [], [], []
    for job in jobs:
        rng = random.Random(derive_seed(seed, "stylise", job.number))
        views.append(square(images.decode(job.data, job.source), rng.uniform(0.88, 1.0), rng)[0].resize((WORK, WORK)))
        # the more varied of two crops: with one hue alone, object and background become one
        crops = [palette(references, rng) for _ in range(2)]
        crop, title = max(crops, key=lambda pair: float(chroma(pair[0]).std(1).norm()))
        palettes.append(crop)
        sources.append(f"{job.source}, stylised after {title}")
    batch, styles = (torch.stack([images.pixels(image) for image in group]) for group in (views, palettes))
    painted = stylise(batch, styles, generator(seed, "strokes", jobs[0].number))
    pictures = []
    for view, pixels, job, source in zip(views, painted, jobs, sources, strict=True):
        small = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.LANCZOS)
        above = view.resize((size, size)) if job.number < SHEET // 2 else None
        pictures.append(Picture(lossless(small), job.object, "vangogh", source, above))
    return pictures


def palette(references: Path, rng: random.Random) -> tuple[Image.Image, str]:
    """A random crop of a random colourful painting at WORK pixels, and the title."""
    painting, title = rng.choice(colourful(references))
    return square(painting, rng.uniform(0.5, 1.0), rng)[0].resize((WORK, WORK), Image.Resampling.LANCZOS), title


@lru_cache(maxsize=1)  # decoded once per worker
def colourful(references: Path) -> list[tuple[Image.Image, str]]:
    """The paintings whose palette is worth lending."""
    found = paintings(references)
    return [(p, row["title"]) for p, row in found if chroma(p).norm(dim=0).mean() >= COLOURFUL]


def paintings(path: Path) -> list[tuple[Image.Image, dict[str, str]]]:
    return [(images.decode(image, row["source"]), row) for image, row in read(path)]


def chroma(image: Image.Image) -> torch.Tensor:
    """(2, N) green-red and blue-yellow of a reduced copy, in Oklab."""
    return to_oklab(images.pixels(image.resize((64, 64))).unsqueeze(0))[0, 1:].flatten(1)


def square(image: Image.Image, scale: float, rng: random.Random) -> tuple[Image.Image, str]:
    """A random square of `scale` times the short side, and its place as left,top,side."""
    side = round(min(image.size) * scale)
    left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
    return image.crop((left, top, left + side, top + side)), f"{left},{top},{side}"


def fitted(data: bytes, size: int) -> bytes:
    """An encoded size x size picture: the bytes as they are where they already are one."""
    image = images.decode(data, "image")
    return data if image.size == (size, size) else lossless(images.fit(image, size))


def lossless(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, method=0)
    return buffer.getvalue()


def write(pictures: Iterable[Picture], path: Path) -> None:
    rows = [
        {"image": {"bytes": p.data, "path": None}, "object": p.object, "style": p.style, "source": p.source}
        for p in pictures
    ]
    temporary = path.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), temporary, row_group_size=2048)
    os.replace(temporary, path)


def contact_sheet(pictures: list[Picture], path: Path, size: int) -> None:
    """Sixty pictures spread over the file; where they were made of others, those stand above them."""
    paired = [p for p in pictures if p.above is not None]
    columns = 10
    shown: list[Image.Image] = []
    if paired:
        for i in range(0, len(paired), columns):
            line = paired[i : i + columns]
            shown += [p.above for p in line if p.above is not None] + [images.decode(p.data) for p in line]
    else:
        shown = [images.decode(p.data) for p in pictures[:: max(1, len(pictures) // SHEET)][:SHEET]]
    images.grid([image.resize((2 * size, 2 * size)) for image in shown], columns=columns).save(path)


if __name__ == "__main__":
    main()
