"""Memory-mapped sets: Arrow files on disk, any row in any order, and nothing in memory that grows with the set.

Parquet files and Hub data sets are turned into Arrow files once, by `datasets`, in its cache (HF_DATASETS_CACHE; it
takes as much disk as the data) and are mapped from there at every start. A folder's files stay where they are: the
list of them is what is mapped, written anew at every start, which takes as long as there are files.
"""

from __future__ import annotations

import glob
import hashlib
import json
import mmap
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from t2i import config
from t2i.data.batches import visit_order
from t2i.data.folders import folder_rows
from t2i.data.memory_table import chunks, spread, update
from t2i.data.parquet import Parquet, one_line
from t2i.data.rows import Classes, Layout, Row, merge_classes
from t2i.data.sources import hub_dataset, is_folder, is_hub, parquet_files, undecoded
from t2i.errors import DataError

if TYPE_CHECKING:
    import datasets

CHUNK = 1000  # rows of a folder's list that are written, and values of a column that are read, at once


@dataclass(frozen=True)
class ArrowPart:
    """Arrow files with one layout.

    row: (number in this part, values in the files) -> row.  column: name -> its values as text, in order.
    """

    data: datasets.Dataset
    row: Callable[[int, dict[str, Any]], Row]
    column: Callable[[str], Iterator[str]]
    names: tuple[str, ...]
    classes: Classes
    digest: str


class ArrowStore:
    """Rows in memory-mapped Arrow files, visited in a keyed permutation.

    digest covers, per source, `repeat` and: of parquet files what `Parquet.digest` does; of a Hub data set the
    addresses, with the commit, and sizes of the files it came from; of a folder names, sizes and columns of its files.
    """

    def __init__(self, data: config.Data, progress: bool = True) -> None:
        """progress: bars on stderr while Arrow files are made.  Raises DataError."""
        with _bars(progress):
            found = [_parts(source) for source in data.sources]
        self._parts = [part for parts in found for part in parts]
        self._starts = [0, *accumulate(len(part.data) for part in self._parts)]
        rows = [sum(len(part.data) for part in parts) for parts in found]
        repeats = [source.repeat for source in data.sources]
        self._rows, self._row_starts = torch.tensor(rows), torch.tensor([0, *accumulate(rows)])
        self._visit_starts = torch.tensor([0, *accumulate(n * r for n, r in zip(rows, repeats, strict=True))])
        self.count, self.visits = self._starts[-1], int(self._visit_starts[-1])
        self.names = tuple(dict.fromkeys(name for part in self._parts for name in part.names))
        self.classes = merge_classes(part.classes for part in self._parts)
        self.digest = f"mapped {repeats} {[part.digest for part in self._parts]}"

    def order(self, seed: int, first: int, count: int) -> Tensor:
        """The rows of the global images first..first+count-1: (count,) int64."""
        visits = visit_order(seed, self.visits, first, count)
        source = torch.searchsorted(self._visit_starts, visits, right=True) - 1
        return self._row_starts[source] + (visits - self._visit_starts[source]) % self._rows[source]

    def spread(self, count: int) -> Tensor:
        """At most `count` rows, evenly spaced: (n,) int64."""
        return spread(self.count, count)

    def fetch(self, rows: Sequence[int]) -> list[Row]:
        """The undecoded rows of these numbers."""
        found: dict[int, Row] = {}
        for number, group in groupby(sorted(set(rows)), key=lambda row: bisect_right(self._starts, row) - 1):
            part, start = self._parts[number], self._starts[number]
            indices = [row - start for row in group]
            for index, values in zip(indices, part.data[indices].to_pylist(), strict=True):
                found[start + index] = part.row(index, values)
        return [found[row] for row in rows]

    def prepare(self, seed: int, first: int, count: int) -> None:
        """Nothing: the system reads mapped files ahead as it sees fit."""

    def column(self, name: str) -> Iterator[str]:
        """One column of all rows, in order, without the images; "" where a part has no such column."""
        for part in self._parts:
            yield from part.column(name) if name in part.names else repeat("", len(part.data))


