"""Tiny pictures and data sets for the tests of data: folders, parquet files, things that are no images."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from t2i.imaging import images

SIZE = 8


def picture(value: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """A gradient that depends on `value`, so that no two pictures are alike."""
    image = Image.new("RGB", size)
    image.putdata(
        [((value * 7 + x) % 256, (value * 31 + y) % 256, value % 256) for y in range(size[1]) for x in range(size[0])]
    )
    return image


def encoded(value: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(value).save(buffer, format)
    return buffer.getvalue()


def expected(value: int) -> torch.Tensor:
    return images.pixels(images.fit(picture(value), SIZE))


def save(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(value).save(path)
    return path


def parquet(path: Path, cells: list[Any], *, group: int | None = None, **columns: list[Any]) -> Path:
    """A parquet file as `datasets` writes it: an Image column, class numbers with their names, other columns.

    group: rows of a row group.
    """
    features: dict[str, Any] = {"image": datasets.Image()}
    for name, values in columns.items():
        features[name] = datasets.ClassLabel(names=["cat", "dog"]) if name == "label" else _type(values)
    rows = {"image": [cell if cell is None else {"bytes": cell, "path": None} for cell in cells], **columns}
    pq.write_table(pa.table(rows, schema=datasets.Features(features).arrow_schema), path, row_group_size=group)
    return path


def _type(values: list[Any]) -> Any:
    first = next(v for v in values if v is not None)
    if isinstance(first, list):
        return datasets.Sequence(datasets.Value("string"))
    return datasets.Value({str: "string", int: "int64", float: "float64", bool: "bool"}[type(first)])


def huge_png() -> bytes:
    """The header of a PNG of 30,000 x 30,000 pixels, and nothing after it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


BAD = {
    "truncated": encoded(1)[:60],
    "empty": b"",
    "text": b"this is no image",
    "missing": None,
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "bomb": huge_png(),
}
