"""Safe decoding: an image file from any source becomes an upright 8-bit RGB image, or an error that names the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2i.errors import ImageError, T2IError
from t2i.threads import ignore_warnings

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # explicit: Pillow knows formats that start other programs
MAX_PIXELS = 89_000_000  # just under the bound at which Pillow itself warns of a decompression bomb
MAX_BYTES = 500_000_000  # of a file
MAX_TEXT = 16_000_000  # characters of text and bytes of profiles, besides the pixels
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> the transposition that makes the image upright
OTHER_KINDS = {b"%!PS": "EPS/PostScript", b"8BPS": "PSD", b"SIMPLE  =": "FITS", b"%PDF": "PDF", b"<svg": "SVG"}


def decode(data: bytes | Path, where: str | None = None) -> Image.Image:
    """Decode an image from a file or its bytes, as upright 8-bit RGB.

    Grey is repeated over the channels, 16-bit grey is scaled (not clipped), alpha and palette transparency are
    composited on white, CMYK is converted without a colour profile, EXIF orientation is applied, and an animation is
    reduced to its first frame.
    where: the name used in messages; default: the path.
    Raises ImageError: damaged, not an image, an unsupported format, or larger than MAX_PIXELS by its header, which is
    read before any pixel is decoded.
    """
    where = where or (str(data) if isinstance(data, Path) else "image")
    image = open_image(data, where)
    try:
        image.load()
        _check_text(image, where)  # again: a PNG may hold text after its pixels
        turn = TURNS.get(_orientation(image))
        image = _to_rgb(image, where)
    except T2IError:
        raise
    except Exception as e:  # Pillow's decoders raise nearly anything on a damaged file
        raise ImageError(f"{where}: the image is truncated or damaged ({reason(e)})") from None
    return image if turn is None else image.transpose(turn)


def open_image(data: bytes | Path, where: str) -> Image.Image:
    """Open an image: its header and metadata are read, its pixels are not.  Raises ImageError as `decode` does."""
    raw = _read(data, where) if isinstance(data, Path) else data
    if not raw:
        raise ImageError(f"{where}: the file is empty (0 bytes)")
    if raw.startswith(b"version https://git-lfs"):
        raise ImageError(f"{where}: a git-lfs pointer, not the image itself", "git lfs pull")
    try:
        with ignore_warnings():  # of a bomb too: its size is judged below, before any pixel is decoded
            image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ImageError(f"{where}: {_kind(raw)}; images are read from {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:  # twice that bound
        raise ImageError(f"{where}: more than {MAX_PIXELS:,} pixels; refused before decoding") from None
    except Exception as e:  # among them: more text in a PNG than Pillow's bound
        raise ImageError(f"{where}: the image's header is damaged or unsafe ({reason(e)})") from None
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise ImageError(f"{where}: {size} is more than {MAX_PIXELS:,} pixels; refused before decoding")
    _check_text(image, where)
    return image


def _check_text(image: Image.Image, where: str) -> None:
    text = sum(len(value) for value in image.info.values() if isinstance(value, str | bytes))
    if text > MAX_TEXT:
        raise ImageError(f"{where}: {text:,} characters of text inside the image; at most {MAX_TEXT:,} are read")


def _read(path: Path, where: str) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{where}: a folder, not an image")
        if not path.exists():
            raise ImageError(f"{where}: no such file")
        if not path.is_file():  # reading a pipe or a device might never end
            raise ImageError(f"{where}: not a regular file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ImageError(f"{where}: {size:,} bytes; an image file has at most {MAX_BYTES:,}")
        return path.read_bytes()
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise ImageError(f"{where}: cannot be read: {reason(e)}") from None


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_16_bit(image, where)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb = image.convert("RGB")
    rgb.info = {}  # comments and profiles belong to the file; a later save must not repeat them
    return rgb


def _from_16_bit(image: Image.Image, where: str) -> Image.Image:
    """Scale grey 0..65535 to 0..255, rounding to nearest; the transparent grey value of a PNG becomes alpha."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{where}: 32-bit grey has no defined white; save it with 8 or 16 bits")
    grey = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _orientation(image: Image.Image) -> Any:
    try:
        with ignore_warnings():
            return image.getexif().get(0x0112)
    except Exception:  # the pixels are fine though their EXIF is damaged
        return None


def _kind(raw: bytes) -> str:
    """Describe a file that is in none of the supported formats."""
    for start, name in OTHER_KINDS.items():
        if raw.startswith(start):
            return f"a file of kind {name}, whatever its suffix says"
    head = raw[:512]
    printable = all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
    return "text, not an image" if printable else "not an image, or damaged"


def reason(error: BaseException) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:200]
