"""A CSV log that is valid at every moment: rows are appended, and may add columns."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a row; the first one defines the columns.

    Columns that the file does not have yet (an older version began it) are added, empty in the rows before; columns
    that this row does not have are empty in it.
    """
    columns = _columns(path)
    new = [name for name in row if name not in columns]
    if new:
        _write(path, columns + new, read(path))
    with path.open("a", newline="") as f:
        csv.DictWriter(f, columns + new, restval="").writerow(row)


def rewind(path: Path, images_seen: int) -> None:
    """Drop the rows after this number of images, and any unfinished one."""
    # None: csv fills up a row that was cut short
    _write(
        path,
        _columns(path),
        [row for row in read(path) if None not in row.values() and int(row["images"]) <= images_seen],
    )


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows, oldest first; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def _columns(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(newline="") as f:
        return next(csv.reader(f), [])


def _write(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    """Write the file atomically."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as f:
        writer = csv.DictWriter(f, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)
