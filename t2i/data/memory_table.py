"""Small data sets: all images decoded once, as uint8 in memory or on the device, without a loader."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from t2i import config
from t2i.data.batches import visit_order
from t2i.data.rows import Classes, Row, class_numbers, decode, merge_classes
from t2i.data.sources import open_source
from t2i.errors import DataError, ImageError

T = TypeVar("T")
CHUNK = 256  # rows read, and images decoded, at once: a bound on undecoded rows in memory
THREADS = 4  # Pillow decodes outside the interpreter lock
DEVICE_SHARE = 0.25  # share of a device's free memory that pixels may take


@dataclass(frozen=True)
class ImageTable:
    """Decoded images in memory, their columns, and the visits of one epoch.

    pixels: (N, 3, S, S) uint8.  columns: name -> N values, "" where a row has none.
    visits: (V,) int64, the row of each visit; `Source.repeat` makes V larger than N.
    hash: sha256 over pixels, columns and visits.  skipped: one line per bad image left out.
    classes: class column -> its names, in the order of their numbers.
    """

    pixels: Tensor
    columns: dict[str, list[str]]
    visits: Tensor
    hash: str
    skipped: list[str] = field(default_factory=list)
    classes: Classes = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.visits)

    @property
    def count(self) -> int:
        """Return the number of rows: distinct images."""
        return len(self.pixels)

    @property
    def size(self) -> int:
        """Return the pixels per side."""
        return self.pixels.shape[-1]

    def order(self, seed: int, first: int, count: int) -> Tensor:
        """Return the rows of the global images first..first+count-1: (count,) int64."""
        return self.visits[visit_order(seed, len(self), first, count)]

    def spread(self, count: int) -> Tensor:
        """Return at most `count` rows from all over the table, the same every time: (n,) int64."""
        return spread(self.count, count)

    def images(self, rows: Tensor) -> Tensor:
        """Return images, (B, 3, S, S) uint8, where the pixels are: on the device, after `to`."""
        return self.pixels[rows.to(self.pixels.device)]

    def prefetch(self, seed: int, first: int, count: int, share: slice) -> None:
        """Do nothing: everything is decoded."""

    def row(self, index: int) -> dict[str, str]:
        """Return the columns of one row."""
        return {name: values[index] for name, values in self.columns.items()}

    def labels(self, rows: Tensor, column: str) -> Tensor:
        """Return class numbers, -1 where a row has no class: (B,) int64.

        Raises DataError: a column without classes.
        """
        values = self.columns.get(column, [])
        texts = (values[row] for row in rows.tolist())
        return torch.tensor(class_numbers(self.classes, column, texts), dtype=torch.int64)

    def to(self, device: torch.device) -> ImageTable:
        """Return the same table with its pixels on the device, if they fit into DEVICE_SHARE of its free memory."""
        if device.type == "cuda" and self.pixels.nbytes > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, pixels=self.pixels.to(device))


def load_memory(data: config.Data, progress: bool = True) -> ImageTable:
    """Read and decode every source of a config into memory.

    progress: a bar on stderr.  Raises DataError: a source that is missing, empty or of unknown kind, no such column,
    and the first bad image where `data.bad_images` is "stop"; with "skip" bad images are listed in `skipped`.
    """
    sources = [open_source(source) for source in data.sources]
    pixels = torch.empty(sum(source.count for source in sources), 3, data.size, data.size, dtype=torch.uint8)
    rows: list[dict[str, str]] = []
    skipped: list[str] = []
    visits: list[Tensor] = []
    with ThreadPoolExecutor(THREADS) as pool, _bar(len(pixels), progress) as bar:
        for source, wanted in zip(sources, data.sources, strict=True):
            start, total = len(rows), len(rows) + source.count
            for chunk in chunks(source.rows):
                for row, result in zip(chunk, pool.map(lambda row: _decode(row, data.size), chunk), strict=True):
                    if isinstance(result, Tensor):
                        pixels[len(rows)] = result
                        rows.append(row.columns)
                    elif data.bad_images == "stop":
                        raise bad_image_error(result)
                    else:
                        skipped.append(result.message)
                bar.update(len(chunk))
            assert len(rows) <= total
            if len(rows) == start:
                first = f"; the first of {len(skipped)}: {skipped[-1]}" if skipped else ""
                raise DataError(f"{wanted.path}: no image could be read{first}")
            visits += [torch.arange(start, len(rows))] * wanted.repeat
    if skipped:
        print(f"left out {len(skipped)} of {len(pixels)} images; the first: {skipped[0]}", file=sys.stderr)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name, "") for row in rows] for name in names}
    pixels, order = pixels[: len(rows)], torch.cat(visits)
    classes = merge_classes(source.classes for source in sources)
    return ImageTable(pixels, columns, order, _hash(pixels, columns, order), skipped, classes)


def bad_image_error(error: ImageError) -> DataError:
    """Return the error that ends a run at its first bad image."""
    return DataError(error.message, "set data.bad_images=skip to leave out what cannot be read")


def spread(size: int, count: int) -> Tensor:
    """Return at most `count` numbers from 0 to size - 1, evenly spaced: (n,) int64."""
    return torch.linspace(0, size - 1, min(count, size), dtype=torch.float64).long()


def chunks(rows: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Split an iterable into lists of at most `size`."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _decode(row: Row, size: int) -> Tensor | ImageError:
    """Return the pixels, or the error.  Runs in a thread."""
    try:
        return decode(row, size)
    except ImageError as e:
        return e


def _hash(pixels: Tensor, columns: dict[str, list[str]], visits: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    digest.update(pixels.contiguous().numpy().data)
    for name in sorted(columns):  # with lengths, so that different tables never give the same bytes
        update(digest, name, *columns[name])
    digest.update(visits.numpy().tobytes())
    return digest.hexdigest()


def update(digest: Any, *texts: str) -> None:
    """Feed texts to a digest, each with its length."""
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%b" % (len(encoded), encoded))


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="image", desc="reading images", file=sys.stderr, disable=not progress)
