"""What every kind of source hands on: undecoded images with what is known of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One undecoded image and what is known of it."""

    where: str  # what an error names
    image: bytes | Path | None
    columns: dict[str, str]
    problem: str | None = None  # what is wrong with it, where that is known before decoding


@dataclass(frozen=True)
class Rows:
    """One source: how many rows it holds, and the rows in a fixed order."""

    count: int
    rows: Iterable[Row]
