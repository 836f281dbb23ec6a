"""From a config to the table its run learns from: in memory, memory-mapped or streamed."""

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

MEMORY_BYTES = 4 * 2**30  # of decoded pixels, up to which `storage: auto` holds them in memory; on every machine


class Table(Protocol):
    """Images and their columns by row number, and the order in which a run visits them.

    columns: name -> one value per row, "" where a row has none.  classes: class column -> its names.
    hash: identity of the data.  skipped: what was wrong, one line per bad image left out.
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
        """Rows: images that differ."""
        ...

    @property
    def size(self) -> int:
        """Pixels per side."""
        ...

    def __len__(self) -> int:
        """Visits of one epoch: rows, each as often as its source says."""
        ...

    def order(self, seed: int, first: int, count: int) -> Tensor:
        """The rows of the global images first..first+count-1: (count,) int64."""
        ...

    def spread(self, count: int) -> Tensor:
        """At most `count` rows to look at, the same every time: (n,) int64."""
        ...

    def images(self, rows: Tensor) -> Tensor:
        """(B, 3, S, S) uint8, on the device after `to`.  rows: (B,) int64.  Raises DataError: a bad image, named."""
        ...

    def expect(self, seed: int, first: int, count: int, share: slice) -> None:
        """Say what will be asked for next: this share of these global images."""
        ...

    def row(self, index: int) -> dict[str, str]:
        """The columns of one row."""
        ...

    def labels(self, rows: Tensor, column: str) -> Tensor:
        """Class numbers, -1 where a row has no class: (B,) int64.  Raises DataError: a column without classes."""
        ...

    def to(self, device: torch.device) -> Self:
        """The table that hands out its images on this device."""
        ...


def load_table(data: config.Data, progress: bool = True) -> Table:
    """The table of a config's data, stored as it asks.

    progress: bars on stderr.  Raises DataError: a source that is missing, empty or of no known kind, no such column; a
    bad image where `data.bad_images` is "stop", at once in memory, else when it is visited.
    """
    storage = choose_storage(data)
    if storage == "memory":
        return load_memory(data, progress)
    store = ArrowStore(data, progress) if storage == "mapped" else ShardStore(data)
    return LazyTable(store, data.size, data.bad_images == "skip")


def choose_storage(data: config.Data) -> Literal["memory", "mapped", "stream"]:
    """What a config's `storage` comes to: "auto" is memory up to MEMORY_BYTES of pixels, mapped beyond."""
    if data.storage != "auto":
        return data.storage
    images = sum(open_source(source).count for source in data.sources)
    return "memory" if images * 3 * data.size**2 <= MEMORY_BYTES else "mapped"


def share_of(table: Table, seed: int, first: int, count: int, share: slice) -> tuple[Tensor, Tensor]:
    """One process's share of the global images first..first+count-1: rows (b,) and uint8 images (b, 3, S, S).

    The share of the next `count` images begins to be decoded in the background.
    """
    rows = table.order(seed, first, count)[share]
    pixels = table.images(rows)
    table.expect(seed, first + count, count, share)
    return rows, pixels
