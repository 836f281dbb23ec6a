"""Parquet files: footers, rows in order, and single row groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from t2i.data.rows import Layout, Row
from t2i.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 256  # rows read at once
TAIL = 8  # bytes after the footer: its length, and the mark of the format


@dataclass(frozen=True)
class Parquet:
    """A file, local or at any URL that fsspec opens (`hf://datasets/...`), known by its footer alone.

    groups: rows of each row group.  digest: sha256 over the file's size and footer: row counts, positions, compressed
    sizes and column statistics, not the pixels. An image replaced by another of the same size goes undetected.
    """

    path: str
    layout: Layout
    schema: pa.Schema
    groups: tuple[int, ...]
    digest: str

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return sum(self.groups)

    def rows(self) -> Iterator[Row]:
        """Yield all rows in order.  Raises DataError where the file is damaged."""
        import pyarrow.parquet as pq

        start, broken = 0, _unreadable()
        try:
            with _open(self.path) as file:
                for batch in pq.ParquetFile(file).iter_batches(BATCH, columns=self.layout.columns):
                    yield from self._rows(batch, start)
                    start += len(batch)
        except broken as e:
            raise DataError(f"cannot read {self.path} after row {start}: {one_line(e)}") from None

    def group(self, index: int) -> pa.Table:
        """Return the undecoded columns of one row group.  Raises DataError."""
        return self._read(index, self.layout.columns)

    def column(self, name: str) -> Iterator[str]:
        """Yield one plain column as text, without reading images."""
        for index in range(len(self.groups)):
            for value in self._read(index, [name]).column(name).to_pylist():
                yield self.layout.text(name, value)

    def row(self, index: int, values: dict[str, Any]) -> Row:
        """Return the row of these values, by its number in the file."""
        return self.layout.row(f"{self.path} row {index}", values)

    def _rows(self, batch: pa.RecordBatch, start: int) -> Iterator[Row]:
        return (self.row(i, values) for i, values in enumerate(batch.to_pylist(), start))

    def _read(self, index: int, columns: list[str]) -> pa.Table:
        import pyarrow.parquet as pq

        try:
            with _open(self.path) as file:
                return pq.ParquetFile(file, metadata=_footer(self.path)).read_row_group(index, columns=columns)
        except _unreadable() as e:
            raise DataError(f"cannot read {self.path}, row group {index}: {one_line(e)}") from None


def open_parquet(path: str, image: str | None) -> Parquet:
    """Read the footer of a file, in a time that does not depend on its size.

    Raises DataError: not parquet, no rows, no such image column.
    """
    import pyarrow.parquet as pq

    try:
        with _open(path) as file:
            data = pq.ParquetFile(file)
            schema, metadata = data.schema_arrow, data.metadata
            groups = tuple(metadata.row_group(k).num_rows for k in range(metadata.num_row_groups))
            end = file.seek(0, 2)
            file.seek(end - TAIL - metadata.serialized_size)
            digest = hashlib.sha256(b"%d:" % end + file.read()).hexdigest()
    except _unreadable() as e:
        raise DataError(f"cannot read {path} as parquet: {one_line(e)}") from None
    layout = Layout.of(path, schema, image)
    if not sum(groups):
        raise DataError(f"{path} has no rows")
    return Parquet(path, layout, schema, groups, digest)


@lru_cache(maxsize=16)  # the footer of a file with many row groups takes long to parse
def _footer(path: str) -> Any:
    import pyarrow.parquet as pq

    with _open(path) as file:
        return pq.ParquetFile(file).metadata


def one_line(error: BaseException) -> str:
    """Return a library's message in one line, at most 200 characters."""
    return " ".join(str(error).split())[:200]


def _open(path: str) -> Any:
    import fsspec

    return fsspec.open(path, "rb").open() if "://" in path else open(path, "rb")


def _unreadable() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    return OSError, pa.ArrowException
