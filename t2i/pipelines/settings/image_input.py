"""Input images: read, identified by a hash of their pixels, and cropped to the size that is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image

from t2i.errors import ImageError, UsageError
from t2i.imaging.decoding import decode
from t2i.imaging.images import pixel_hash


@dataclass(frozen=True)
class ImageInput:
    """An input image.

    name: of its file, without the folder; empty for one in memory.  hash: of its pixels, as decoded (upright, RGB).
    size: (width, height).  Pixels are read when they are needed: a list of prompts may name a million images.
    """

    name: str
    hash: str
    size: tuple[int, int]
    path: Path | None = field(default=None, compare=False)
    held: Image.Image | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, source: str | Path | Image.Image, option: str = "image") -> ImageInput:
        """Read a file or a Pillow image.  option: the field, for messages.

        Raises ImageError: not an image, damaged, too large, or missing; UsageError: neither a path nor an image.
        """
        if not isinstance(source, str | Path | Image.Image):
            kind = type(source).__name__
            raise UsageError(
                f"{option}: got {kind}, expected a path or a Pillow image", "Image.fromarray takes an array"
            )
        if isinstance(source, Image.Image):
            if 0 in source.size:
                raise ImageError(f"an image in memory has {source.width}x{source.height} pixels")
            held = source.convert("RGB")
            return cls("", pixel_hash(held), held.size, held=held)
        path = Path(source).expanduser()
        hash, size = _facts(path, *_stamp(path))
        return cls(path.name, hash, size, path)

    def open(self) -> Image.Image:
        """Return the pixels, in RGB.  Raises ImageError where the file has changed since it was read first."""
        if self.held is not None:
            return self.held
        assert self.path is not None
        stamp = _stamp(self.path)
        if _facts(self.path, *stamp)[0] != self.hash:
            raise ImageError(f"{self.path}: the file was replaced by another image in the meantime", "start again")
        return _pixels(self.path, *stamp)


def cover(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Scale an image until it covers `size` and crop what is over on both sides; unchanged where it fits already."""
    width, height = size
    scale = max(width / image.width, height / image.height)
    kept = [max(1, min(side, round(new / scale))) for side, new in zip(image.size, size, strict=True)]
    left, top = (image.width - kept[0]) // 2, (image.height - kept[1]) // 2
    # Cropped first: `resize(box=...)` would mix in pixels from outside the box.
    cut = image.crop((left, top, left + kept[0], top + kept[1]))
    return cut if cut.size == (width, height) else cut.resize((width, height), resample)


def drawn_size(
    image: tuple[int, int], most: int, multiple: int, width: int | None, height: int | None
) -> tuple[int, int]:
    """Return the (width, height) at which to draw from an image of this size.

    width, height: the user's choice, which holds; the other side follows by the image's aspect ratio.
    By default the image's own size, or one of its shape with at most `most` pixels, rounded down to the multiple.
    """
    if width and height:
        return width, height
    own_width, own_height = image
    if width:
        return width, _nearest(width * own_height / own_width, multiple)
    if height:
        return _nearest(height * own_width / own_height, multiple), height
    scale = min(1.0, math.sqrt(most / (own_width * own_height)))
    sides = [max(multiple, int(side * scale + 1e-6) // multiple * multiple) for side in image]
    return sides[0], sides[1]


def _nearest(side: float, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)


def _stamp(path: Path) -> tuple[int, int]:
    """Return modification time and size, which change when a file does."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return 0, 0  # decoding it says what is wrong
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=2**16)
def _facts(path: Path, changed: int, size: int) -> tuple[str, tuple[int, int]]:
    image = _pixels(path, changed, size)
    return pixel_hash(image), image.size


@lru_cache(maxsize=3)  # an image, its mask and its control
def _pixels(path: Path, _changed: int, _size: int) -> Image.Image:
    return decode(path)
