"""What to draw: prompts, files of prompts, and images that are to be made again."""

from __future__ import annotations

from pathlib import Path

import click

from t2i.cli.options import section, together

option = section("What to draw")
options = together(
    option("-p", "--prompt", "options", metavar="TEXT", multiple=True, help="A prompt; may be repeated."),
    option(
        "-n",
        "--negative-prompt",
        "negative",
        metavar="TEXT",
        default="",
        help="What not to draw; {a|b} and (word:1.2) as in prompts.",
    ),
    option(
        "--prompts",
        "file",
        metavar="FILE",
        help="A file of prompts: one per line (.txt, or - for stdin), or rows that set options (.jsonl, .csv).",
    ),
    option(
        "--raw",
        is_flag=True,
        help="Take prompts as they are. Else it reads: choices {a|b}, {0.5::a|b}, {2$$ and $$a|b|c}, __wildcard__;"
        " weights (word:1.2), ((word)), [[word]], with \\( for a bracket that is meant as one; LoRAs <lora:NAME:0.8>.",
    ),
    option(
        "--chunks/--no-chunks",
        default=None,
        help="Read a prompt that is too long for a CLIP encoder in chunks, or cut it.  [SD 1, 2 and XL: chunks]",
    ),
    option(
        "--wildcards",
        metavar="FOLDER",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("wildcards"),
        help="Where NAME.txt of __NAME__ is.  [wildcards]",
    ),
    option(
        "--from",
        "originals",
        metavar="IMAGE",
        type=click.Path(path_type=Path),
        multiple=True,
        help="Make an image again by what it says of itself; any option given holds. May be repeated.",
    ),
)
