"""Streamed data sets: parquet shards read in place, on this disk or on the Hub, without a copy.

The shuffle is approximate, and has two parts, each a function of (seed, epoch):
1. the shards of the epoch, which are the row groups of all files, in the order of a keyed permutation;
2. a shuffle buffer: the rows of the shards in that order are cut into buffers of `shuffle_buffer` rows, and each buffer
   is visited in a keyed permutation of its own before the next one is begun.
So two rows of one shard are never further apart than a buffer and a shard: a buffer should hold many shards.

Every position of every epoch is computed from the row counts in the footers. To resume, the footers and the shards of
the current buffer are read, and nothing that was seen before. In memory are the row counts of all shards, and,
undecoded, two buffers and two shards; every process reads all shards.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import accumulate, groupby, pairwise, repeat
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2i import config
from t2i.data.parquet import Parquet
from t2i.data.permutation import permute
from t2i.data.rows import Row, merge_classes
from t2i.data.sources import hub_shards, is_folder, is_hub, parquet_files
from t2i.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Places = NDArray[np.int64]


class ShardStore:
    """Rows in parquet row groups, visited shard by shard through a shuffle buffer.

    digest covers size and footer of every file (see `Parquet.digest`), the repeats, and the buffer, since it decides
    the order.
    """

    def __init__(self, data: config.Data) -> None:
        """Read the footers of all files.  Raises DataError."""
        found = [_files(source) for source in data.sources]
        repeats = [source.repeat for source in data.sources]
        self._files = [file for files in found for file in files]
        self._file_starts = [0, *accumulate(file.count for file in self._files)]
        self._first_shards = [0, *accumulate(len(file.groups) for file in self._files)]
        self._sizes = np.array([rows for file in self._files for rows in file.groups], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        edges = [0, *accumulate(sum(len(file.groups) for file in files) for files in found)]
        of_sources = [np.arange(a, b) for a, b in pairwise(edges)]
        self._epoch = np.concatenate([np.tile(part, n) for part, n in zip(of_sources, repeats, strict=True)])
        self._orders: dict[tuple[int, int], tuple[Places, Places]] = {}
        self._cached: OrderedDict[int, Future[pa.Table]] = OrderedDict()
        self._lock = Lock()
        self.buffer = data.shuffle_buffer
        self.room = 2 * self.buffer + 2 * int(self._sizes.max())  # rows cached undecoded
        self.count, self.visits = int(self._starts[-1]), int(self._sizes[self._epoch].sum())
        layouts = [file.layout for file in self._files]
        self.names = tuple(dict.fromkeys(name for layout in layouts for name in layout.readers))
        self.classes = merge_classes(layout.classes for layout in layouts)
        self.digest = f"stream {self.buffer} {repeats} {[file.digest for file in self._files]}"

    def order(self, seed: int, first: int, count: int) -> Tensor:
        """Return the rows of the global images first..first+count-1: (count,) int64."""
        rows = np.empty(count, np.int64)
        for epoch, here, places in _split(np.arange(first, first + count), self.visits):
            shuffled = np.empty_like(places)
            for number, there, inside in _split(places, self.buffer):
                begin = number * self.buffer
                size = min(self.buffer, self.visits - begin)
                shuffled[there] = begin + permute(f"{seed}/shuffle buffer/{epoch}/{number}", inside, size)
            shards, starts = self._ordered_shards(seed, epoch)
            k = np.searchsorted(starts, shuffled, "right") - 1
            rows[here] = self._starts[shards[k]] + shuffled - starts[k]
        return torch.from_numpy(rows)

    def spread(self, count: int) -> Tensor:
        """Return the first `count` rows in the order of seed 0: (n,) int64.

        Evenly spaced ones would need all shards.
        """
        return self.order(0, 0, min(count, self.visits))

    def fetch(self, rows: Sequence[int]) -> list[Row]:
        """Return the undecoded rows of these numbers; rows of one buffer are usually cached."""
        found: dict[int, Row] = {}
        for shard, group in groupby(sorted(set(rows)), key=self._shard):
            table, number = self._table(shard), bisect_right(self._first_shards, shard) - 1
            for row in group:
                (values,) = table.slice(row - int(self._starts[shard]), 1).to_pylist()
                found[row] = self._files[number].row(row - self._file_starts[number], values)
        return [found[row] for row in rows]

    def read_ahead(self, seed: int, first: int, count: int) -> None:
        """Read the shards of the next buffer at these positions, so that they are cached when that buffer begins."""
        for epoch, _, places in _split(np.arange(first, first + count) + self.buffer, self.visits):
            shards, starts = self._ordered_shards(seed, epoch)
            for shard in np.unique(shards[np.searchsorted(starts, places, "right") - 1]):
                self._table(int(shard))

    def column(self, name: str) -> Iterator[str]:
        """Yield one column of all rows, in order, without reading images; "" where a file has no such column."""
        for file in self._files:
            yield from file.column(name) if name in file.layout.readers else repeat("", file.count)

    def _ordered_shards(self, seed: int, epoch: int) -> tuple[Places, Places]:
        """Return the shards of an epoch in their order, and the position at which each begins."""
        if (seed, epoch) not in self._orders:
            n = len(self._epoch)
            shards = self._epoch[permute(f"{seed}/shards/{epoch}", np.arange(n), n)]
            starts = np.concatenate([[0], np.cumsum(self._sizes[shards])])[:-1]
            # Cached, since computing it takes time proportional to the number of shards; two, since a batch and the
            # prefetch may be in different epochs.
            last = list(self._orders.items())[-1:]
            self._orders = {**dict(last), (seed, epoch): (shards, starts)}
        return self._orders[seed, epoch]

    def _shard(self, row: int) -> int:
        return int(self._starts.searchsorted(row, "right")) - 1

    def _table(self, shard: int) -> pa.Table:
        """Return the undecoded rows of a shard: from the cache, or read by the first thread that needs it."""
        with self._lock:
            # A future is stored before the shard is read, so that other threads wait for it instead of reading too.
            cached = self._cached.get(shard)
            future = cached or Future()
            self._cached[shard] = future
            self._cached.move_to_end(shard)
            rows = sum(int(self._sizes[k]) for k in self._cached)
            while rows > self.room:
                rows -= int(self._sizes[self._cached.popitem(last=False)[0]])
        if cached is None:
            number = bisect_right(self._first_shards, shard) - 1
            try:
                future.set_result(self._files[number].group(shard - self._first_shards[number]))
            except BaseException as e:
                future.set_exception(e)  # for those who wait; later accesses try again
                with self._lock:
                    self._cached.pop(shard, None)
        return future.result()


def _split(places: Places, size: int) -> Iterator[tuple[int, NDArray[np.bool_], Places]]:
    """Group positions by blocks of `size`: its number, a mask of its positions, and these relative to its start."""
    number, inside = np.divmod(places, size)
    for k in np.unique(number).tolist():
        here = number == k
        yield k, here, inside[here]


def _files(source: config.Source) -> list[Parquet]:
    """Return the parquet files of a source.  Raises DataError."""
    if is_folder(source):
        raise DataError(
            f"{source.path}: a folder of images cannot be streamed, only parquet files can", "set data.storage=mapped"
        )
    return hub_shards(source) if is_hub(source) else parquet_files(source)
