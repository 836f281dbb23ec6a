"""What is to be drawn: prompts with what each asks for by itself, and the one image after another that they make."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.errors import UsageError
from t2i.pipelines.prompts.dynamic_prompts import Wildcards, is_template, resolve, resolve_negative
from t2i.pipelines.settings.edit import NO_IMAGE_INPUTS, ImageInputs
from t2i.pipelines.settings.limits import check_seeds
from t2i.pipelines.settings.settings import Job

if TYPE_CHECKING:
    from t2i.metadata.recipe import Recipe


@dataclass(frozen=True)
class PromptOverrides:
    """What one prompt asks for by itself; None: what the command line says, else what the model wants.

    edit: likewise part by part.
    """

    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    model: str | None = None
    revision: str | None = None
    dtype: str | None = None
    cache: str | None = None
    device: str | None = None  # a wish only: where this machine has none such, the fastest there is
    quantize: str | None = None
    tiling: bool | None = None
    deterministic: bool | None = None
    no_safety: bool | None = None
    seed: int | None = None
    count: int | None = None
    output: str | None = None  # a name below the folder of --output
    loras: tuple[str, ...] | None = None  # as on the command line; (): none
    embeddings: tuple[str, ...] | None = None
    ip_adapters: tuple[str, ...] | None = None
    edit: ImageInputs = NO_IMAGE_INPUTS
    raw: bool | None = None  # weights in the prompts are plain text
    chunks: bool | None = None


@dataclass(frozen=True)
class Original:
    """An image that is to be made again, and its own record (None: it carries another tool's)."""

    path: Path
    recipe: Recipe | None


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what belongs to it alone.

    row: in the file it came from (0 on the command line), which shifts its seeds.  where: that place, for messages.
    literal: nothing in it is to be chosen; template: what it was once chosen from.
    copies: (n, k): to be drawn as image k of n at once, since another number may round differently.
    """

    text: str
    row: int = 0
    overrides: PromptOverrides = PromptOverrides()
    template: str = ""
    literal: bool = False
    original: Original | None = None
    copies: tuple[int, int] = (1, 0)
    where: str = ""


@dataclass(frozen=True)
class Task:
    """One image to draw, and the prompt it belongs to."""

    job: Job
    prompt: Prompt


def choose_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds of a run: -1, or none at all, becomes a random one.  Raises UsageError for what is out of range."""
    return check_seeds([secrets.randbelow(2**32) if seed == -1 else seed for seed in seeds or (-1,)])


def make_tasks(
    prompts: Sequence[Prompt], seeds: Sequence[int], count: int, folder: Path | None = None, negative: str = ""
) -> list[Task]:
    """All tasks of these prompts: see `each_task`."""
    return list(each_task(prompts, seeds, count, folder, negative))


def each_task(
    prompts: Iterable[Prompt], seeds: Sequence[int], count: int, folder: Path | None = None, negative: str = ""
) -> Iterator[Task]:
    """One per image: image k of a prompt has seed + k, for each prompt anew; row r of a file starts at r x count.

    A prompt with a seed of its own starts there.  What it leaves open is chosen by the image's seed;
    folder: that of wildcards.  negative: the template where a prompt has no negative prompt of its own.
    Raises UsageError where a seed would leave its range, or a prompt says what cannot be chosen.
    """
    wildcards = Wildcards(folder)
    for prompt in prompts:
        own = prompt.overrides.seed
        for seed in [seed + prompt.row * count for seed in seeds] if own is None else [own]:
            for k in range(prompt.overrides.count or count):
                text, template = prompt.text, prompt.template
                if not prompt.literal:
                    text, template = resolve(prompt.text, seed + k, wildcards), prompt.template or prompt.text
                check_seeds([seed + k])
                yield Task(Job(text, seed + k, template, *_negative(prompt, seed + k, wildcards, negative)), prompt)


def _negative(prompt: Prompt, seed: int, wildcards: Wildcards, common: str) -> tuple[str | None, str]:
    """The negative prompt of one image, and its template; (None, ""): it has none but what the settings say."""
    own, told = prompt.overrides.negative, prompt.original and prompt.original.recipe
    if own is not None and (prompt.literal or prompt.original):  # a record's: it has been chosen
        return (own, told.negative_template) if told and told.negative_prompt == own else (None, "")
    template = common if own is None else own
    return (resolve_negative(template, seed, wildcards), template) if is_template(template) else (None, "")


def read_size(size: str | None, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """(width, height) of `--size 768x512` or `--size 512`, or of -W and -H.  Raises UsageError."""
    if size is None:
        return width, height
    match = re.fullmatch(r"\s*(\d{1,9})(?:\s*[xX×*]\s*(\d{1,9}))?\s*", size)
    if match is None:
        raise UsageError(f"--size: got {size[:40]!r}, expected WIDTHxHEIGHT, for example 512x512")
    if width is not None or height is not None:
        raise UsageError("give either --size, or --width and --height")
    return int(match[1]), int(match[2] or match[1])
