"""Folder, parquet, Hub id -> a table of images; what is wrong is said per file.

Every kind of source is a `Rows`: a count and an iterator of undecoded rows. What becomes of the rows is decided in one
other place, here `load_table`, which decodes all of them into memory.
"""

from __future__ import annotations

import glob
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from t2i import config, images
from t2i.data.folders import folder_rows
from t2i.data.rows import Row, Rows
from t2i.errors import DataError, ImageError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

T = TypeVar("T")
CHUNK = 256  # rows read, and images decoded, at once: bounds what is held undecoded
THREADS = 4  # Pillow decodes outside the interpreter lock


@dataclass(frozen=True)
class ImageTable:
    """Decoded images in memory, their columns, and the visits of one epoch.

    pixels: (N, 3, S, S) uint8.  columns: name -> N values, "" where a row has none.
    visits: (V,) int64, the row of each visit; `Source.repeat` makes V larger than N.
    hash: sha256 over pixels, columns and visits.  skipped: what was wrong, one line per image left out.
    """

    pixels: Tensor
    columns: dict[str, list[str]]
    visits: Tensor
    hash: str
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.visits)

    def row(self, index: int) -> dict[str, str]:
        """The columns of one row."""
        return {name: values[index] for name, values in self.columns.items()}


def load_table(data: config.Data, progress: bool = True) -> ImageTable:
    """Read and decode every source of a config into memory.

    progress: a bar on stderr.  Raises DataError: a source that is missing, empty or of no known kind, no such column,
    and the first bad image where `data.bad_images` is "stop"; with "skip" bad images are listed in `skipped`.
    """
    sources = [open_source(source) for source in data.sources]
    pixels = torch.empty(sum(source.count for source in sources), 3, data.size, data.size, dtype=torch.uint8)
    rows: list[dict[str, str]] = []
    skipped: list[str] = []
    visits: list[Tensor] = []
    with ThreadPoolExecutor(THREADS) as pool, _bar(len(pixels), progress) as bar:
        for source, wanted in zip(sources, data.sources, strict=True):
            start = len(rows)
            for chunk in _chunks(source.rows):
                for row, result in zip(chunk, pool.map(lambda row: _decode(row, data.size), chunk), strict=True):
                    if isinstance(result, Tensor):
                        pixels[len(rows)] = result
                        rows.append(row.columns)
                    elif data.bad_images == "stop":
                        raise DataError(result, "set data.bad_images=skip to leave out what cannot be read")
                    else:
                        skipped.append(result)
                bar.update(len(chunk))
            if len(rows) == start:
                first = f"; the first of {len(skipped)}: {skipped[-1]}" if skipped else ""
                raise DataError(f"{wanted.path}: no image could be read{first}")
            visits += [torch.arange(start, len(rows))] * wanted.repeat
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name, "") for row in rows] for name in names}
    pixels, order = pixels[: len(rows)], torch.cat(visits)
    return ImageTable(pixels, columns, order, _hash(pixels, columns, order), skipped)


def open_source(source: config.Source) -> Rows:
    """The rows of one source, by what its path is: `hub:owner/name`, an image folder, parquet files.

    Raises DataError.
    """
    if source.path.startswith("hub:"):
        return _hub_rows(source)
    if Path(source.path).is_dir():
        return folder_rows(Path(source.path))
    paths = sorted(map(Path, glob.glob(source.path, recursive=True)))
    if not paths:
        raise DataError(
            f"no such data: {source.path}", "a source is an image folder, a parquet file or glob, or hub:owner/name"
        )
    for path in paths:
        if path.suffix.lower() not in (".parquet", ".pq"):
            raise DataError(f"{path} is neither a folder nor a parquet file")
    parts = [_parquet_rows(path, source.image) for path in paths]
    return Rows(sum(part.count for part in parts), (row for part in parts for row in part.rows))


