"""Small files that change what the model draws: LoRAs, textual inversions, IP-Adapters."""

from __future__ import annotations

from pathlib import Path

import click

from t2i.cli.options import section, together

option = section("Adapters")
options = together(
    option(
        "--lora",
        "loras",
        metavar="PATH[:SCALE]",
        multiple=True,
        help="A LoRA: a .safetensors file, a folder, or a Hub id owner/name[/file]. SCALE is its strength, 1 unless"
        " said; it may be negative. May be repeated: several work together.",
    ),
    option(
        "--lora-folder",
        metavar="FOLDER",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("loras"),
        help="Where <lora:NAME:0.8> in a prompt finds NAME.safetensors; else the working folder.  [loras]",
    ),
    option(
        "--embedding",
        "embeddings",
        metavar="PATH[:TOKEN]",
        multiple=True,
        help="A textual inversion: a new word for prompts, TOKEN, else as the file names it. May be repeated.",
    ),
    option(
        "--ip-adapter",
        "ip_adapters",
        metavar="PATH:IMAGE[:SCALE]",
        multiple=True,
        help="Draw after a picture too: an IP-Adapter, with its image_encoder/ beside it, and the picture. May be"
        " repeated. For Stable Diffusion 1, XL and FLUX.1.",
    ),
)
