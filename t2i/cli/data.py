"""`t2i data info` and `t2i data prepare`: inspect a data set, and build a parquet data set for training."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from t2i.cli.tables import aligned
from t2i.errors import UsageError

EXAMPLES = """\b
Examples:
  t2i data prepare photos/ -o photos.parquet --size 64
  t2i data prepare photos/ -o photos.parquet --size 256 --format jpg --test-fraction 0.1 --bad-images skip
  t2i data prepare 'shards/*.parquet' -o small.parquet --limit 1000
  t2i train ddpm --set data.path=photos.parquet
"""


@click.group()
def data() -> None:
    """Inspect a data set, or build one for training."""


@data.command()
@click.argument("path")
@click.option("--split", default="train", show_default=True, help="Of a Hub data set.")
@click.option("--image", default="image", show_default=True, help="The column that holds the images.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write a contact sheet here.")
@click.option("--overwrite", is_flag=True, help="Allow --output to replace a file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def info(path: str, split: str, image: str, output: Path | None, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Count the images, sizes, classes, broken files and duplicates of a data set.

    PATH is an image folder, a parquet file or a glob of them in quotes, or hub:owner/name. Every image is decoded once;
    memory does not grow with the set.
    """
    from t2i.atomic import already_exists
    from t2i.config import Source
    from t2i.data.summary import lines, summarize
    from t2i.imaging import images

    if output is not None and not overwrite and os.path.lexists(output):
        raise already_exists(output)
    summary, sheet = summarize(Source(path=path, split=split, image=image), output is not None, not quiet)
    rows = lines(summary)
    facts = asdict(summary)
    if output is not None and sheet is not None:
        images.save(sheet, output, overwrite=overwrite)
        rows.append(("sheet", str(output)))
        facts["sheet"] = str(output)
    click.echo(json.dumps(facts) if as_json else aligned(path, rows))


@data.command(epilog=EXAMPLES)
@click.argument("source")
@click.option("-o", "--output", required=True, metavar="FILE", type=click.Path(path_type=Path), help="NAME.parquet.")
@click.option("--size", type=click.IntRange(8, 2048), help="Pixels per side, after a centre crop.  [as they are]")
@click.option("--format", type=click.Choice(["png", "jpg"]), help="[png with --size, else files stay as they are]")
@click.option("--quality", type=click.IntRange(1, 100), help="Of JPEG.  [95]")
@click.option(
    "--bad-images",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do with images that cannot be read.",
)
@click.option("--drop-duplicates", is_flag=True, help="Of images with the same pixels keep the first.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Read N rows, evenly spaced over the source.")
@click.option(
    "--test-fraction",
    metavar="F",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Two files, NAME-train and NAME-test; an image's pixels decide its split.",
)
@click.option("--split", default="train", show_default=True, help="Of a Hub data set.")
@click.option("--image", metavar="COLUMN", help="The column that holds the images.  [the only one]")
@click.option("--overwrite", is_flag=True, help="Replace the files.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def prepare(
    source: str,
    output: Path,
    split: str,
    image: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    drop_duplicates: bool,
    **how: Any,
) -> None:
    """Build one parquet data set, ready for training, from images anywhere.

    SOURCE is an image folder, a parquet file or a glob of them in quotes, or hub:owner/name. A folder's sub-folders
    become classes (column label); image.txt next to image.png becomes its caption (column text); metadata.jsonl and
    metadata.csv may add columns. Every image is decoded and checked. The same source and options give the same bytes;
    `datasets.load_dataset` reads them too. An image's pixels alone decide whether it is in the test split, so equal
    images are never in both.
    """
    from t2i.config import Source
    from t2i.data.prepare import PrepareOptions
    from t2i.data.prepare import prepare as write

    if output.suffix.lower() != ".parquet":
        raise UsageError(f"--output {output}: the name must end in .parquet")
    if how["quality"] is None:
        del how["quality"]
    elif how["format"] != "jpg":
        raise UsageError("--quality is for JPEG only", "add --format jpg")
    options = PrepareOptions(bad=how.pop("bad_images"), unique=drop_duplicates, **how)
    done = write(Source(path=source, split=split, image=image), output, options, overwrite, not quiet)
    if as_json:
        click.echo(json.dumps(done.facts()))
        return
    for split_file in done.parts:
        click.echo(split_file.path)
    click.echo(aligned(source, done.lines()), err=True)