def _parquet_rows(path: Path, image: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    unreadable = (OSError, pa.ArrowException)  # bound here: a generator left half-way may outlive the module's names
    try:
        with pq.ParquetFile(path) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
    except unreadable as e:
        raise DataError(f"cannot read {path} as parquet: {_line(e)}") from None
    _check_image_column(str(path), image, schema)
    if not count:
        raise DataError(f"{path} has no rows")
    readers = _readers(schema, image)

    def rows() -> Iterator[Row]:
        start = 0
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(CHUNK, columns=[image, *readers]):
                    for i, values in enumerate(batch.to_pylist(), start):
                        yield _row(f"{path} row {i}", values, image, readers)
                    start += len(batch)
        except unreadable as e:
            raise DataError(f"cannot read {path} after row {start}: {_line(e)}") from None

    return Rows(count, rows())


def _hub_rows(source: config.Source) -> Rows:
    """A Hub data set through `datasets`, which downloads it, or finds it in its cache."""
    name = source.path.removeprefix("hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise DataError(f"{source.path!r} is not a Hub data set", "write hub:owner/name")
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=source.split)
    except Exception as e:  # datasets and huggingface_hub raise a dozen unrelated kinds
        raise DataError(
            f"data set {name!r}, split {source.split!r}, is not available: {type(e).__name__}: {_line(e)}",
            f"with a network: hf download --repo-type dataset {name}; or name a local folder or parquet file instead",
        ) from None
    schema = dataset.features.arrow_schema
    _check_image_column(source.path, source.image, schema)
    if isinstance(dataset.features[source.image], datasets.Image):
        dataset = dataset.cast_column(source.image, datasets.Image(decode=False))  # our decoder sees the raw bytes
    readers = _readers(schema, source.image)
    dataset = dataset.select_columns([source.image, *readers])
    where = f"{source.path}[{source.split}]"
    return Rows(len(dataset), (_row(f"{where} row {i}", row, source.image, readers) for i, row in enumerate(dataset)))


def _check_image_column(where: str, image: str, schema: pa.Schema) -> None:
    import pyarrow.types as types

    if image not in schema.names:
        raise DataError(
            f"{where}: no column {image!r}; there are {', '.join(schema.names)}", "name it with `image:` of the source"
        )
    kind = schema.field(image).type
    struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (struct or types.is_binary(kind) or types.is_large_binary(kind)):
        raise DataError(f"{where}: column {image!r} holds {kind}, not encoded images")


def _readers(schema: pa.Schema, image: str) -> dict[str, Callable[[Any], str]]:
    """How each plain column becomes text: class numbers turn into names; lists and binary columns are left out."""
    import datasets
    import pyarrow.types as types

    readers: dict[str, Callable[[Any], str]] = {}
    plain = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    for column, feature in datasets.Features.from_arrow_schema(schema).items():
        if column == image:
            continue
        if isinstance(feature, datasets.ClassLabel) and feature.names:
            readers[column] = _class_name(feature)
        elif any(test(schema.field(column).type) for test in plain):
            readers[column] = str
    return readers


def _class_name(feature: datasets.ClassLabel) -> Callable[[Any], str]:
    names = list(feature.names)
    return lambda number: names[number] if 0 <= number < len(names) else ""  # -1 is "no label"


def _row(where: str, values: dict[str, Any], image: str, readers: dict[str, Callable[[Any], str]]) -> Row:
    columns = {name: "" if values[name] is None else read(values[name]) for name, read in readers.items()}
    cell = values[image]
    if isinstance(cell, dict):
        where = f"{where} ({cell['path']})" if cell.get("path") else where
        cell = cell.get("bytes")
    return Row(where, cell, columns, None if cell else "no image bytes")


def _decode(row: Row, size: int) -> Tensor | str:
    """(3, size, size) uint8, or one line of what is wrong.  Runs in a thread."""
    if row.problem is not None or row.image is None:
        return f"{row.where}: {row.problem or 'no image'}"
    try:
        return images.pixels(images.fit(images.decode(row.image, row.where), size))
    except ImageError as e:
        return e.message if row.where in e.message else f"{row.where}: {e.message}"


def _hash(pixels: Tensor, columns: dict[str, list[str]], visits: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    digest.update(pixels.contiguous().numpy().data)
    for name in sorted(columns):  # lengths first, so that no two tables give the same bytes
        for text in (name, *columns[name]):
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d:%b" % (len(encoded), encoded))
    digest.update(visits.numpy().tobytes())
    return digest.hexdigest()


def _chunks(rows: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="image", desc="reading images", file=sys.stderr, disable=not progress)


def _line(error: BaseException) -> str:
    """A library's message in one line, at most 200 characters."""
    return " ".join(str(error).split())[:200]
