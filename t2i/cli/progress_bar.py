"""What the commands of `t2i eval` have in common: prompts from a file, and a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def prompts_of(file: str | None) -> tuple[str, ...]:
    """The prompts of a file; none without one.  Raises UsageError."""
    from t2i.jobs.spec.prompt_files import read_prompts

    return () if file is None else tuple(one.text for one in read_prompts((), (), file, sys.stdin.buffer))


@contextmanager
def progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], object]]:
    """A progress bar on stderr that takes (how many more, of how many)."""
    from tqdm import tqdm

    from t2i.distributed import is_main

    hidden = None if is_main() and not quiet else True
    with tqdm(unit="img", desc=what, leave=False, file=sys.stderr, disable=hidden) as bar:

        def seen(more: int, total: int) -> None:
            bar.total = total
            bar.update(more)

        yield seen
