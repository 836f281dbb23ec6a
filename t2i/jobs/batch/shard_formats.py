"""File formats that hold many images with captions and recipes, for training.

parquet     data-000000.parquet; columns: `image` (an Image of `datasets`), `text` (the caption), and see COLUMNS
webdataset  000000.tar; of each image KEY.png (or .jpg, .webp), KEY.txt (the caption), KEY.json (the recipe)

The same images give the same bytes: the file holds nothing about the time, the user or the machine.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from t2i.metadata import recipe

if TYPE_CHECKING:
    import pyarrow as pa

ROWS, ROW_BYTES = 100, 32_000_000  # most of a parquet row group, which is what is held in memory, here and by readers
COLUMNS = {
    "text": "string",
    "key": "string",
    "seed": "uint64",
    "width": "int32",
    "height": "int32",
    "model": "string",
    "hash": "string",  # of the pixels
    "recipe": "string",  # JSON: everything that is needed to reproduce the image
}
BLOCK = 512  # of a tar file, which ends with two empty ones


@dataclass(frozen=True)
class ShardImage:
    """An encoded image as it is stored.  suffix: ".png", ...; text: its caption."""

    key: str
    suffix: str
    data: bytes
    text: str

    @property
    def recipe(self) -> recipe.Recipe | None:
        """Return the recipe in its metadata; None where a record of a megabyte was too long to be read."""
        return recipe.read(self.data, self.key).recipe


class ShardFormat(NamedTuple):
    """A file format.  write, read: images in order, streamed.  read: yields keys and encoded images."""

    name: str  # of a file, by its number
    write: Callable[[BinaryIO, Iterable[ShardImage]], None]
    read: Callable[[Path], Iterator[tuple[str, bytes]]]
    is_whole: Callable[[Path], bool]


def _write_parquet(file: BinaryIO, images: Iterable[ShardImage]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    compression = dict.fromkeys(["image.path", *COLUMNS], "snappy") | {"image.bytes": "none"}  # it is compressed
    with pq.ParquetWriter(file, schema, compression=compression, use_dictionary=["model"]) as writer:
        for rows in _row_groups(images):
            writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=ROWS)


def _row_groups(images: Iterable[ShardImage]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    held = 0
    for item in images:
        rows.append(_row(item))
        held += len(item.data)
        if len(rows) == ROWS or held >= ROW_BYTES:
            yield rows
            rows, held = [], 0
    if rows:
        yield rows


def _schema() -> pa.Schema:
    import datasets

    features = {"image": datasets.Image()} | {name: datasets.Value(kind) for name, kind in COLUMNS.items()}
    return datasets.Features(features).arrow_schema


def _row(item: ShardImage) -> dict[str, Any]:
    made = item.recipe
    image = {"bytes": item.data, "path": item.key + item.suffix}
    row: dict[str, Any] = {"image": image, "text": item.text, "key": item.key}
    if made is not None:
        row |= {"seed": made.seed, "width": made.width, "height": made.height, "model": made.model}
        row |= {"hash": made.image_hash, "recipe": made.to_json()}
    return row


def _read_parquet(path: Path) -> Iterator[tuple[str, bytes]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS, columns=["key", "image"]):
            yield from ((row["key"], row["image"]["bytes"]) for row in batch.to_pylist())


def _is_whole_parquet(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_metadata(path)  # stands at the end of the file
    except (OSError, pa.ArrowException):
        return False
    return True


def _write_tar(file: BinaryIO, images: Iterable[ShardImage]) -> None:
    for item in images:
        made = item.recipe
        _add(file, item.key + item.suffix, item.data)
        _add(file, f"{item.key}.txt", item.text.encode())
        _add(file, f"{item.key}.json", (made.to_json() if made else "{}").encode())
    file.write(2 * bytes(BLOCK))


def _add(file: BinaryIO, name: str, data: bytes) -> None:
    """Append a file to a tar, without `tarfile.open`, which would keep every entry in memory until the end."""
    entry = tarfile.TarInfo(name)  # time 0, user 0, no names: the same bytes everywhere
    entry.size = len(data)
    file.write(entry.tobuf(tarfile.USTAR_FORMAT))
    file.write(data + bytes(-len(data) % BLOCK))


def _read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r|") as tar:
        while (entry := tar.next()) is not None:
            key, _, suffix = entry.name.rpartition(".")
            file = tar.extractfile(entry)
            if file is not None and suffix not in ("txt", "json"):
                yield key, file.read()


def _is_whole_tar(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 2 * BLOCK or size % BLOCK:
            return False
        file.seek(-2 * BLOCK, 2)
        return not any(file.read())


FORMATS = {
    "parquet": ShardFormat("data-{:06d}.parquet", _write_parquet, _read_parquet, _is_whole_parquet),
    "webdataset": ShardFormat("{:06d}.tar", _write_tar, _read_tar, _is_whole_tar),
}