def _parts(source: config.Source) -> list[ArrowPart]:
    """The Arrow files of one source.  Raises DataError."""
    if is_hub(source):
        dataset, layout = hub_dataset(source)
        where = f"{source.path}[{source.split}]"
        return [_part(dataset, layout, lambda k, v: layout.row(f"{where} row {k}", v), _hub_digest(dataset))]
    if is_folder(source):
        return [_folder_part(Path(source.path))]
    files = parquet_files(source)
    return [_parquet_part(list(group)) for _, group in groupby(files, key=lambda file: str(file.schema))]


def _part(
    dataset: datasets.Dataset, layout: Layout, row: Callable[[int, dict[str, Any]], Row], digest: str
) -> ArrowPart:
    data = dataset.with_format("arrow")

    def column(name: str) -> Iterator[str]:
        for some in data.select_columns(name).iter(CHUNK):
            yield from (layout.text(name, value) for value in some.column(name).to_pylist())

    return ArrowPart(data, row, column, tuple(layout.readers), layout.classes, digest)


def _hub_digest(dataset: datasets.Dataset) -> str:
    """Addresses and sizes of the files a Hub data set was made from; without them, the fingerprint of `datasets`."""
    sources = dataset.info.download_checksums
    known = sorted((str(url), fact.get("num_bytes")) for url, fact in sources.items()) if sources else None
    text = repr((known or dataset._fingerprint, str(dataset.split), len(dataset)))
    return hashlib.sha256(text.encode()).hexdigest()


def _parquet_part(files: list[Parquet]) -> ArrowPart:
    """Consecutive parquet files with the same columns."""
    import datasets

    layout = files[0].layout
    paths = [glob.escape(str(Path(file.path).resolve())) for file in files]
    try:
        dataset = datasets.load_dataset(
            "parquet", data_files=paths, split="train", columns=layout.columns, writer_batch_size=CHUNK
        )
    except Exception as e:  # datasets wraps what it meets in kinds of its own
        cause = e.__cause__ or e
        raise DataError(
            f"cannot map {files[0].path}{f' and {len(files) - 1} more' if files[1:] else ''}: {one_line(cause)}",
            "t2i data info reads the files one by one; Arrow files go to the cache, HF_DATASETS_CACHE moves it",
        ) from None
    starts = [0, *accumulate(file.count for file in files)]

    def row(index: int, values: dict[str, Any]) -> Row:
        k = bisect_right(starts, index) - 1
        return files[k].row(index - starts[k], values)

    return _part(undecoded(dataset, layout), layout, row, " ".join(file.digest for file in files))


def _folder_part(root: Path) -> ArrowPart:
    """The list of a folder's files as an Arrow table in a mapped temporary file, which goes with the process."""
    import datasets
    import pyarrow as pa

    listed = folder_rows(root)
    schema = pa.schema({name: pa.string() for name in ("path", "problem", "columns")})
    names: dict[str, None] = {}
    digest = hashlib.sha256()
    with tempfile.TemporaryFile(prefix="t2i-") as file:
        with pa.ipc.new_stream(file, schema) as writer:
            for rows in chunks(listed.rows, CHUNK):
                columns = [json.dumps(row.columns) for row in rows]
                lines = [[row.where for row in rows], [row.problem for row in rows], columns]
                writer.write_batch(pa.record_batch(lines, schema=schema))
                for row, text in zip(rows, columns, strict=True):
                    names.update(dict.fromkeys(row.columns))
                    size = row.image.stat().st_size if isinstance(row.image, Path) else -1
                    update(digest, str(Path(row.where).relative_to(root)), str(size), text)
        file.flush()
        # The map outlives the file's name and handle: nothing is left behind, and nothing can grow stale.
        table = pa.ipc.open_stream(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))).read_all()
    data = datasets.Dataset(table, fingerprint=digest.hexdigest()[:16]).with_format("arrow")

    def row_of(_: int, values: dict[str, Any]) -> Row:
        image = None if values["problem"] else Path(values["path"])
        return Row(values["path"], image, json.loads(values["columns"]), values["problem"])

    def column(name: str) -> Iterator[str]:
        for some in data.select_columns("columns").iter(CHUNK):
            yield from (json.loads(text).get(name, "") for text in some.column("columns").to_pylist())

    return ArrowPart(data, row_of, column, tuple(names), listed.classes, digest.hexdigest())


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Whether `datasets` draws progress bars in this block."""
    import datasets

    if shown or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
