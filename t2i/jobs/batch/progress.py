"""How far a long batch is, over all its processes: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import click

from t2i.jobs.batch.ledger import Ledger

LINE_SECONDS = 60.0


class Progress:
    """Counts images, those that were there and those that any process draws.  shown: by the main process alone."""

    def __init__(self, shown: bool, ledger: Ledger) -> None:
        self._shown = shown
        self._ledger = ledger
        self._there = 0
        self._total = 0
        self._bar: Any = None
        self._said = time.monotonic()

    def begin(self, total: int) -> None:
        """Say of how many images all is made."""
        self._total = total

    def found(self, count: int) -> None:
        """So many more were there before."""
        self._there += count
        if self._shown and self._there % 1000 < count:  # a million that are there already are no news one by one
            self.show()

    def show(self) -> None:
        """Ask all processes, and show it."""
        if not self._shown:
            return
        done = self._there + self._ledger.drawn()
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            self._bar.refresh()
        elif time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            click.echo(f"{done} of {self._total} images", err=True)

    def clear(self) -> None:
        """Take the bar from the screen until it moves again: something else is to be printed there."""
        if self._bar is not None:
            self._bar.clear()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Progress:
        if self._shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, desc="drawing", unit="img", leave=False, file=sys.stderr)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
