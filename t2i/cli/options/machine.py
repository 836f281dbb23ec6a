"""What computes, and in what."""

from __future__ import annotations

import click

from t2i.cli.options import completion_values, section, together

option = section("Machine")
options = together(
    option(
        "--device",
        metavar="NAME",
        shell_complete=completion_values.devices,
        help="cpu, cuda, cuda:1, xpu, mps. Default: the fastest there is.",
    ),
    option(
        "--dtype",
        metavar="NAME",
        shell_complete=completion_values.dtypes,
        help="float32, float16 or bfloat16. Default: float32 for small models; for others bfloat16 where the hardware"
        " computes in it.",
    ),
    option("--batch-size", type=int, help="Images drawn at once; changes speed and memory, not the pictures."),
    option(
        "--offload",
        type=click.Choice(["auto", "none", "model", "group"]),
        default="auto",
        help="What waits in main memory until a GPU needs it: whole networks (model), or layers (group: the least"
        " memory, slow). Default: what fits the free memory.",
    ),
    option(
        "--quantize",
        type=click.Choice(["none", "8", "4"]),
        help="Weights in 8 or 4 bits: less memory, slightly other pictures; 4 needs a GPU. Default: only"
        " where nothing else fits.",
    ),
    option("--tiling/--no-tiling", default=None, help="Decode in tiles. Default: where the whole does not fit."),
    option(
        "--compile",
        is_flag=True,
        help="Compile the network: minutes for the first picture, then faster. Not with --cache.",
    ),
    option("--auto-retry", is_flag=True, help="Where memory runs out, go on with what needs less, and say so."),
    option("--deterministic", is_flag=True, help="The same bits at every run on this machine; on a GPU slower."),
    option("--no-safety", is_flag=True, help="Do without the safety checker of models that have one. Recorded."),
    option(
        "--dry-run",
        is_flag=True,
        help="Say what would be done, with which files and memory; load and download nothing.",
    ),
)
