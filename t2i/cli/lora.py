"""`t2i lora info FILE` and `t2i lora merge MODEL LORA[:SCALE]... -o FOLDER`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from t2i.cli import completion_values
from t2i.cli.tables import aligned


@click.group()
def lora() -> None:
    """Inspect LoRAs, or merge them into a model."""


@lora.command()
@click.argument("location", metavar="FILE")
@click.option("--offline", is_flag=True, help="Do not use the network.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(location: str, offline: bool, as_json: bool) -> None:
    """Show a LoRA's model family, rank, size, and the metadata that its trainer wrote.

    FILE is a .safetensors file, a folder that holds one, or a Hub id owner/name[/file]. No tensor is loaded.
    """
    from t2i.pipelines.adapters.files import find
    from t2i.pipelines.adapters.lora_inspect import facts

    file = find(location, "FILE", offline)
    known = facts(file.path)
    if as_json:
        click.echo(json.dumps({"name": file.name, "sha256": file.sha256, "autov3": file.autov3()} | known.as_dict()))
        return
    rows = [
        ("for", known.family),
        ("format", known.format),
        ("tensors", f"{known.tensors} ({known.parameters:,} parameters, {known.bytes:,} bytes)"),
        ("rank", ", ".join(f"{rank} ({count} layers)" for rank, count in known.ranks.items()) or "not known"),
        ("alpha", ", ".join(f"{alpha:g}" for alpha in known.alphas) or "not given (the rank)"),
        ("layers", ", ".join(f"{count} in {name}" for name, count in known.blocks.items()) or "none"),
        ("dtype", ", ".join(known.dtypes)),
        ("sha256", file.sha256),
        ("AutoV3", file.autov3()[:12]),
    ]
    if known.base_model:
        rows.append(("base model", known.base_model))
    if known.tags:
        rows.append(("tags", ", ".join(f"{tag} ({count})" for tag, count in known.tags.items())))
    said = [key for key in known.metadata if key != "lora_adapter_metadata"]
    if said:
        rows.append(("metadata", f"{len(said)} entries (--json shows them)"))
    click.echo(aligned(file.name, rows))


@lora.command()
@click.argument("model", shell_complete=completion_values.models)
@click.argument("loras", metavar="LORA[:SCALE]...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FOLDER", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub.")
@click.option("--offline", is_flag=True, help="Do not use the network.")
@click.option("--quiet", is_flag=True, help="Print only the folder.")
def merge(model: str, loras: tuple[str, ...], output: Path, revision: str | None, offline: bool, quiet: bool) -> None:
    """Write MODEL with LoRAs merged into its weights as a new pipeline folder.

    Its images are those of MODEL with --lora, up to rounding. FOLDER must not exist.
    """
    from t2i.model_files.locate import locate
    from t2i.pipelines.adapters.specs import Adapters
    from t2i.pipelines.text_to_image.lora_merge import merge as merge_into

    adapters = Adapters.read(loras)
    attached = merge_into(locate(model, revision=revision, offline=offline), adapters, output, offline)
    for line in (*attached.lines, *attached.warnings) if not quiet else ():
        click.echo(line, err=True)
    click.echo(str(output))
