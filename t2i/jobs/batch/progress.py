"""Progress of a long batch, summed over its processes."""

from __future__ import annotations

from t2i.jobs.batch.ledger import Ledger
from t2i.jobs.events import Counted, Emit


class Progress:
    """Count images, those that were found and those that any process draws.

    shown: whether this process emits the counts: the main one does, for all.
    """

    def __init__(self, shown: bool, ledger: Ledger, emit: Emit) -> None:
        self._shown = shown
        self._ledger = ledger
        self._emit = emit
        self._there = 0
        self._total = 0

    def begin(self, total: int) -> None:
        """Set the number of images in all."""
        self._total = total

    def found(self, count: int) -> None:
        """Count images that were there before."""
        self._there += count
        if self._there % 1000 < count:  # not one by one: a million may be there already
            self.show()

    def show(self) -> None:
        """Emit the count over all processes."""
        if self._shown:
            self._emit(Counted(self._there + self._ledger.drawn(), self._total))
