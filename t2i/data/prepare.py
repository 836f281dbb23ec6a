"""From any source to one parquet data set that the trainers and `datasets` read, in one pass and bounded memory.

What is written is a function of the source and the options, byte for byte: rows keep their order, and whether a picture
is for testing is decided by its pixels alone, so that it stays where it is when others come or go, and so that equal
pictures are never on both sides.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from t2i import atomic, config
from t2i.data.memory_table import THREADS, chunks, spread
from t2i.data.rows import Row, Rows, picture
from t2i.data.sources import is_folder, is_hub, open_source
from t2i.data.writing import Cell, Columns, parquet_writer
from t2i.errors import DataError, ImageError, UsageError, one_line
from t2i.imaging import images

AHEAD = 16  # pictures decoded and encoded at once
NAMED = 100  # bad pictures named; all are counted
EXAMPLES = 10  # of these, in what a human reads
SPLIT = "test split"  # part of the contract: changing it moves pictures from training to testing


@dataclass(frozen=True)
class Options:
    """How pictures are prepared.

    size: pixels per side after a centre crop; None leaves pictures as large as they are.
    format: how they are encoded; None: as PNG where a size is given, else the bytes of their files stay as they are.
    quality: of JPEG.  bad: what becomes of pictures that cannot be read.  unique: of pictures with the same pixels only
    the first is kept.  limit: at most so many rows are read, evenly spaced.  test_fraction: of the pictures, about, go
    into a part of their own.
    """

    size: int | None = None
    format: Literal["png", "jpg"] | None = None
    quality: int = 95
    bad: Literal["stop", "skip"] = "stop"
    unique: bool = False
    limit: int | None = None
    test_fraction: float | None = None


@dataclass
class PreparedFile:
    """One file that was written."""

    path: str
    rows: int
    bytes: int


@dataclass
class Prepared:
    """What was done.

    rows: read from the source.  enlarged: pictures that were smaller than asked for.
    bad: where and why, the first NAMED.  duplicates: left out; None where none were looked for.
    columns: beside the image, with their classes.
    """

    source: str
    parts: list[PreparedFile] = field(default_factory=list)
    rows: int = 0
    enlarged: int = 0
    bad_count: int = 0
    bad: list[str] = field(default_factory=list)
    duplicates: int | None = None
    columns: dict[str, tuple[str, ...] | None] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """As names and texts, for a human."""
        found = [(part.path, f"{part.rows:,} pictures, {part.bytes / 1e6:,.1f} MB") for part in self.parts]
        if self.bad:
            few = "\n".join([f"{self.bad_count:,} that cannot be read", *self.bad[:EXAMPLES]])
            found.append(("left out", few))
        if self.duplicates is not None:
            found.append(("duplicates", f"{self.duplicates:,} left out"))
        if self.enlarged:
            found.append(("enlarged", f"{self.enlarged:,} pictures were smaller than asked for"))
        for name, classes in self.columns.items():
            found.append((name, "text" if classes is None else f"{len(classes):,} classes"))
        return found


@dataclass(frozen=True)
class _Ready:
    """A picture to be written.  key: sha256 of its pixels as they were before any cropping."""

    image: Cell
    key: bytes
    enlarged: bool


def prepare(
    source: config.Source, output: Path, options: Options, overwrite: bool = False, progress: bool = True
) -> Prepared:
    """Write a source's pictures and columns as parquet: `output`, or with a test fraction NAME-train and NAME-test.

    progress: a bar on stderr.  The files take their names when all are complete.  Raises DataError: a source that is
    missing or empty, the first bad picture (unless skipped), a part without a picture; UsageError: a file exists.
    """
    paths = part_paths(output, options)
    _check_paths(source, paths, overwrite)
    found = open_source(source)
    columns = Columns(found)
    done = Prepared(source.path, columns={name: found.classes.get(name) for name in found.names})
    with ExitStack() as stack:
        writers = {name: stack.enter_context(parquet_writer(path, columns, overwrite)) for name, path in paths.items()}
        for row, ready in _ready(found, source, options, done, progress):
            writer = writers["test" if _is_test(ready.key, options.test_fraction) else "train"]
            writer.add(ready.image, columns.values(row))
        for name, writer in writers.items():
            if not writer.rows:
                raise _empty(source, name, options, done, sum(other.rows for other in writers.values()))
    done.parts = [PreparedFile(str(path), writers[name].rows, path.stat().st_size) for name, path in paths.items()]
    return done


def part_paths(output: Path, options: Options) -> dict[str, Path]:
    """{part: file}: names by which `datasets` knows a folder's parts."""
    if options.test_fraction is None:
        return {"train": output}
    return {part: output.with_name(f"{output.stem}-{part}{output.suffix}") for part in ("train", "test")}


