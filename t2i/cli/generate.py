"""`t2i generate`: draw images from text prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from t2i.cli.options import SectionedCommand, adapters, editing, machine, model, output, picture, prompts, speed

if TYPE_CHECKING:
    from t2i.jobs.batch.shard_packer import Packed
    from t2i.metadata.recipe import Recipe

EXAMPLES = """\b
Examples:
  t2i generate "a horse in Van Gogh style"
  t2i generate "a dog" "a cat" -b 4 --seed 7 --grid
  t2i generate "a house, sketch" -n photo -o house.png
  t2i generate "a horse, sketch" -i horse.png --strength 0.5
  t2i generate --prompts prompts.txt -o "out/{prompt}-{seed}.jpg"
  accelerate launch t2i generate --prompts big.jsonl -o big/
  echo "an elephant" | t2i generate - --json
  t2i generate --from horse.png --steps 40
  t2i generate "a horse" -m sd15 --lora style.safetensors:0.8 --embedding easynegative.safetensors -n easynegative
  t2i generate "a horse" -m sdxl --size 1024 --dry-run
"""


@click.command(cls=SectionedCommand, epilog=EXAMPLES)
@click.argument("arguments", metavar="[PROMPT]...", nargs=-1)
@prompts.options
@picture.options
@editing.options
@model.options
@adapters.options
@machine.options
@speed.options
@output.options
def generate(**given: Any) -> None:
    """Draw an image of each PROMPT and print where it is saved.

    Each argument is one prompt: put quotes around it. "-" reads prompts from stdin, one per line. Image k of a prompt
    has seed SEED + k and is the same picture whether it is drawn alone or among others.

    With --prompts and a folder images are named by place and content, and listed in its manifest.jsonl. The same
    command again makes only what is missing, and under `accelerate launch` all processes share the work.
    """
    from t2i.cli.dry_run import survey, survey_batch
    from t2i.jobs.batch.runner import draw_batch
    from t2i.jobs.from_options import understand
    from t2i.jobs.run import draw

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    quiet, as_json, dry = given.pop("quiet"), given.pop("as_json"), given.pop("dry_run")
    _forget_idle(given)
    asked = understand(given, _chosen(), say)
    drawn: Iterator[tuple[Path, Recipe | Packed | None]]
    if asked.batch is not None:
        if dry:
            return survey_batch(asked.batch, asked.request, asked.seeded, say, as_json)
        drawn = draw_batch(asked.batch, asked.request, asked.seeded, say, bar=not quiet)
    else:
        if dry:
            return survey(asked.request, say, as_json)
        drawn = draw(asked.request, say, bar=not quiet)
    for path, recipe in drawn:
        click.echo(to_json(path, recipe) if as_json else str(path))


def _forget_idle(given: dict[str, Any]) -> None:
    """Take back what only the user's own defaults say, where it cannot be meant.

    They add no picture to a record that is drawn again, and a default strength waits for a picture.
    """
    source = click.get_current_context().get_parameter_source
    for name in ("image", "mask", "strength", "controls", "upscale"):
        idle = given["originals"] or (name == "strength" and given["image"] is None and not given["file"])
        if idle and source(name) is ParameterSource.DEFAULT_MAP:
            given[name] = () if name == "controls" else None


def _chosen() -> set[str]:
    """The options that stand on the command line, by the names of `tasks.PromptOverrides`."""
    ctx = click.get_current_context()
    found = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    return found | ({"seed"} if "seeds" in found else set()) | ({"width", "height"} if "size" in found else set())


def to_json(path: Path, recipe: Recipe | Packed | None) -> str:
    """One line of JSON: the path and the whole recipe, or how many images a shard has; a sheet of all has no recipe."""
    record = {"grid": True} if recipe is None else json.loads(recipe.to_json())
    return json.dumps({"path": str(path)} | record)
