"""What saves time, and what is seen while it passes."""

from __future__ import annotations

import click

from t2i.cli.options import completion_values, section, together

option = section("Speed and preview")
options = together(
    option(
        "--cache",
        metavar="NAME[:VALUE]",
        shell_complete=completion_values.caches,
        help="Take over part of a step from earlier ones: faster, and not quite the same picture. reuse[:N] and"
        " taylor[:N] compute every Nth step in full, default 2 (reuse on mini, 20 steps: a quarter less time, and 2 of"
        " 255 off in the mean; taylor is closer, but for its worst); first-block[:CHANGE]"
        " skips steps that change less than that, default 0.1, on Flux, PixArt and Qwen-Image, one picture at a time.",
    ),
    option(
        "--preview",
        metavar="N",
        type=click.IntRange(1, 1000),
        help="Every N steps show what the picture will be, in a file beside the output that goes at the end. Not for"
        " --prompts FILE -o FOLDER/, which shows whole pictures.",
    ),
)
