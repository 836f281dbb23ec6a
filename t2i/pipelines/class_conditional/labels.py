"""Class labels of a batch: names or numbers to numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from t2i.errors import UsageError

Labels = Sequence[str | int] | str | int | None


def label_numbers(classes: Sequence[str], batch: int, labels: Labels) -> Tensor | None:
    """Return class numbers of a batch, (B,) int64; None for a model without classes.

    classes: the model's names.  labels: names or numbers, one for all or a list that is cycled through; None: all in
    turn.  Raises UsageError: no such class.
    """
    if not classes:
        if labels is not None:
            raise UsageError("labels: this model is unconditional", "leave the label out")
        return None
    given = range(len(classes)) if labels is None else [labels] if isinstance(labels, str | int) else labels
    numbers = [_number(classes, label) for label in given]
    if not numbers:
        raise UsageError("labels: got none; give a class, or leave the list out for all in turn")
    return torch.tensor([numbers[k % len(numbers)] for k in range(batch)])


def _number(classes: Sequence[str], label: str | int) -> int:
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if str(label).isdecimal() and int(label) < len(classes):
        return int(label)
    raise UsageError(
        f"label: got {str(label)[:40]!r}, allowed are {', '.join(classes[:20])}"
        + (" ..." if len(classes) > 20 else "")
        + f", or numbers 0 to {len(classes) - 1}"
    )
