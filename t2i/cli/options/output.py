"""Where pictures go, and what is said."""

from __future__ import annotations

import click

from t2i.cli.options import section, together

option = section("Output")
options = together(
    option(
        "-o",
        "--output",
        metavar="PATH",
        help="A file, a folder/, or a pattern with {date} {index} {seed} {model} {prompt} {job}. Default:"
        " outputs/{date}/{index}-{seed}.png, with --prompts a folder with {index}-{job}.png. Nothing is overwritten.",
    ),
    option("--overwrite", is_flag=True, help="Allow --output to replace files."),
    option("--grid", is_flag=True, help="Also save all images on one sheet."),
    option("--columns", type=click.IntRange(1, 1000), help="Images per row of --grid. Default: a row per prompt."),
    option("--format", type=click.Choice(["png", "jpg", "webp"]), help="Default: by the suffix of --output, or png."),
    option(
        "--shards",
        type=click.Choice(["parquet", "webdataset"]),
        help="With --prompts FILE -o FOLDER/: pack the images, with captions and recipes, into files to train on.",
    ),
    option("--shard-size", type=click.IntRange(1, 100_000), help="Images per file of --shards. Default: 1000."),
    option("--json", "as_json", is_flag=True, help="Print one JSON object per image (or shard) instead of its path."),
    option("--quiet", is_flag=True, help="No words and no progress bar on stderr, but errors."),
)
