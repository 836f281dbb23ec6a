"""Images: uint8 <-> [-1, 1], grids, saving; and safe decoding, from `decoding.py`.

Outside this file an image is float NCHW in [-1, 1], or a Pillow image in mode RGB.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from t2i.atomic import already_exists, write
from t2i.errors import ImageError, NonFinite, UsageError
from t2i.imaging.decoding import FORMATS, MAX_PIXELS, decode, reason

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "Metadata",
    "decode",
    "enlarge",
    "fit",
    "from_tensor",
    "from_uint8",
    "grid",
    "pixel_hash",
    "pixels",
    "save",
    "save_animation",
    "to_tensor",
    "to_uint8",
]

SAVE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
# Fixed here, so that the same image and recipe always give the same bytes.
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95, "method": 4},
}
GAP = 2  # pixels between the images of a grid


class Metadata(Protocol):
    """Metadata that `save` embeds, such as `recipe.Recipe` and `recipe.Mark`."""

    def save_options(self, format: str) -> dict[str, Any]:
        """Return Pillow's keyword arguments that write this into a file of the given Pillow format."""
        ...


def fit(image: Image.Image, size: int) -> Image.Image:
    """Crop the largest centred square and resample it (Lanczos) to size x size."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first: `resize(box=...)` would mix in pixels from outside the box.
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)


def enlarge(image: Image.Image, least: int) -> Image.Image:
    """Enlarge, pixels staying sharp, by the smallest whole factor that makes the image `least` pixels wide."""
    factor = max(1, -(-least // image.width))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def pixels(image: Image.Image) -> Tensor:
    """Return the pixels of an image: uint8 (3, H, W)."""
    import torch

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Convert images of one size to float32 (B, 3, H, W) in [-1, 1]."""
    import torch

    return from_uint8(torch.stack([pixels(image) for image in images]))


def from_uint8(x: Tensor) -> Tensor:
    """Map uint8 (...) in 0..255 to float32 in [-1, 1]; `to_uint8` gives back exactly the same bytes."""
    return x.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Map float (...) in [-1, 1] to uint8 in 0..255, rounded, and clamped outside of the range."""
    import torch

    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_tensor(x: Tensor) -> list[Image.Image]:
    """Convert a batch to images: float (B, 3, H, W), or (B, 1, H, W) for grey, in [-1, 1].

    Raises NonFinite where the batch holds a NaN or infinity: it would be saved as black, and look like success.
    """
    bad = [k for k, image in enumerate(x) if not image.isfinite().all()]
    if bad:
        raise NonFinite(f"non-finite image: NaN or infinity in image {bad} of {len(x)}", "try `dtype=float32`")
    rows = to_uint8(x.detach()).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().contiguous().numpy()
    return [Image.fromarray(row) for row in rows]


def pixel_hash(image: Image.Image) -> str:
    """Return the sha256 (hex) of the RGB bytes, row by row: the `image_hash` of a recipe."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def grid(
    images: Sequence[Image.Image],
    columns: int | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> Image.Image:
    """Arrange images row by row, on white with a gap of 2 pixels; labels to the left and above, if given.

    columns: default: one per column label, else as square as can be.
    """
    if not images:
        raise UsageError("a grid needs at least one image, got none")
    columns = columns or (len(column_labels) if column_labels else math.ceil(math.sqrt(len(images))))
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = max(image.width for image in images), max(image.height for image in images)
    font = ImageFont.load_default(size=min(24, max(10, width // 8)))
    above = [_wrap(label, font, width) for label in (column_labels or ())[:columns]]
    beside = [_wrap(label, font, max(72, width)) for label in (row_labels or ())[:rows]]
    left = max((_extent(label, font)[0] + 3 * GAP for label in beside), default=0)
    top = max((_extent(label, font)[1] + 3 * GAP for label in above), default=0)
    sheet = Image.new("RGB", (left + columns * (width + GAP) - GAP, top + rows * (height + GAP) - GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for k, image in enumerate(images):
        sheet.paste(image, (left + k % columns * (width + GAP), top + k // columns * (height + GAP)))
    for k, label in enumerate(above):
        middle = (left + k * (width + GAP) + width / 2, top - 2 * GAP)
        pen.multiline_text(middle, label, "black", font, anchor="md", align="center", spacing=2)
    for k, label in enumerate(beside):
        right = (left - 2 * GAP, top + k * (height + GAP) + height / 2)
        pen.multiline_text(right, label, "black", font, anchor="rm", align="right", spacing=2)
    return sheet


def save(image: Image.Image, path: Path, *, recipe: Metadata | None = None, overwrite: bool = False) -> Path:
    """Write an image atomically; format by suffix: png, jpg, jpeg, webp.

    Missing folders are created. The same image and recipe give the same bytes.
    Raises UsageError: another suffix, a file that exists (unless overwrite; safe against other processes), a folder
    that is not writable.  Raises ImageError: encoding or the disk fails.
    """
    path = Path(path)
    kind = SAVE_FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"cannot save {path.name!r}: the suffix must be one of {', '.join(SAVE_FORMATS)}")
    if not overwrite and os.path.lexists(path):
        raise already_exists(path)
    buffer = io.BytesIO()
    try:
        extra = recipe.save_options(kind) if recipe else {}
        image.convert("RGB").save(buffer, kind, **SAVE_OPTIONS[kind], **extra)
    except (OSError, ValueError) as e:
        raise ImageError(f"cannot encode {path.name!r} as {kind}: {reason(e)}", "save as .png instead") from None
    write(buffer.getvalue(), path, overwrite=overwrite)
    return path


def save_animation(frames: Sequence[Image.Image], path: Path, *, hold: int = 1500) -> Path:
    """Write images of one size as an endless GIF or WebP, by suffix, 60 ms each; the last stays `hold` ms.

    Raises UsageError where the file exists.
    """
    buffer = io.BytesIO()
    durations = [60] * (len(frames) - 1) + [hold]
    options: dict[str, Any] = {"save_all": True, "append_images": list(frames[1:]), "duration": durations, "loop": 0}
    frames[0].save(buffer, path.suffix.removeprefix(".").upper(), **options)
    write(buffer.getvalue(), path)
    return path


def _wrap(label: str, font: Any, width: int) -> str:
    """Break a label between words into lines of at most `width` pixels; a longer word stays whole."""
    lines: list[str] = []
    for word in label.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _extent(label: str, font: Any) -> tuple[int, int]:
    """Return the (width, height) of a label in pixels, from its top down to the descender line."""
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, top, right, _ = pen.multiline_textbbox((0, 0), label, font, anchor="ld", spacing=2)
    return math.ceil(right), math.ceil(-top)
