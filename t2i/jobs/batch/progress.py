"""How far a long batch is, over all its processes."""

from __future__ import annotations

from t2i.jobs.batch.ledger import Ledger
from t2i.jobs.events import Counted, Emit


class Progress:
    """Counts images, those that were there and those that any process draws.

    shown: whether this process tells: the main one does, for all.
    """

    def __init__(self, shown: bool, ledger: Ledger, emit: Emit) -> None:
        self._shown = shown
        self._ledger = ledger
        self._emit = emit
        self._there = 0
        self._total = 0

    def begin(self, total: int) -> None:
        """Take over how many images there are in all."""
        self._total = total

    def found(self, count: int) -> None:
        """Count images that were there before."""
        self._there += count
        if self._there % 1000 < count:  # a million that are there already are no news one by one
            self.show()

    def show(self) -> None:
        """Ask all processes, and tell."""
        if self._shown:
            self._emit(Counted(self._there + self._ledger.drawn(), self._total))
