"""Sets of any size: images decoded when they are visited, the next step's while this one is learned from.

A `Store` knows where undecoded rows lie and in which order they are visited; a `LazyTable` decodes them in threads.
What comes out is a function of (store, seed, place): threads, looking ahead and memos save time and change nothing.

A row whose image is bad ends the run, or, with `bad_images: skip`, the next good row of the store stands in for it,
pixels, columns and labels alike, every time it is visited.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Protocol, overload

import numpy as np
import torch
from torch import Tensor

from t2i.data.memory_table import stop
from t2i.data.rows import Classes, Row, class_numbers, decode
from t2i.errors import DataError, ImageError

THREADS = 4  # Pillow decodes outside the interpreter lock
PIECE = 16  # images decoded by a thread at a time
MAX_RUN = 1000  # bad images one after the other, at which skipping gives up
EXPECTED = 64  # calls of `images` that are prepared at a time: the parts of a step, where it is taken in parts
SAID = 10  # bad images named on stderr; the others are counted


class Store(Protocol):
    """Undecoded rows that are found by number, and their order."""

    count: int  # rows
    visits: int  # of one epoch
    digest: str  # identity of the data
    names: tuple[str, ...]  # columns
    classes: Classes

    def order(self, seed: int, first: int, count: int) -> Tensor:
        """The rows of the global images first..first+count-1: (count,) int64."""
        ...

    def spread(self, count: int) -> Tensor:
        """At most `count` rows from all over the store, the same every time: (n,) int64."""
        ...

    def fetch(self, rows: Sequence[int]) -> list[Row]:
        """The undecoded rows of these numbers; called from several threads."""
        ...

    def prepare(self, seed: int, first: int, count: int) -> None:
        """Get ready what will be visited soon after these global images; called from a thread."""
        ...

    def column(self, name: str) -> Iterator[str]:
        """One column of all rows, in order, without the images."""
        ...


class LazyTable:
    """A table whose images are decoded on access; the same interface as `ImageTable`."""

    def __init__(self, store: Store, size: int, skip: bool, threads: int = THREADS) -> None:
        """size: pixels per side.  skip: bad images have stand-ins.  threads: 0 decodes in the caller's."""
        self.store, self.size, self.skip = store, size, skip
        self.hash = hashlib.sha256(f"{size} {store.visits} {store.digest}".encode()).hexdigest()
        self.classes, self.count = store.classes, store.count
        self.columns: Mapping[str, Sequence[str]] = {name: _Column(store, name) for name in store.names}
        self.device = torch.device("cpu")
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._expected: dict[bytes, list[Callable[[], Tensor]]] = {}
        # Memos of pure functions: what is known of rows. Zeros that nobody writes take no memory.
        self._good = np.zeros(store.count if skip else 0, np.bool_)
        self._stand_ins: dict[int, int] = {}
        self._bad: dict[int, str] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return self.store.visits

    @property
    def skipped(self) -> list[str]:
        """What was wrong, one line per bad image met so far, in the order of the rows."""
        return [self._bad[row] for row in sorted(self._bad)]

    def order(self, seed: int, first: int, count: int) -> Tensor:
        """The rows of the global images first..first+count-1: (count,) int64."""
        return self.store.order(seed, first, count)

    def spread(self, count: int) -> Tensor:
        """At most `count` rows from all over the table, the same every time: (n,) int64."""
        return self.store.spread(count)

    def images(self, rows: Tensor) -> Tensor:
        """(B, 3, S, S) uint8, on the device after `to`.  Raises DataError: a bad image, named."""
        pieces = self._expected.pop(rows.numpy().tobytes(), None) or self._begin(rows)
        return torch.cat([wait() for wait in pieces]).to(self.device)

    def expect(self, seed: int, first: int, count: int, share: slice) -> None:
        """Begin to decode what `images` will be asked for next: this share of these global images."""
        if self._pool is None:
            return
        rows = self.order(seed, first, count)[share]
        self._expected[rows.numpy().tobytes()] = self._begin(rows)
        while len(self._expected) > EXPECTED:  # what nobody asked for after all
            del self._expected[next(iter(self._expected))]
        self._pool.submit(self.store.prepare, seed, first, count)

    def row(self, index: int) -> dict[str, str]:
        """The columns of one row."""
        return self._columns([index])[0]

    def labels(self, rows: Tensor, column: str) -> Tensor:
        """Class numbers, -1 where a row has no class: (B,) int64.  Raises DataError: a column without classes."""
        texts = (row.get(column, "") for row in self._columns(rows.tolist()))
        return torch.tensor(class_numbers(self.classes, column, texts), dtype=torch.int64)

    def to(self, device: torch.device) -> LazyTable:
        """This table, its images from now on moved to the device."""
        self.device = device
        return self

    def _begin(self, rows: Tensor) -> list[Callable[[], Tensor]]:
        pieces = [piece.tolist() for piece in rows.split(PIECE)]
        if self._pool is None:
            return [partial(self._decode, piece) for piece in pieces]
        return [self._pool.submit(self._decode, piece).result for piece in pieces]

    def _decode(self, rows: list[int]) -> Tensor:
        wanted = [self._stand_ins.get(row, row) for row in rows]
        return torch.stack([self._pixels(*pair) for pair in zip(wanted, self.store.fetch(wanted), strict=True)])

    def _pixels(self, index: int, row: Row) -> Tensor:
        try:
            pixels = decode(row, self.size)
        except ImageError as e:
            if not self.skip:
                raise stop(e) from None
            return self._stand_in(index, e)
        if self.skip:
            self._good[index] = True
        return pixels

    def _stand_in(self, index: int, error: ImageError) -> Tensor:
        """The pixels of the next good row after a bad one, in the order of the store and round its end."""
        self._note(index, error)
        for other in range(index + 1, index + min(MAX_RUN, self.count)):
            other %= self.count
            try:
                pixels = decode(self.store.fetch([other])[0], self.size)
            except ImageError as e:
                self._note(other, e)
                continue
            self._good[other] = True
            self._stand_ins[index] = other
            return pixels
        raise DataError(f"{min(MAX_RUN, self.count)} images in a row cannot be read; the first: {error.message}")

    def _note(self, index: int, error: ImageError) -> None:
        with self._lock:
            if index in self._bad:
                return
            self._bad[index] = error.message
            n = len(self._bad)
        if n <= SAID:
            print(f"left out, bad image {n}: {error.message}", file=sys.stderr)
        elif n % 100 == 0:
            print(f"left out: {n} bad images so far", file=sys.stderr)

    def _columns(self, rows: list[int]) -> list[dict[str, str]]:
        if self.skip:  # whether another row stands in is known only when the image has been decoded
            unknown = [row for row in rows if not self._good[row] and row not in self._stand_ins]
            if unknown:
                self._decode(unknown)
            rows = [self._stand_ins.get(row, row) for row in rows]
        return [{name: row.columns.get(name, "") for name in self.store.names} for row in self.store.fetch(rows)]


class _Column(Sequence[str]):
    """One column of a store, read as it is walked through; nothing is kept."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    def __len__(self) -> int:
        return self.store.count

    def __iter__(self) -> Iterator[str]:
        return self.store.column(self.name)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        chosen = range(len(self))[index]
        rows = [chosen] if isinstance(chosen, int) else list(chosen)
        values = [row.columns.get(self.name, "") for row in self.store.fetch(rows)]
        return values[0] if isinstance(chosen, int) else values
