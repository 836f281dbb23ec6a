"""Specifications of adapters: small files that change what a model draws.

LoRA PATH[:SCALE], textual inversion PATH[:TOKEN], IP-Adapter PATH:IMAGE[:SCALE]. A path is a .safetensors file, a
folder that holds one, or a file on the Hub: owner/name or owner/name/file. Nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.errors import UsageError
from t2i.pipelines.settings.spec_strings import read_scale, split_image, split_last

MAX_TOKEN = 100  # characters

Specs = str | Path | Iterable[str | Path]  # one, or several


@dataclass(frozen=True)
class Lora:
    """Low-rank changes of the model's weights.  scale: any finite number; 0 changes nothing."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True)
class Embedding:
    """A textual inversion: a new word for the text encoder.  token: that word; empty: the name in the file."""

    path: str
    token: str = ""


@dataclass(frozen=True)
class IPAdapter:
    """An image as a prompt.  image: its path."""

    path: str
    image: str
    scale: float = 1.0


@dataclass(frozen=True)
class Adapters:
    """All adapters of a model, each kind in the order given."""

    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    ip_adapters: tuple[IPAdapter, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.loras or self.embeddings or self.ip_adapters)

    @classmethod
    def read(cls, loras: Specs = (), embeddings: Specs = (), ip_adapters: Specs = ()) -> Adapters:
        """Parse specifications.  Raises UsageError: not a number, an image missing, a file given twice."""
        found = cls(
            tuple(read_lora(spec) for spec in _several(loras)),
            tuple(read_embedding(spec) for spec in _several(embeddings)),
            tuple(read_ip_adapter(spec) for spec in _several(ip_adapters)),
        )
        for option, paths in (
            ("lora", [lora.path for lora in found.loras]),
            ("embedding", [embedding.path for embedding in found.embeddings]),
        ):
            twice = next((path for path in paths if paths.count(path) > 1), None)
            if twice:
                raise UsageError(f"`{option}={twice}`: given twice", "once is enough; a LoRA's strength is its scale")
        return found


NO_ADAPTERS = Adapters()


@dataclass(frozen=True)
class Attached:
    """One adapter of a pipeline.  record: for recipes.  line, warning: for the user."""

    record: Mapping[str, Any]
    line: str
    warning: str = ""


def read_lora(spec: str) -> Lora:
    """Parse PATH[:SCALE].  Raises UsageError."""
    path, tail = split_last(spec)
    scale = 1.0 if tail is None else read_scale(tail, f"`lora={path[:80]}`")
    if not path:
        raise UsageError("`lora`: no path", "`lora=PATH` or `lora=PATH:SCALE`")
    return Lora(path, scale)


def read_embedding(spec: str) -> Embedding:
    """Parse PATH[:TOKEN].  Raises UsageError."""
    path, token = split_last(spec)
    if token is not None and (len(token) > MAX_TOKEN or len(token.split()) != 1 or not token.isprintable()):
        raise UsageError(f"`embedding={spec[:80]}`: the token must be one word, at most {MAX_TOKEN} characters")
    if not path:
        raise UsageError("`embedding`: no path", "`embedding=PATH` or `embedding=PATH:TOKEN`")
    return Embedding(path, token or "")


def read_ip_adapter(spec: str) -> IPAdapter:
    """Parse PATH:IMAGE[:SCALE].  Raises UsageError."""
    path, image, scale = split_image(spec, "ip_adapter")
    if not path or not image:
        message = f"`ip_adapter={spec[:80]}`: expected PATH:IMAGE or PATH:IMAGE:SCALE"
        raise UsageError(message, "for example `ip_adapter=ip-adapter_sd15.safetensors:face.png:0.6`")
    return IPAdapter(path, image, scale)


def _several(specs: Specs) -> list[str]:
    return [str(spec) for spec in ([specs] if isinstance(specs, str | Path) else specs)]
