"""Small data files in the layouts that the scripts read."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

OBJECTS = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
STYLES = ["art_painting", "cartoon", "photo", "sketch"]


def noisy(seed: int, width: int, height: int) -> bytes:
    coarse = torch.randint(0, 256, (6, 6, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse.numpy()).resize((width, height)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def write(path: Path, features: dict, **columns: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = datasets.Features({"image": datasets.Image()} | features).arrow_schema
    columns["image"] = [{"bytes": data, "path": None} for data in columns["image"]]
    pq.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema), path)
