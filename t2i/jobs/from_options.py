"""From options as a user gives them, on the command line, in Python or in a request, to a `GenerateRequest`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from t2i.config.options import GenerateOptions
from t2i.errors import UsageError
from t2i.jobs.spec.prompt_files import read_prompts, usage_hints
from t2i.jobs.spec.request import GenerateRequest, parse
from t2i.jobs.spec.shard_options import check_shards, is_batch
from t2i.jobs.spec.tasks import Prompt, choose_seeds


def make_request(
    values: Mapping[str, Any],
    prompts: str | Sequence[str] = (),
    *,
    chosen: Collection[str] | None = None,
    stdin: BinaryIO | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> GenerateRequest:
    """Read options by name or alias into a request.

    prompts: one, or several; "-" is a list of them on stdin.
    chosen: the options that the user gave for this run, which override those of a replayed image; None: all of them.
    stdin: where "-" reads from; None: nowhere.  say: takes hints and what could not be restored, a line each.
    Raises UsageError, ImageError, ModelUnavailable.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes) or not all(isinstance(p, str) for p in prompts):
        raise UsageError(f"prompt: got {str(prompts)[:40]!r}, expected text, or a list of texts")
    given = GenerateOptions.read(values)
    chosen = set(given.model_fields_set if chosen is None else chosen)
    chosen |= {"width", "height"} if "size" in chosen else set()
    fixed = {name: getattr(given, name) for name in given.model_fields_set}
    options = given.override(parse(fixed))
    file = options.prompt_file
    alone = not (prompts or options.prompt or options.replay)
    check_shards(options, alone)
    seeds = choose_seeds(options.seed)
    if file and alone and is_batch(file, options.output, options.grid):
        named = bool(options.seed) and -1 not in options.seed
        return GenerateRequest(options, (), seeds, batch=Path(file), seeds_given=named)
    read = read_prompts(prompts, options.prompt, file, stdin, needed=not options.replay)
    for hint in usage_hints(prompts, options.negative_prompt):
        say(f"hint: {hint}")
    return GenerateRequest(options, _replayed(options, read, chosen, say), seeds)


def _replayed(
    options: GenerateOptions, prompts: list[Prompt], chosen: Collection[str], say: Callable[[str], None]
) -> list[Prompt]:
    """Return the prompts; where images are replayed, with the settings of each of these."""
    if not options.replay:
        return prompts
    from t2i.jobs.replay.replay import read_replayed

    return read_replayed(options.replay, prompts, chosen, options, say)
