"""From the options of `t2i generate` to what is asked for: prompts are read, seeds chosen, records found."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.jobs.spec.prompt_files import hints, read_prompts
from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.shard_options import check_shards, is_batch
from t2i.jobs.spec.tasks import choose_seeds, read_size
from t2i.pipelines.settings.edit import make_image_inputs


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    batch: the file of a long batch, whose prompts the request does not hold.  seeded: the user named all seeds.
    """

    request: GenerateRequest
    batch: Path | None = None
    seeded: bool = False


def understand(given: dict[str, Any], chosen: Collection[str], say: Callable[[str], None]) -> Asked:
    """given: the command's parameters, by name; those that `GenerateRequest` does not know are taken out of it.

    chosen: those that stand on the command line, by the names of `PromptOverrides`.  say: takes a line.
    Raises UsageError, ImageError, ModelUnavailable.
    """
    arguments, options, file = given.pop("arguments"), given.pop("options"), given.pop("file")
    originals, numbers = given.pop("originals"), given.pop("seeds")
    given["width"], given["height"] = read_size(given.pop("size"), given["width"], given["height"])
    seeds = choose_seeds(numbers)
    given["edit"] = make_image_inputs(
        *(given.pop(name) for name in ("image", "mask", "strength", "controls", "upscale"))
    )
    beside = bool(arguments or options or originals)
    check_shards(file, beside, given)
    if file and not beside and is_batch(file, given["output"], given["grid"]):
        request = GenerateRequest(prompts=(), seeds=seeds, **given)
        return Asked(request, Path(file), bool(numbers) and -1 not in numbers)
    if "-" in (*arguments, file) and sys.stdin.isatty():
        say("prompts, one per line; Ctrl-D ends them:")
    prompts = read_prompts(arguments, options, file, sys.stdin.buffer, needed=not originals)
    for hint in hints(arguments, given["negative"]):
        say(f"hint: {hint}")
    if originals:
        from t2i.jobs.replay.replay import read_replayed

        prompts = read_replayed(originals, prompts, chosen, given["model"], say)
    return Asked(GenerateRequest(prompts=prompts, seeds=seeds, **given))
