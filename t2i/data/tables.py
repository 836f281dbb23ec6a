"""Tables: the data of a run, in memory, memory-mapped or streamed, as its config asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from t2i import config
from t2i.data.arrow_store import ArrowStore
from t2i.data.lazy_table import LazyTable
from t2i.data.memory_table import load_memory
from t2i.data.rows import Classes
from t2i.data.shard_store import ShardStore
from t2i.data.sources import open_source

# Of decoded pixels, up to which `storage: auto` keeps them in memory; the same on every machine.
MEMORY_BYTES = 4 * 2**30


class Table(Protocol):
    """Images and their columns by row number, and the order in which a run visits them.

    columns: name -> one value per row, "" where a row has none.  classes: class column -> its names.
    hash: identity of the data.  skipped: one line per bad image left out.
    """

    @property
    def columns(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def classes(self) -> Classes: ...
    @property
    def hash(self) -> str: ...
    @property
    def skipped(self) -> list[str]: ...
    @property
    def count(self) -> int:
        """Return the number of rows: distinct images."""
        ...

    @property
    def size(self) -> int:
        """Return the pixels per side."""
        ...

    def __len__(self) -> int:
        """Return the visits of one epoch: rows, each as often as its source repeats it."""
        ...

    def order(self, seed: int, first: int, count: int) -> Tensor:
        """Return the rows of the global images first..first+count-1: (count,) int64."""
        ...

    def spread(self, count: int) -> Tensor:
        """Return at most `count` rows from all over the table, the same every time: (n,) int64."""
        ...

    def images(self, rows: Tensor) -> Tensor:
        """Return images, (B, 3, S, S) uint8, on the device after `to`.  rows: (B,) int64.

        Raises DataError: a bad image, named.
        """
        ...

    def prefetch(self, seed: int, first: int, count: int, share: slice) -> None:
        """Announce a later call of `images`: this share of these global images."""
        ...

    def row(self, index: int) -> dict[str, str]:
        """Return the columns of one row."""
        ...

    def labels(self, rows: Tensor, column: str) -> Tensor:
        """Return class numbers, -1 where a row has no class: (B,) int64.

        Raises DataError: a column without classes.
        """
        ...

    def to(self, device: torch.device) -> Self:
        """Return the table with its images on this device."""
        ...


def load_table(data: config.Data, progress: bool = True) -> Table:
    """Load the table of a config's data, with the storage that it asks for.

    progress: bars on stderr.  Raises DataError: a source that is missing, empty or of unknown kind, no such column; a
    bad image where `data.bad_images` is "stop", at once in memory, else when it is visited.
    """
    storage = choose_storage(data)
    if storage == "memory":
        return load_memory(data, progress)
    store = ArrowStore(data, progress) if storage == "mapped" else ShardStore(data)
    return LazyTable(store, data.size, data.bad_images == "skip")


def choose_storage(data: config.Data) -> Literal["memory", "mapped", "stream"]:
    """Resolve a config's `storage`: "auto" is memory up to MEMORY_BYTES of pixels, mapped beyond."""
    if data.storage != "auto":
        return data.storage
    images = sum(open_source(source).count for source in data.sources)
    return "memory" if images * 3 * data.size**2 <= MEMORY_BYTES else "mapped"


def share_of(table: Table, seed: int, first: int, count: int, share: slice) -> tuple[Tensor, Tensor]:
    """Return one process's share of the global images first..first+count-1: rows (b,) and uint8 images (b, 3, S, S).

    Begins to decode the share of the next `count` images in the background.
    """
    rows = table.order(seed, first, count)[share]
    pixels = table.images(rows)
    table.prefetch(seed, first + count, count, share)
    return rows, pixels
