"""`t2i generate`: draw images from text prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from t2i.cli import complete

if TYPE_CHECKING:
    from t2i.recipe import Recipe

SCHEDULER_NAMES = "ddim, dpm++2m, dpm++2m-karras, euler, euler-a, unipc, heun, pndm, lcm, ..."
EXAMPLES = """\b
Examples:
  t2i generate "a horse in Van Gogh style"
  t2i generate "a dog" "a cat" -b 4 --seed 7 --grid
  t2i generate "a house, sketch" -n photo -o house.png
  t2i generate --prompts prompts.txt -o "out/{prompt}-{seed}.jpg"
  accelerate launch t2i generate --prompts big.jsonl -o big/
  echo "an elephant" | t2i generate - --json
  t2i generate --from horse.png --steps 40
"""


@click.command(epilog=EXAMPLES)
@click.argument("arguments", metavar="[PROMPT]...", nargs=-1)
@click.option("-p", "--prompt", "options", metavar="TEXT", multiple=True, help="A prompt; may be repeated.")
@click.option(
    "--prompts",
    "file",
    metavar="FILE",
    help="A file of prompts: one per line (.txt, or - for stdin), or rows that set options (.jsonl, .csv).",
)
@click.option(
    "--raw", is_flag=True, help="Take prompts as they are: no {a|b}, {0.5::a|b}, {2$$ and $$a|b|c}, __wildcard__."
)
@click.option(
    "--wildcards",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("wildcards"),
    help="Where NAME.txt of __NAME__ is.  [wildcards]",
)
@click.option(
    "--from",
    "originals",
    metavar="IMAGE",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Make an image again by what it says of itself; any option given holds. May be repeated.",
)
@click.option("-n", "--negative-prompt", "negative", metavar="TEXT", default="", help="What not to draw.")
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    default="mini",
    envvar="T2I_MODEL",
    show_envvar=True,
    shell_complete=complete.models,
    help="A name (mini, sd15, sdxl, ...), a pipeline or run folder, a Hub id owner/name, or one .safetensors file."
    " Default: mini, which is built in and needs no network.",
)
@click.option("--steps", "--num-inference-steps", type=int, help="Denoising steps, 1 to 1000. Default: the model's.")
@click.option(
    "--guidance",
    "--cfg-scale",
    "--guidance-scale",
    type=float,
    help="How closely to follow the prompt, 0 to 100; 1 or less turns guidance off. Default: the model's.",
)
@click.option(
    "-s",
    "--seed",
    "seeds",
    type=int,
    multiple=True,
    help="Seed of a prompt's first image, 0 to 2^64-1; the next ones count up. May be repeated."
    " Default: -1, a random one, which is shown and recorded.",
)
@click.option("-b", "--batch-count", "--num-images", "count", type=int, default=1, help="Images per prompt.  [1]")
@click.option("--batch-size", type=int, help="Images drawn at once; changes speed and memory, not the pictures.")
@click.option("-W", "--width", type=int, help="Pixels. Default: the model's.")
@click.option("-H", "--height", type=int, help="Pixels. Default: the model's.")
@click.option("--size", metavar="WxH", help="Both at once, as 512x512.")
@click.option(
    "--scheduler",
    "--sampler",
    metavar="NAME",
    shell_complete=complete.schedulers,
    help=f"{SCHEDULER_NAMES} or A1111's names. Default: the model's own.",
)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="A file, a folder/, or a pattern with {date} {index} {seed} {model} {prompt} {job}. Default:"
    " outputs/{date}/{index}-{seed}.png, with --prompts a folder with {index}-{job}.png. Nothing is overwritten.",
)
@click.option("--overwrite", is_flag=True, help="Allow --output to replace files.")
@click.option("--grid", is_flag=True, help="Also save all images on one sheet.")
@click.option("--columns", type=click.IntRange(1, 1000), help="Images per row of --grid. Default: a row per prompt.")
@click.option("--format", type=click.Choice(["png", "jpg", "webp"]), help="Default: by the suffix of --output, or png.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image instead of its path.")
@click.option(
    "--device",
    metavar="NAME",
    shell_complete=complete.devices,
    help="cpu, cuda, cuda:1, mps. Default: the fastest there is.",
)
@click.option(
    "--dtype",
    metavar="NAME",
    shell_complete=complete.dtypes,
    help="float32, float16 or bfloat16. Default: float32 on a CPU.",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub.")
@click.option(
    "--config",
    metavar="FOLDER",
    type=click.Path(file_okay=False),
    help="Configs and tokenizers for a single .safetensors file. Needed for neither Stable Diffusion 1 nor XL.",
)
@click.option("--offline", is_flag=True, help="Do not use the network.")
@click.option("--quiet", is_flag=True, help="No words and no progress bar on stderr, but errors.")
def generate(**given: Any) -> None:
    """Draw an image of each PROMPT and print where it is saved.

    Each argument is one prompt: put quotes around it. "-" reads prompts from stdin, one per line. Image k of a prompt
    has seed SEED + k and is the same picture whether it is drawn alone or among others.

    With --prompts and a folder images are named by place and content, and listed in its manifest.jsonl. The same
    command again makes only what is missing, and under `accelerate launch` all processes share the work.
    """
    from t2i.cli.batch import draw_batch, is_batch
    from t2i.cli.drawing import draw, to_json
    from t2i.cli.prompts import hints, read_prompts
    from t2i.cli.request import Request
    from t2i.cli.tasks import choose_seeds, read_size

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    quiet, as_json = given.pop("quiet"), given.pop("as_json")
    arguments, options, size = given.pop("arguments"), given.pop("options"), given.pop("size")
    file, originals, numbers = given.pop("file"), given.pop("originals"), given.pop("seeds")
    given["width"], given["height"] = read_size(size, given["width"], given["height"])
    seeds = choose_seeds(numbers)
    drawn: Iterator[tuple[Path, Recipe | None]]
    if file and not (arguments or options or originals) and is_batch(file, given["output"], given["grid"]):
        request = Request(prompts=(), seeds=seeds, **given)
        drawn = draw_batch(Path(file), request, bool(numbers) and -1 not in numbers, say, bar=not quiet)
    else:
        if "-" in (*arguments, file) and sys.stdin.isatty():
            say("prompts, one per line; Ctrl-D ends them:")
        prompts = read_prompts(arguments, options, file, sys.stdin.buffer, needed=not originals)
        for hint in hints(arguments, given["negative"]):
            say(f"hint: {hint}")
        if originals:
            from t2i.cli.replay import read_originals

            prompts = read_originals(originals, prompts, _chosen(), given["model"], say)
        drawn = draw(Request(prompts=prompts, seeds=seeds, **given), say, bar=not quiet)
    for path, recipe in drawn:
        click.echo(to_json(path, recipe) if as_json else str(path))


def _chosen() -> set[str]:
    """The options that stand on the command line, by the names of `tasks.Wish`."""
    ctx = click.get_current_context()
    found = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    return found | ({"seed"} if "seeds" in found else set()) | ({"width", "height"} if "size" in found else set())
