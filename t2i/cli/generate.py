"""`t2i generate`: draw images from text prompts."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click
from click.core import ParameterSource

from t2i.cli.options import SectionedCommand, options_of, spelled
from t2i.config.options import GenerateOptions

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
@options_of(GenerateOptions)
def generate(arguments: tuple[str, ...], **given: Any) -> None:
    """Draw an image of each PROMPT and print where it is saved.

    Each argument is one prompt: put quotes around it. "-" reads prompts from stdin, one per line. Image k of a prompt
    has seed SEED + k and is the same image whether it is drawn alone or in a batch.

    With --prompts and a folder, images are named by position and content, and listed in manifest.jsonl there. Running
    the same command again draws only missing images, and under `accelerate launch` all processes share the work.
    """
    from t2i.cli.progress_bar import show_events
    from t2i.jobs.events import Counted, Drawn, Event, Failed, StepDone
    from t2i.jobs.from_options import make_request
    from t2i.jobs.run import execute
    from t2i.model_files.gc_pause import gc_paused

    quiet, as_json = given["quiet"], given["json_lines"]
    spell = partial(spelled, command=click.get_current_context().command)

    def say(line: str) -> None:
        if not quiet:
            click.echo(spell(line), err=True)

    _forget_idle_defaults(given)
    if "-" in (*arguments, given["prompt_file"]) and sys.stdin.isatty():
        say("prompts, one per line; Ctrl-D ends them:")
    values = {name: value for name, value in given.items() if value not in (None, ())}
    request = make_request(values, arguments, chosen=_chosen(), stdin=sys.stdin.buffer, say=say)
    if given["dry_run"]:
        from t2i.cli.dry_run import dry_run

        dry_run(request, say, as_json, spell)
        return
    with show_events(quiet, as_json, spell) as show, gc_paused() as resume:

        def shown(event: Event) -> None:
            if isinstance(event, StepDone | Counted | Drawn | Failed):  # the first model is loaded
                resume()
            show(event)

        execute(request, shown)


def _forget_idle_defaults(given: dict[str, Any]) -> None:
    """Drop defaults from the user's config file where they do not apply.

    They add no input image to a replayed record, and a default strength needs an image to act on.
    """
    source = click.get_current_context().get_parameter_source
    sides = [name for name in ("width", "height") if source(name) is ParameterSource.COMMANDLINE]
    if sides and source("size") is ParameterSource.DEFAULT_MAP:
        given["size"] = None
    for name in ("image", "mask", "strength", "control", "upscale"):
        alone = name == "strength" and given["image"] is None and not given["prompt_file"]
        if (given["replay"] or alone) and source(name) is ParameterSource.DEFAULT_MAP:
            given[name] = () if name == "control" else None


def _chosen() -> set[str]:
    """Return the options that are given on the command line."""
    ctx = click.get_current_context()
    return {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
