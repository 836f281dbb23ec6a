"""Tables of any size: images decoded on access, those of the next step in the background.

A `Store` holds undecoded rows and their order; a `LazyTable` decodes them in threads. The result is a function of
(store, seed, position): threads, prefetching and caches save time and change nothing.

A bad image ends the run, or, with `bad_images: skip`, is replaced by the next good row of the store: pixels, columns
and labels alike, at every visit.
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

from t2i.data.memory_table import bad_image_error
from t2i.data.rows import Classes, Row, class_numbers, decode
from t2i.errors import DataError, ImageError

THREADS = 4  # Pillow decodes outside the interpreter lock
PIECE = 16  # images decoded by a thread at a time
MAX_RUN = 1000  # consecutive bad images, at which skipping gives up
PREFETCHED = 64  # calls of `images` that are prefetched at a time: more than one for an accumulated step
REPORTED = 10  # bad images reported on stderr; the others are counted


class Store(Protocol):
    """Undecoded rows with random access, and their order."""

    count: int  # rows
    visits: int  # of one epoch
    digest: str  # identity of the data
    names: tuple[str, ...]  # columns
    classes: Classes

    def order(self, seed: int, first: int, count: int) -> Tensor:
        """Return the rows of the global images first..first+count-1: (count,) int64."""
        ...

    def spread(self, count: int) -> Tensor:
        """Return at most `count` rows from all over the store, the same every time: (n,) int64."""
        ...

    def fetch(self, rows: Sequence[int]) -> list[Row]:
        """Return the undecoded rows of these numbers; called from several threads."""
        ...

    def read_ahead(self, seed: int, first: int, count: int) -> None:
        """Read what will be visited soon after these global images; called from a thread."""
        ...

    def column(self, name: str) -> Iterator[str]:
        """Yield one column of all rows, in order, without reading images."""
        ...


class LazyTable:
    """A table whose images are decoded on access; the same interface as `ImageTable`."""

    def __init__(self, store: Store, size: int, skip: bool, threads: int = THREADS) -> None:
        """Wrap a store.  size: pixels per side.  skip: bad images are replaced.  threads: 0 decodes in the caller's."""
        self.store, self.size, self.skip = store, size, skip
        self.hash = hashlib.sha256(f"{size} {store.visits} {store.digest}".encode()).hexdigest()
        self.classes, self.count = store.classes, store.count
        self.columns: Mapping[str, Sequence[str]] = {name: _Column(store, name) for name in store.names}
        self.device = torch.device("cpu")
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._prefetched: dict[bytes, list[Callable[[], Tensor]]] = {}
        # Caches of facts about rows. Pages of zeros that are never written take no memory.
        self._good = np.zeros(store.count if skip else 0, np.bool_)
        self._replacements: dict[int, int] = {}
        self._bad: dict[int, str] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return self.store.visits

    @property
    def skipped(self) -> list[str]:
        """Return one line per bad image found so far, in the order of the rows."""
        return [self._bad[row] for row in sorted(self._bad)]

    def order(self, seed: int, first: int, count: int) -> Tensor:
        """Return the rows of the global images first..first+count-1: (count,) int64."""
        return self.store.order(seed, first, count)

    def spread(self, count: int) -> Tensor:
        """Return at most `count` rows from all over the table, the same every time: (n,) int64."""
        return self.store.spread(count)

    def images(self, rows: Tensor) -> Tensor:
        """Return images, (B, 3, S, S) uint8, on the device after `to`.  Raises DataError: a bad image, named."""
        pieces = self._prefetched.pop(rows.numpy().tobytes(), None) or self._begin(rows)
        return torch.cat([wait() for wait in pieces]).to(self.device)

    def prefetch(self, seed: int, first: int, count: int, share: slice) -> None:
        """Begin to decode this share of these global images, for a later call of `images`."""
        if self._pool is None:
            return
        rows = self.order(seed, first, count)[share]
        self._prefetched[rows.numpy().tobytes()] = self._begin(rows)
        while len(self._prefetched) > PREFETCHED:  # prefetched, but never used
            del self._prefetched[next(iter(self._prefetched))]
        self._pool.submit(self.store.read_ahead, seed, first, count)

    def row(self, index: int) -> dict[str, str]:
        """Return the columns of one row."""
        return self._columns([index])[0]

    def labels(self, rows: Tensor, column: str) -> Tensor:
        """Return class numbers, -1 where a row has no class: (B,) int64.

        Raises DataError: a column without classes.
        """
        texts = (row.get(column, "") for row in self._columns(rows.tolist()))
        return torch.tensor(class_numbers(self.classes, column, texts), dtype=torch.int64)

    def to(self, device: torch.device) -> LazyTable:
        """Return this table, with its images on the device from now on."""
        self.device = device
        return self

    def _begin(self, rows: Tensor) -> list[Callable[[], Tensor]]:
        pieces = [piece.tolist() for piece in rows.split(PIECE)]
        if self._pool is None:
            return [partial(self._decode, piece) for piece in pieces]
        return [self._pool.submit(self._decode, piece).result for piece in pieces]

    def _decode(self, rows: list[int]) -> Tensor:
        wanted = [self._replacements.get(row, row) for row in rows]
        return torch.stack([self._pixels(*pair) for pair in zip(wanted, self.store.fetch(wanted), strict=True)])

    def _pixels(self, index: int, row: Row) -> Tensor:
        try:
            pixels = decode(row, self.size)
        except ImageError as e:
            if not self.skip:
                raise bad_image_error(e) from None
            return self._replacement(index, e)
        if self.skip:
            self._good[index] = True
        return pixels

    def _replacement(self, index: int, error: ImageError) -> Tensor:
        """Return the pixels of the next good row after a bad one, in the order of the store, cyclically."""
        self._note(index, error)
        for other in range(index + 1, index + min(MAX_RUN, self.count)):
            other %= self.count
            try:
                pixels = decode(self.store.fetch([other])[0], self.size)
            except ImageError as e:
                self._note(other, e)
                continue
            self._good[other] = True
            self._replacements[index] = other
            return pixels
        raise DataError(f"{min(MAX_RUN, self.count)} images in a row cannot be read; the first: {error.message}")

    def _note(self, index: int, error: ImageError) -> None:
        with self._lock:
            if index in self._bad:
                return
            self._bad[index] = error.message
            n = len(self._bad)
        if n <= REPORTED:
            print(f"left out, bad image {n}: {error.message}", file=sys.stderr)
        elif n % 100 == 0:
            print(f"left out: {n} bad images so far", file=sys.stderr)

    def _columns(self, rows: list[int]) -> list[dict[str, str]]:
        if self.skip:  # only decoding an image shows whether its row is replaced
            unknown = [row for row in rows if not self._good[row] and row not in self._replacements]
            if unknown:
                self._decode(unknown)
            rows = [self._replacements.get(row, row) for row in rows]
        return [{name: row.columns.get(name, "") for name in self.store.names} for row in self.store.fetch(rows)]


class _Column(Sequence[str]):
    """One column of a store, read during iteration; nothing is kept."""

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
