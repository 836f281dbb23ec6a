"""Write parquet files of images in the format of `datasets`, row by row and in row groups of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from t2i import atomic
from t2i.data.rows import Row, Rows
from t2i.errors import DataError

GROUP_ROWS = 256  # of a row group: a bound on memory here, and the unit that a streaming trainer reads
GROUP_BYTES = 32_000_000  # of encoded images, at which a row group ends early

Cell = dict[str, bytes | str | None]  # of the image column: the encoded image, and the name of its file
Values = dict[str, str | int | None]


class Columns:
    """The columns of a source beside its image, with their values: classes as numbers, all others as text."""

    def __init__(self, found: Rows) -> None:
        """Check the columns of a source.  Raises DataError: a column named like that of the images."""
        if "image" in found.names:
            raise DataError("a column 'image' that holds no images is in the way of the pictures", "rename it first")
        self.names = found.names
        self.classes = {name: found.classes[name] for name in found.names if name in found.classes}
        self._numbers = {name: {c: k for k, c in enumerate(classes)} for name, classes in self.classes.items()}

    def schema(self) -> Any:
        """Return Arrow's schema, with the features for `datasets` as JSON in its metadata."""
        import datasets

        columns = {
            name: datasets.ClassLabel(names=list(self.classes[name]))
            if name in self.classes
            else datasets.Value("string")
            for name in self.names
        }
        return datasets.Features({"image": datasets.Image(), **columns}).arrow_schema

    def values(self, row: Row) -> Values:
        """Return a row's values, None where it has none.  Raises DataError: a value that is no class of its column."""
        values: Values = {}
        for name in self.names:
            text = row.columns.get(name, "")
            numbers = self._numbers.get(name)
            if numbers is None or not text:
                values[name] = text or None
            elif text in numbers:
                values[name] = numbers[text]
            else:
                raise DataError(f"{row.where}: {name} {text!r:.60} is none of the classes of this column")
        return values


class Writer:
    """A parquet file that is written row by row."""

    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        """Begin the file.  file: left open."""
        import pyarrow.parquet as pq

        self._schema = columns.schema()
        # Images hardly ever repeat: a dictionary of them would cost time and save nothing.
        self._parquet = pq.ParquetWriter(file, self._schema, use_dictionary=list(columns.names))
        self._group: list[dict[str, Any]] = []
        self._bytes = 0
        self.rows = 0

    def add(self, image: Cell, values: Values) -> None:
        """Add one row."""
        self._group.append({"image": image, **values})
        self._bytes += len(image["bytes"] or b"")
        self.rows += 1
        if len(self._group) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the remaining rows, and the footer."""
        self._flush()
        self._parquet.close()

    def abandon(self) -> None:
        """Write nothing more: an unfinished writer would close itself later, on a file that is gone."""
        self._parquet.is_open = False

    def _flush(self) -> None:
        import pyarrow as pa

        if self._group:
            self._parquet.write_table(pa.Table.from_pylist(self._group, schema=self._schema))
        self._group, self._bytes = [], 0


@contextmanager
def parquet_writer(path: Path, columns: Columns, overwrite: bool = False) -> Iterator[Writer]:
    """Open a parquet file that gets its name when the block ends without an error.  Raises like `atomic.whole`."""
    with atomic.whole(path, overwrite=overwrite) as file:
        writer = Writer(file, columns)
        try:
            yield writer
            writer.close()
        finally:
            writer.abandon()
