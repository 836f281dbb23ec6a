"""One process's share of a step's images, and their classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from t2i.data.batches import flips
from t2i.data.tables import Table, share_of
from t2i.errors import DataError
from t2i.imaging import images
from t2i.training.engine import Step


def pictures(table: Table, config: Any, step: Step) -> tuple[Tensor, Tensor]:
    """Return this process's images of a step, mirrored at random if the config says so, and their rows.

    Returns (b, 3, S, S) in [-1, 1], and (b,) int64.
    """
    rows, pixels = share_of(table, config.seed, step.first, step.batch, step.share)
    x = images.from_uint8(pixels)
    if config.data.flip:
        # drawn for the global batch, then sliced: the same on any number of processes
        mirrored = flips(config.seed, step.first, step.batch)[step.share].to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x, rows


def class_names(config: Any, table: Table) -> tuple[str, ...]:
    """Return the names of the classes, in the order of their numbers; none without `label`.  Raises DataError."""
    return () if config.label is None else classes_of(table, config.label)


def classes_of(table: Table, column: str) -> tuple[str, ...]:
    """Return the names of a column's classes, in the order of their numbers.

    Raises DataError: no such classes, or a single one, which leaves nothing to distinguish.
    """
    if column not in table.classes:
        known = ", ".join(map(repr, table.classes)) or "none"
        raise DataError(
            f"label: no column {column!r} of classes; the data has {known}", "--set label=null trains without"
        )
    names = tuple(table.classes[column])
    if len(names) < 2:
        raise DataError(
            f"label: column {column!r} has {len(names)} classes ({', '.join(names) or 'none'}); it takes two",
            "--set label=null trains without; a classifier needs pictures of another class",
        )
    return names


def class_numbers(table: Table, column: str, rows: Tensor) -> Tensor:
    """Return the classes of rows, all of which must have one: (b,) int64.  Raises DataError."""
    labels = table.labels(rows, column)
    if (missing := rows[labels < 0]).numel():
        raise DataError(f"label: row {int(missing[0])} of the data has no {column!r}", "leave such rows out")
    return labels
