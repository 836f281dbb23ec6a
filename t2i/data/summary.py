"""The statistics of a data set: counts, sizes, classes, broken files, duplicates, and a contact sheet; in one pass.

Memory does not grow with the set: lists of examples, of sizes and of values are bounded, and the summary says where.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image

from t2i import config
from t2i.data.memory_table import THREADS, chunks, spread
from t2i.data.rows import Row
from t2i.data.sources import open_source
from t2i.errors import ImageError
from t2i.imaging import images

NAMED = 100  # broken and duplicate images listed; all are counted
EXAMPLES = 10  # of these, in the text for humans
VALUES = 1_000  # distinct values, or sizes, counted separately
LONGEST = 200  # characters of a value
COMPARED = 1_000_000  # images among which duplicates are searched for
SHOWN = 64  # images of the contact sheet
THUMBNAIL = 96  # pixels per side


@dataclass
class Column:
    """One column: number of rows with a value, and of each value; None where there are more than VALUES."""

    filled: int = 0
    values: dict[str, int] | None = field(default_factory=dict)
    classes: bool = False  # its values are class names, listed even where no row has one

    def add(self, value: str) -> None:
        """Count one row's value."""
        if value:
            self.filled += 1
            if self.values is not None:
                key = value[:LONGEST]
                self.values[key] = self.values.get(key, 0) + 1
                if len(self.values) > VALUES:
                    self.values = None


@dataclass
class Summary:
    """The statistics of a source.

    sizes: "width x height" -> images, upright, the most frequent first; "other" beyond VALUES of them.
    short_sides: lower bound of the shorter side, a power of two -> images.
    broken: where and why, the first NAMED.  duplicates: images whose file equals an earlier one's, byte for byte, among
    the first COMPARED; duplicated: the first NAMED of them.
    """

    path: str
    rows: int
    images: int = 0
    bytes: int = 0
    broken_count: int = 0
    broken: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    short_sides: dict[int, int] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    duplicates: int = 0
    duplicated: list[str] = field(default_factory=list)
    compared: int = 0


@dataclass(frozen=True)
class _InspectedImage:
    """One decoded image: upright size, bytes and hash of its file, and a thumbnail if it is on the contact sheet."""

    size: tuple[int, int]
    bytes: int
    hash: int
    thumbnail: Image | None


def summarize(source: config.Source, sheet: bool = False, progress: bool = True) -> tuple[Summary, Image | None]:
    """Read a source once, decoding every image; with `sheet`, also make its contact sheet, of evenly spaced rows.

    progress: a bar on stderr.  Raises DataError: a source that is missing, empty or of unknown kind.
    """
    from tqdm import tqdm

    found = open_source(source)
    summary = Summary(source.path, found.count)
    for name, names in found.classes.items():
        summary.columns[name] = Column(values=dict.fromkeys(names, 0), classes=True)
    wanted = set(spread(found.count, SHOWN).tolist()) if sheet else set()
    sizes: Counter[tuple[int, int] | None] = Counter()
    seen: set[int] = set()
    shown: list[Image] = []
    bar = tqdm(total=found.count, unit="image", desc="reading images", file=sys.stderr, disable=not progress)
    with ThreadPoolExecutor(THREADS) as pool, bar:
        numbered = enumerate(found.rows)
        for chunk in chunks(numbered):
            looks = pool.map(lambda pair: _inspect(pair[1], pair[0] in wanted), chunk)
            for (_, row), inspected in zip(chunk, looks, strict=True):
                for name, value in row.columns.items():
                    summary.columns.setdefault(name, Column()).add(value)
                _count(summary, row, inspected, sizes, seen)
                if isinstance(inspected, _InspectedImage) and inspected.thumbnail is not None:
                    shown.append(inspected.thumbnail)
            bar.update(len(chunk))
    summary.sizes = {f"{s[0]} x {s[1]}" if s else "other": n for s, n in sizes.most_common()}
    summary.short_sides = dict(sorted(summary.short_sides.items()))
    return summary, images.grid(shown) if shown else None


def lines(summary: Summary) -> list[tuple[str, str]]:
    """Return the summary as labels and texts, for a human."""
    found = [
        ("images", f"{summary.images:,} of {summary.rows:,} rows, {summary.bytes / 1e6:,.1f} MB"),
        ("broken", _examples(f"{summary.broken_count:,}", summary.broken, summary.broken_count)),
        ("sizes", _most(summary.sizes)),
    ]
    if len(summary.sizes) > 1:
        found.append(("short side", ", ".join(f"{a}..{2 * a - 1}: {n:,}" for a, n in summary.short_sides.items())))
    found += [(name, _column(column)) for name, column in summary.columns.items()]
    among = "" if summary.compared == summary.images else f" among the first {summary.compared:,}"
    return [*found, ("duplicates", _examples(f"{summary.duplicates:,}{among}", summary.duplicated, summary.duplicates))]


def _inspect(row: Row, wanted: bool) -> _InspectedImage | ImageError:
    """Decode one image.  Runs in a thread."""
    try:
        if row.problem is not None or row.image is None:
            raise ImageError(f"{row.where}: {row.problem or 'no image'}")
        image = images.decode(row.image, row.where)
    except ImageError as e:
        return e
    data = row.image.read_bytes() if isinstance(row.image, Path) else row.image
    # 64 bits: the chance that any two of 10^6 files collide is 1 in 10^7
    short = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    return _InspectedImage(image.size, len(data), short, images.fit(image, THUMBNAIL) if wanted else None)


def _count(
    summary: Summary, row: Row, inspected: _InspectedImage | ImageError, sizes: Counter[Any], seen: set[int]
) -> None:
    if isinstance(inspected, ImageError):
        summary.broken_count += 1
        if summary.broken_count <= NAMED:
            summary.broken.append(
                inspected.message if row.where in inspected.message else f"{row.where}: {inspected.message}"
            )
        return
    summary.images += 1
    summary.bytes += inspected.bytes
    sizes[inspected.size if inspected.size in sizes or len(sizes) < VALUES else None] += 1
    side = 1 << (min(inspected.size).bit_length() - 1)
    summary.short_sides[side] = summary.short_sides.get(side, 0) + 1
    if summary.images <= COMPARED:
        summary.compared += 1
        if inspected.hash in seen:
            summary.duplicates += 1
            if summary.duplicates <= NAMED:
                summary.duplicated.append(row.where)
        seen.add(inspected.hash)


def _column(column: Column) -> str:
    if column.values is None:
        return f"{column.filled:,} values, more than {VALUES:,} different"
    if column.classes:
        return f"{column.filled:,} values, {len(column.values):,} classes: {_most(column.values, 100)}"
    often = dict(sorted(column.values.items(), key=lambda item: -item[1]))
    return f"{column.filled:,} values, {len(often):,} different: {_most(often)}"


def _examples(head: str, some: list[str], count: int) -> str:
    """Return a count, and below it the first of the items counted."""
    more = count - len(some[:EXAMPLES])
    return "\n".join([head, *some[:EXAMPLES], *([f"and {more:,} more"] if more else [])])


def _most(counts: dict[str, int], most: int = 8) -> str:
    """Return the first `most` of these counts as text, and the number of the others."""
    some = [f"{name} ({n:,})" for name, n in list(counts.items())[:most]]
    more = len(counts) - len(some)
    return ", ".join(some) + (f", and {more:,} more" if more else "")
