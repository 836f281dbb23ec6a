"""`t2i data info PATH`: what is in a data set."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from t2i.cli.info import aligned


@click.group()
def data() -> None:
    """Look at a data set before you train on it."""


@data.command()
@click.argument("path")
@click.option("--split", default="train", show_default=True, help="Of a Hub data set.")
@click.option("--image", default="image", show_default=True, help="The column that holds the images.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write a contact sheet here.")
@click.option("--overwrite", is_flag=True, help="Allow --output to replace a file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def info(path: str, split: str, image: str, output: Path | None, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Count what is in a data set: images, sizes, classes, broken files, duplicates.

    PATH is an image folder, a parquet file or a glob of them in quotes, or hub:owner/name. Every image is decoded once;
    memory does not grow with the set.
    """
    from t2i import images
    from t2i.config import Source
    from t2i.data.summary import lines, summarize
    from t2i.files import already_exists

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
