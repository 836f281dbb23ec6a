"""Adapters as a user asks for them: small files that change what a model draws.

LoRA PATH[:SCALE], textual inversion PATH[:TOKEN], IP-Adapter PATH:IMAGE[:SCALE]. A path is a .safetensors file, a
folder that holds one, or a file on the Hub: owner/name or owner/name/file. Nothing here opens a file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from t2i.errors import UsageError

MAX_TOKEN = 100  # characters

Specs = str | Path | Iterable[str | Path]  # one, or several


@dataclass(frozen=True)
class Lora:
    """Low-rank changes of the model's weights.  scale: any finite number; 0 changes nothing."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True)
class Embedding:
    """A textual inversion: a new word for the text encoder.  token: that word; empty: what the file calls it."""

    path: str
    token: str = ""


@dataclass(frozen=True)
class IPAdapter:
    """A picture as a prompt.  image: its path."""

    path: str
    image: str
    scale: float = 1.0


@dataclass(frozen=True)
class Adapters:
    """All that a model is to wear, each kind in the order it was asked for."""

    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    ip_adapters: tuple[IPAdapter, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.loras or self.embeddings or self.ip_adapters)

    @classmethod
    def read(cls, loras: Specs = (), embeddings: Specs = (), ip_adapters: Specs = ()) -> Adapters:
        """From what a user writes.  Raises UsageError: no number, an image missing, something said twice."""
        found = cls(
            tuple(read_lora(spec) for spec in _several(loras)),
            tuple(read_embedding(spec) for spec in _several(embeddings)),
            tuple(read_ip_adapter(spec) for spec in _several(ip_adapters)),
        )
        for words, paths in (
            ("--lora", [lora.path for lora in found.loras]),
            ("--embedding", [embedding.path for embedding in found.embeddings]),
        ):
            twice = next((path for path in paths if paths.count(path) > 1), None)
            if twice:
                raise UsageError(f"{words} {twice}: given twice", "once is enough; a LoRA's strength is its scale")
        return found


NO_ADAPTERS = Adapters()


def read_lora(spec: str) -> Lora:
    """PATH[:SCALE].  Raises UsageError."""
    path, scale = _split_scale(spec, "--lora")
    return Lora(path, scale)


def read_embedding(spec: str) -> Embedding:
    """PATH[:TOKEN].  Raises UsageError."""
    path, token = spec, ""
    head, colon, tail = spec.rpartition(":")
    if colon and not os.path.exists(spec) and not _is_drive(head, tail):
        path, token = head, tail
        if not token or len(token) > MAX_TOKEN or len(token.split()) != 1 or not token.isprintable():
            raise UsageError(f"--embedding {spec[:80]}: the token must be one word, at most {MAX_TOKEN} characters")
    if not path:
        raise UsageError("--embedding: no path", "--embedding PATH or PATH:TOKEN")
    return Embedding(path, token)


def read_ip_adapter(spec: str) -> IPAdapter:
    """PATH:IMAGE[:SCALE].  Raises UsageError."""
    rest, scale = _split_scale(spec, "--ip-adapter", strict=False)
    path, _, image = rest.partition(":")
    if _is_drive(path, image):  # C:\adapter.safetensors:D:\face.png
        more, _, image = image.partition(":")
        path = f"{path}:{more}"
    if not path or not image:
        message = f"--ip-adapter {spec[:80]}: expected PATH:IMAGE or PATH:IMAGE:SCALE"
        raise UsageError(message, "for example --ip-adapter ip-adapter_sd15.safetensors:face.png:0.6")
    return IPAdapter(path, image, scale)


def _several(specs: Specs) -> list[str]:
    return [str(spec) for spec in ([specs] if isinstance(specs, str | Path) else specs)]


def _split_scale(spec: str, option: str, strict: bool = True) -> tuple[str, float]:
    """(all before it, the scale behind the last colon, else 1).  strict: what stands there must be a number."""
    path, colon, tail = spec.rpartition(":")
    if not colon or os.path.exists(spec) or _is_drive(path, tail):
        path, tail = spec, "1"
    try:
        scale = float(tail)
    except ValueError:
        if not strict:
            return spec, 1.0
        raise UsageError(f"{option} {path[:80]}: scale: got {tail[:40]!r}, expected a number") from None
    if not math.isfinite(scale):
        raise UsageError(f"{option} {path[:80]}: scale: got {tail[:40]!r}, expected a finite number")
    if not path:
        raise UsageError(f"{option}: no path", f"{option} PATH, and what belongs to it behind a colon")
    return path, scale


def _is_drive(head: str, tail: str) -> bool:
    r"""Whether a colon belongs to a Windows path: C:\style.safetensors."""
    return len(head) == 1 and head.isalpha() and tail[:1] in ("\\", "/")
