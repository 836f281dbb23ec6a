"""Specifications in one word: PATH:SCALE, PATH:TOKEN, NAME:IMAGE:SCALE.

The colon of a drive letter belongs to its path, and so do the colons of an existing file with the whole name.
"""

from __future__ import annotations

import math
import os

from t2i.errors import UsageError


def split_last(spec: str) -> tuple[str, str | None]:
    """Split at the last colon into (path, tail); tail None: there is none."""
    path, colon, tail = spec.rpartition(":")
    if not colon or _is_drive(path, tail) or _is_there(spec):
        return spec, None
    return path, tail


def split_image(spec: str, option: str) -> tuple[str, str, float]:
    """Split NAME:IMAGE[:SCALE] into (name, image, scale); a missing name or image is empty.

    option: the field, for messages.  Raises UsageError for a scale that is not finite.
    """
    name, _, rest = spec.partition(":")
    if _is_drive(name, rest):
        more, _, rest = rest.partition(":")
        name = f"{name}:{more}"
    image, _, tail = rest.rpartition(":")
    if not _is_number(tail) or _is_there(rest):
        return name, rest, 1.0
    return name, image, read_scale(tail, f"`{option}={spec[:80]}`")


def read_scale(text: str, where: str) -> float:
    """Parse a finite number.  Raises UsageError."""
    if not _is_number(text):
        raise UsageError(f"{where}: scale: got {text[:40]!r}, expected a number")
    if not math.isfinite(float(text)):
        raise UsageError(f"{where}: scale: got {text[:40]!r}, expected a finite number")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_there(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def _is_drive(head: str, tail: str) -> bool:
    r"""Return whether a colon belongs to a Windows path: C:\style.safetensors."""
    return len(head) == 1 and head.isalpha() and tail[:1] in ("\\", "/")
