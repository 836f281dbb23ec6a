"""Convert any source to one parquet data set that the trainers and `datasets` read, in one pass and bounded memory.

The output is a function of the source and the options, byte for byte. Rows keep their order. The test split depends on
an image's pixels alone, so that an image stays in its part when others come or go, and equal images are never in both.
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

AHEAD = 16  # images decoded and encoded at once
NAMED = 100  # bad images listed; all are counted
EXAMPLES = 10  # of these, in the summary
SPLIT = "test split"  # never change it: that moves images from training to testing


@dataclass(frozen=True)
class PrepareOptions:
    """Options of the conversion.

    size: pixels per side after a centre crop; None keeps images as large as they are.
    format: encoding; None: PNG where a size is given, else the bytes of the files stay as they are.
    quality: of JPEG.  bad: treatment of unreadable images.  unique: of images with the same pixels keep only the first.
    limit: read at most this many rows, evenly spaced.  test_fraction: approximate share of images in a part of their
    own.
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
    """The result of a conversion.

    rows: read from the source.  enlarged: images smaller than the size.
    bad: where and why, the first NAMED.  duplicates: left out; None where they were not searched for.
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
        """Return the result as plain JSON data."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """Return the result as labels and texts, for a human."""
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
class _EncodedImage:
    """An image to be written.  key: sha256 of its pixels before any cropping."""

    image: Cell
    key: bytes
    enlarged: bool


def prepare(
    source: config.Source, output: Path, options: PrepareOptions, overwrite: bool = False, progress: bool = True
) -> Prepared:
    """Write a source's images and columns as parquet: `output`, or with a test fraction NAME-train and NAME-test.

    progress: a bar on stderr.  The files get their names when all are complete.  Raises DataError: a source that is
    missing or empty, the first bad image (unless skipped), a part without an image; UsageError: a file exists.
    """
    paths = part_paths(output, options)
    _check_paths(source, paths, overwrite)
    found = open_source(source)
    columns = Columns(found)
    done = Prepared(source.path, columns={name: found.classes.get(name) for name in found.names})
    with ExitStack() as stack:
        writers = {name: stack.enter_context(parquet_writer(path, columns, overwrite)) for name, path in paths.items()}
        for row, encoded in _encode_all(found, source, options, done, progress):
            writer = writers["test" if _is_test(encoded.key, options.test_fraction) else "train"]
            writer.add(encoded.image, columns.values(row))
        for name, writer in writers.items():
            if not writer.rows:
                raise _empty(source, name, options, done, sum(other.rows for other in writers.values()))
    done.parts = [PreparedFile(str(path), writers[name].rows, path.stat().st_size) for name, path in paths.items()]
    return done


def part_paths(output: Path, options: PrepareOptions) -> dict[str, Path]:
    """Return {part: file}, by the names that `datasets` expects for the parts of a folder."""
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


def _encode_all(
    found: Rows, source: config.Source, options: PrepareOptions, done: Prepared, progress: bool
) -> Iterator[tuple[Row, _EncodedImage]]:
    """Yield the images to be written, in order, counting those that are left out."""
    from tqdm import tqdm

    root = Path(source.path)
    total = min(found.count, options.limit or found.count)
    seen: set[bytes] = set()
    done.duplicates = 0 if options.unique else None
    bar = tqdm(total=total, unit="image", desc="preparing", file=sys.stderr, disable=not progress)
    with ThreadPoolExecutor(THREADS) as pool, bar:
        for chunk in chunks(_sampled_rows(found, total), AHEAD):
            for row, encoded in zip(chunk, pool.map(lambda row: _encode(row, root, options), chunk), strict=True):
                done.rows += 1
                if isinstance(encoded, ImageError):
                    _note(encoded, options, done)
                elif options.unique and encoded.key in seen:
                    done.duplicates = (done.duplicates or 0) + 1
                else:
                    done.enlarged += encoded.enlarged
                    if options.unique:
                        seen.add(encoded.key)
                    yield row, encoded
            bar.update(len(chunk))


def _sampled_rows(found: Rows, total: int) -> Iterator[Row]:
    """Yield `total` rows, evenly spaced: the first ones of a folder would all be of one class."""
    wanted = iter(spread(found.count, total).tolist())
    following = next(wanted, None)
    for number, row in enumerate(found.rows):
        if number == following:
            yield row
            following = next(wanted, None)
        if following is None:
            return


def _encode(row: Row, root: Path, options: PrepareOptions) -> _EncodedImage | ImageError:
    """Decode, check, crop and encode one image.  Runs in a thread."""
    try:
        image = picture(row)
        key = hashlib.sha256(b"%d x %d " % image.size + image.tobytes()).digest()
        enlarged = options.size is not None and min(image.size) < options.size
        data = _bytes(row, image if options.size is None else images.fit(image, options.size), options)
    except ImageError as e:
        return e
    inside = isinstance(row.image, Path) and row.image.is_relative_to(root)
    name = row.image.relative_to(root).as_posix() if inside and isinstance(row.image, Path) else None
    return _EncodedImage({"bytes": data, "path": name}, key, enlarged)


def _bytes(row: Row, image: Image.Image, options: PrepareOptions) -> bytes:
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


def _note(error: ImageError, options: PrepareOptions, done: Prepared) -> None:
    if options.bad == "stop":
        raise DataError(error.message, "--bad-images skip leaves out what cannot be read")
    done.bad_count += 1
    if done.bad_count <= NAMED:
        done.bad.append(error.message)


def _is_test(key: bytes, fraction: float | None) -> bool:
    """Return whether an image belongs to the test part; a larger fraction includes all images of a smaller one."""
    digest = hashlib.sha256(SPLIT.encode() + key).digest()
    return fraction is not None and int.from_bytes(digest[:8], "big") < fraction * 2**64


def _empty(source: config.Source, part: str, options: PrepareOptions, done: Prepared, total: int) -> DataError:
    if not total:
        first = f"; the first of {done.bad_count}: {done.bad[0]}" if done.bad else ""
        return DataError(f"{source.path}: no image could be read{first}")
    return DataError(
        f"the {part} part would be empty: {total:,} in all, and a test fraction of {options.test_fraction:g}",
        "choose another fraction, or take more pictures",
    )
