"""Files that hold many pictures with their captions and recipes, for training.

parquet     data-000000.parquet; columns: `image` (an Image of `datasets`), `text` (the caption), and see COLUMNS
webdataset  000000.tar; of each picture KEY.png (or .jpg, .webp), KEY.txt (the caption), KEY.json (the recipe)

The same pictures give the same bytes: nothing of the time, the user or the machine stands in the file itself.
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
    "recipe": "string",  # JSON: everything that is needed to make the picture again
}
BLOCK = 512  # of a tar file, which ends with two empty ones


@dataclass(frozen=True)
class ShardImage:
    """An encoded picture as it goes into a file.  suffix: ".png", ...; text: its caption."""

    key: str
    suffix: str
    data: bytes
    text: str

    @property
    def recipe(self) -> recipe.Recipe | None:
        """How it was made, as it says itself; None where a record of a megabyte was too long to be read."""
        return recipe.read(self.data, self.key).recipe


class Kind(NamedTuple):
    """A kind of file.  read: keys and encoded pictures, in their order; both ways one part after another."""

    name: str  # of a file, by its number
    write: Callable[[BinaryIO, Iterable[ShardImage]], None]
    read: Callable[[Path], Iterator[tuple[str, bytes]]]
    is_whole: Callable[[Path], bool]


def _write_parquet(file: BinaryIO, pictures: Iterable[ShardImage]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    compression = dict.fromkeys(["image.path", *COLUMNS], "snappy") | {"image.bytes": "none"}  # it is compressed
    with pq.ParquetWriter(file, schema, compression=compression, use_dictionary=["model"]) as writer:
        for rows in _row_groups(pictures):
            writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=ROWS)


def _row_groups(pictures: Iterable[ShardImage]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    held = 0
    for picture in pictures:
        rows.append(_row(picture))
        held += len(picture.data)
        if len(rows) == ROWS or held >= ROW_BYTES:
            yield rows
            rows, held = [], 0
    if rows:
        yield rows


def _schema() -> pa.Schema:
    import datasets

    features = {"image": datasets.Image()} | {name: datasets.Value(kind) for name, kind in COLUMNS.items()}
    return datasets.Features(features).arrow_schema


def _row(picture: ShardImage) -> dict[str, Any]:
    made = picture.recipe
    image = {"bytes": picture.data, "path": picture.key + picture.suffix}
    row: dict[str, Any] = {"image": image, "text": picture.text, "key": picture.key}
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


def _write_tar(file: BinaryIO, pictures: Iterable[ShardImage]) -> None:
    for picture in pictures:
        made = picture.recipe
        _add(file, picture.key + picture.suffix, picture.data)
        _add(file, f"{picture.key}.txt", picture.text.encode())
        _add(file, f"{picture.key}.json", (made.to_json() if made else "{}").encode())
    file.write(2 * bytes(BLOCK))


def _add(file: BinaryIO, name: str, data: bytes) -> None:
    """A file of a tar, by hand: `tarfile` would remember every one until the end."""
    entry = tarfile.TarInfo(name)  # made in 1970 by nobody: user 0 without a name
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


KINDS = {
    "parquet": Kind("data-{:06d}.parquet", _write_parquet, _read_parquet, _is_whole_parquet),
    "webdataset": Kind("{:06d}.tar", _write_tar, _read_tar, _is_whole_tar),
}