def _check_paths(source: config.Source, paths: dict[str, Path], overwrite: bool) -> None:
    local = not is_hub(source) and not is_folder(source)
    given = {Path(path).resolve() for path in glob.glob(config.shipped_data(source.path), recursive=True) if local}
    for path in paths.values():
        if not overwrite and os.path.lexists(path):
            raise atomic.already_exists(path)
        if path.resolve() in given:
            raise UsageError(f"{path} is part of what is to be read, {source.path}", "choose another name")


def _ready(
    found: Rows, source: config.Source, options: Options, done: Prepared, progress: bool
) -> Iterator[tuple[Row, _Ready]]:
    """The pictures to be written, in order; what is left out is counted."""
    from tqdm import tqdm

    root = Path(source.path)
    total = min(found.count, options.limit or found.count)
    seen: set[bytes] = set()
    done.duplicates = 0 if options.unique else None
    bar = tqdm(total=total, unit="image", desc="preparing", file=sys.stderr, disable=not progress)
    with ThreadPoolExecutor(THREADS) as pool, bar:
        for chunk in chunks(_chosen(found, total), AHEAD):
            for row, ready in zip(chunk, pool.map(lambda row: _encode(row, root, options), chunk), strict=True):
                done.rows += 1
                if isinstance(ready, ImageError):
                    _note(ready, options, done)
                elif options.unique and ready.key in seen:
                    done.duplicates = (done.duplicates or 0) + 1
                else:
                    done.enlarged += ready.enlarged
                    if options.unique:
                        seen.add(ready.key)
                    yield row, ready
            bar.update(len(chunk))


def _chosen(found: Rows, total: int) -> Iterator[Row]:
    """`total` rows, evenly spaced: the first ones of a folder would be all of one class."""
    wanted = iter(spread(found.count, total).tolist())
    following = next(wanted, None)
    for number, row in enumerate(found.rows):
        if number == following:
            yield row
            following = next(wanted, None)
        if following is None:
            return


def _encode(row: Row, root: Path, options: Options) -> _Ready | ImageError:
    """Decode, check, crop and encode one picture.  Runs in a thread."""
    try:
        image = picture(row)
        key = hashlib.sha256(b"%d x %d " % image.size + image.tobytes()).digest()
        enlarged = options.size is not None and min(image.size) < options.size
        data = _bytes(row, image if options.size is None else images.fit(image, options.size), options)
    except ImageError as e:
        return e
    inside = isinstance(row.image, Path) and row.image.is_relative_to(root)
    name = row.image.relative_to(root).as_posix() if inside and isinstance(row.image, Path) else None
    return _Ready({"bytes": data, "path": name}, key, enlarged)


def _bytes(row: Row, image: Image.Image, options: Options) -> bytes:
    try:
        if options.format is None and options.size is None:
            assert row.image is not None
            return row.image.read_bytes() if isinstance(row.image, Path) else row.image
        buffer = io.BytesIO()
        kind = "JPEG" if options.format == "jpg" else "PNG"
        settings = images.SAVE_OPTIONS[kind] | ({"quality": options.quality} if kind == "JPEG" else {})
        image.save(buffer, kind, **settings)
        return buffer.getvalue()
    except OSError as e:  # of JPEG, a side beyond 65,500 pixels
        raise ImageError(f"{row.where}: cannot be encoded: {one_line(e)}") from None


def _note(error: ImageError, options: Options, done: Prepared) -> None:
    if options.bad == "stop":
        raise DataError(error.message, "--bad-images skip leaves out what cannot be read")
    done.bad_count += 1
    if done.bad_count <= NAMED:
        done.bad.append(error.message)


def _is_test(key: bytes, fraction: float | None) -> bool:
    """Whether a picture is for testing; a larger fraction holds all pictures of a smaller one."""
    digest = hashlib.sha256(SPLIT.encode() + key).digest()
    return fraction is not None and int.from_bytes(digest[:8], "big") < fraction * 2**64


def _empty(source: config.Source, part: str, options: Options, done: Prepared, total: int) -> DataError:
    if not total:
        first = f"; the first of {done.bad_count}: {done.bad[0]}" if done.bad else ""
        return DataError(f"{source.path}: no image could be read{first}")
    return DataError(
        f"the {part} part would be empty: {total:,} in all, and a test fraction of {options.test_fraction:g}",
        "choose another fraction, or take more pictures",
    )
