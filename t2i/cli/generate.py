"""`t2i generate`: draw images from text prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from t2i.cli.options import SectionedCommand, adapters, editing, machine, model, output, picture, prompts, speed

if TYPE_CHECKING:
    from t2i.cli.packing import Packed
    from t2i.recipe import Recipe

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
    from t2i.cli.batch import draw_batch, is_batch
    from t2i.cli.drawing import draw, to_json
    from t2i.cli.dryrun import survey, survey_batch
    from t2i.cli.packing import check_shards
    from t2i.cli.prompts import hints, read_prompts
    from t2i.cli.request import Request
    from t2i.cli.tasks import choose_seeds, read_size
    from t2i.pipelines.editing import make_edit

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    quiet, as_json, dry = given.pop("quiet"), given.pop("as_json"), given.pop("dry_run")
    arguments, options, size = given.pop("arguments"), given.pop("options"), given.pop("size")
    file, originals, numbers = given.pop("file"), given.pop("originals"), given.pop("seeds")
    given["width"], given["height"] = read_size(size, given["width"], given["height"])
    seeds = choose_seeds(numbers)
    given["edit"] = make_edit(*_started(given, bool(file), bool(originals)))
    check_shards(file, bool(arguments or options or originals), given)
    drawn: Iterator[tuple[Path, Recipe | Packed | None]]
    if file and not (arguments or options or originals) and is_batch(file, given["output"], given["grid"]):
        request, chosen = Request(prompts=(), seeds=seeds, **given), bool(numbers) and -1 not in numbers
        if dry:
            return survey_batch(Path(file), request, chosen, say, as_json)
        drawn = draw_batch(Path(file), request, chosen, say, bar=not quiet)
    else:
        if "-" in (*arguments, file) and sys.stdin.isatty():
            say("prompts, one per line; Ctrl-D ends them:")
        asked = read_prompts(arguments, options, file, sys.stdin.buffer, needed=not originals)
        for hint in hints(arguments, given["negative"]):
            say(f"hint: {hint}")
        if originals:
            from t2i.cli.replay import read_originals

            asked = read_originals(originals, asked, _chosen(), given["model"], say)
        request = Request(prompts=asked, seeds=seeds, **given)
        if dry:
            return survey(request, say, as_json)
        drawn = draw(request, say, bar=not quiet)
    for path, recipe in drawn:
        click.echo(to_json(path, recipe) if as_json else str(path))


def _started(given: dict[str, Any], file: bool, replay: bool) -> list[Any]:
    """What `make_edit` takes, out of `given`.

    file, replay: whether prompts come from rows, or from pictures that are made again. What is a user's own default
    adds nothing to a record, and a default strength waits for a picture.
    """
    source = click.get_current_context().get_parameter_source
    names = ("image", "mask", "strength", "controls", "upscale")
    started = {name: given.pop(name) for name in names}
    for name in names:
        idle = replay or (name == "strength" and started["image"] is None and not file)
        if idle and source(name) is ParameterSource.DEFAULT_MAP:
            started[name] = () if name == "controls" else None
    return list(started.values())


def _chosen() -> set[str]:
    """The options that stand on the command line, by the names of `tasks.Wish`."""
    ctx = click.get_current_context()
    found = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    return found | ({"seed"} if "seeds" in found else set()) | ({"width", "height"} if "size" in found else set())
