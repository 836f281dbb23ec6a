"""Pictures that a drawing starts from: found, told apart by their pixels, and cut to the size that is drawn."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image

from t2i.errors import ImageError, UsageError
from t2i.imaging.decoding import decode
from t2i.imaging.images import pixel_hash


@dataclass(frozen=True)
class ImageInput:
    """A picture that is started from.

    name: its file's last part; empty for one in memory.  hash: of its pixels, as `decode` gives them (upright, RGB).
    size: (width, height).  Its pixels are read when they are needed: a list of prompts may name a million.
    """

    name: str
    hash: str
    size: tuple[int, int]
    path: Path | None = field(default=None, compare=False)
    held: Image.Image | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, picture: str | Path | Image.Image) -> ImageInput:
        """A file, or a Pillow image.  Raises ImageError for what is no image, damaged, too large, or not there."""
        if isinstance(picture, Image.Image):
            if 0 in picture.size:
                raise ImageError(f"an image in memory has {picture.width}x{picture.height} pixels")
            held = picture.convert("RGB")
            return cls("", pixel_hash(held), held.size, held=held)
        if not isinstance(picture, str | os.PathLike):
            kind = type(picture).__name__
            raise UsageError(
                f"image: got {kind}, expected a path or a Pillow image", "Image.fromarray makes one of an array"
            )
        path = Path(picture).expanduser()
        hash, size = _facts(path, *_stamp(path))
        return cls(path.name, hash, size, path)

    def open(self) -> Image.Image:
        """Its pixels, in RGB.  Raises ImageError where the file has changed since it was looked at."""
        if self.held is not None:
            return self.held
        assert self.path is not None
        stamp = _stamp(self.path)
        if _facts(self.path, *stamp)[0] != self.hash:
            raise ImageError(f"{self.path}: the picture was replaced by another in the meantime", "start again")
        return _pixels(self.path, *stamp)


def cover(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """The picture scaled until it covers `size`, what stands over cut off evenly; untouched where it fits already."""
    width, height = size
    scale = max(width / image.width, height / image.height)
    kept = [max(1, min(side, round(new / scale))) for side, new in zip(image.size, size, strict=True)]
    left, top = (image.width - kept[0]) // 2, (image.height - kept[1]) // 2
    # Cropped first: `resize(box=...)` would mix in what lies outside the box.
    cut = image.crop((left, top, left + kept[0], top + kept[1]))
    return cut if cut.size == (width, height) else cut.resize((width, height), resample)


def drawn_size(
    picture: tuple[int, int], most: int, multiple: int, width: int | None, height: int | None
) -> tuple[int, int]:
    """(width, height) to draw a picture of this size at.

    width, height: as the user says, which holds; one of them alone gets the other by the picture's shape.
    Else the picture's own size, or the one of at most `most` pixels and its shape, each side cut to the multiple.
    """
    if width and height:
        return width, height
    own_width, own_height = picture
    if width:
        return width, _nearest(width * own_height / own_width, multiple)
    if height:
        return _nearest(height * own_width / own_height, multiple), height
    scale = min(1.0, math.sqrt(most / (own_width * own_height)))
    sides = [max(multiple, int(side * scale + 1e-6) // multiple * multiple) for side in picture]
    return sides[0], sides[1]


def _nearest(side: float, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return 0, 0  # said when it is decoded
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=2**16)
def _facts(path: Path, changed: int, size: int) -> tuple[str, tuple[int, int]]:
    image = _pixels(path, changed, size)
    return pixel_hash(image), image.size


@lru_cache(maxsize=3)  # a picture, its mask and its control
def _pixels(path: Path, _changed: int, _size: int) -> Image.Image:
    return decode(path)
