"""Progress bars of all commands, and the events of a job as lines and a bar."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from t2i.jobs.events import Counted, Drawn, Event, Failed, Message, ShardPacked, SheetSaved, StepDone

LINE_SECONDS = 60.0


def read_prompt_texts(file: str | None) -> tuple[str, ...]:
    """Return the prompts of a file; none without one.  Raises UsageError."""
    from t2i.jobs.spec.prompt_files import read_prompts

    return () if file is None else tuple(one.text for one in read_prompts((), (), file, sys.stdin.buffer))


@contextmanager
def progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], object]]:
    """Show a progress bar on stderr; yield a function that takes (how many more, of how many)."""
    from tqdm import tqdm

    from t2i.distributed import is_main

    hidden = None if is_main() and not quiet else True
    with tqdm(unit="img", desc=what, leave=False, file=sys.stderr, disable=hidden) as bar:

        def seen(more: int, total: int) -> None:
            bar.total = total
            bar.update(more)

        yield seen


@contextmanager
def show_events(quiet: bool, as_json: bool, spell: Callable[[str], str] = str) -> Iterator[Callable[[Event], None]]:
    """Show a job's events: results on stdout, messages and a progress bar on stderr.

    In a pipe or a log there is no bar: each path is printed, and a batch reports its progress now and then.
    as_json: print the path and the whole record of each image as one line of JSON.
    spell: writes a message with options as the command line has them.
    """
    shown = _Shown(quiet, as_json, spell)
    try:
        yield shown
    finally:
        shown.close()


class _Shown:
    def __init__(self, quiet: bool, as_json: bool, spell: Callable[[str], str]) -> None:
        self.quiet = quiet
        self.spell = spell
        self.as_json = as_json
        self.bar: Any = None
        self.said = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Message():
                self._say(str(event))
            case Failed(name=name, error=error):
                self._say(f"failed: {name}: {error}")
            case StepDone(done=done, total=total):
                self._move("step", done, total)
            case Counted(done=done, total=total):
                self._count(done, total)
            case Drawn(path=path, recipe=recipe):
                self._print({"path": str(path), **json.loads(recipe.to_json())})
                if event.verification:
                    self._say(event.verification)
            case ShardPacked(path=path, images=images):
                self._print({"path": str(path), "images": images})
            case SheetSaved(path=path):
                self._print({"path": str(path), "grid": True})

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()

    def _print(self, record: dict[str, Any]) -> None:
        self._clear()
        click.echo(json.dumps(record) if self.as_json else record["path"])

    def _say(self, line: str) -> None:
        if not self.quiet:
            self._clear()
            click.echo(self.spell(line), err=True)

    def _clear(self) -> None:
        """Clear the bar from the screen until it moves again, so that a line can be printed in its place."""
        if self.bar is not None:
            self.bar.clear()

    def _count(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            self._move("img", done, total)
        elif not self.quiet and time.monotonic() - self.said > LINE_SECONDS:
            self.said = time.monotonic()
            click.echo(f"{done} of {total} images", err=True)

    def _move(self, unit: str, done: int, total: int) -> None:
        if self.bar is None:
            from tqdm import tqdm

            hidden = True if self.quiet else None  # None: where stderr is no terminal
            self.bar = tqdm(total=total, desc="drawing", unit=unit, leave=False, file=sys.stderr, disable=hidden)
        self.bar.total = total
        self.bar.update(done - self.bar.n)
