"""Which model draws."""

from __future__ import annotations

import click

from t2i.cli.options import completion_values, section, together

option = section("Model")
options = together(
    option(
        "-m",
        "--model",
        metavar="MODEL",
        default="mini",
        envvar="T2I_MODEL",
        show_envvar=True,
        shell_complete=completion_values.models,
        help="A name (mini, sd15, sdxl, ...), a pipeline or run folder, a Hub id owner/name, or one .safetensors file."
        " Default: mini, which is built in and needs no network.",
    ),
    option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub."),
    option(
        "--config",
        metavar="FOLDER",
        type=click.Path(file_okay=False),
        help="Configs and tokenizers for a single .safetensors file. Needed for neither Stable Diffusion 1 nor XL.",
    ),
    option("--offline", is_flag=True, help="Do not use the network."),
)
