"""How an image was made: the record, its JSON, and reading it back from a file (`metadata.py` tells where it stands).

The JSON is exact for every text: it is pure ASCII, so that NUL, control characters and lone surrogates stand in it as
escapes. In A1111's text NUL and lone surrogates become U+FFFD, since PNG cannot hold them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from t2i import infotext, metadata
from t2i.decoding import open_image
from t2i.errors import ImageError

VERSION = 1
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "str | None": (str, type(None)),
    "dict[str, Any]": (dict,),
    "dict[str, str]": (dict,),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that is needed to make one image again, and nothing that tells who made it.

    An absolute path in `model` or `scheduler_config` is cut to its last part, `device` to its kind.
    """

    prompt: str  # as the model saw it
    negative_prompt: str = ""
    template: str = ""  # as the user wrote it, before wildcards and choices; empty: the prompt
    steps: int
    sampler: str  # A1111's name, "DPM++ 2M"
    schedule_type: str | None = None  # A1111's name, "Karras"
    scheduler: str  # our name, "dpm++2m-karras"
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    guidance: float
    seed: int  # of this image, not of its batch
    width: int
    height: int
    model: str
    revision: str | None = None
    weights_hash: str | None = None  # sha256, hex
    dtype: str = "float32"
    device: str = "cpu"
    hardware: str = ""  # the processor's name, as its maker calls it
    threads: int = 0  # of the CPU; 0: not known
    batch_size: int = 1  # images drawn at once: another number may round differently
    batch_index: int = 0  # which of them this image was
    machine: dict[str, Any] = field(default_factory=dict)  # what was done to save time or memory: "cache", ...
    versions: dict[str, str] = field(default_factory=dict)
    image_hash: str | None = None  # images.pixel_hash of the picture
    version: int = VERSION  # of this record's format

    def __post_init__(self) -> None:
        put = object.__setattr__  # the one moment at which a frozen dataclass may be changed
        put(self, "template", self.template or self.prompt)
        put(self, "model", public_name(self.model))
        put(self, "device", self.device.partition(":")[0])
        put(self, "scheduler_config", plain_config(self.scheduler_config))

    def parameters(self) -> str:
        """A1111's text form."""
        settings = {
            "Steps": self.steps,
            "Sampler": self.sampler,
            "Schedule type": self.schedule_type,
            "CFG scale": repr(float(self.guidance)).removesuffix(".0"),
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.weights_hash[:10] if self.weights_hash else None,
            "Model": self.model,
            "RNG": "CPU",
            "Version": f"t2i {self.versions.get('t2i', '')}".strip(),
        }
        return infotext.render(self.prompt, self.negative_prompt, settings)

    def to_json(self) -> str:
        """One line of ASCII; `from_json` gives back an equal recipe."""
        data = asdict(self) | {"scheduler_config": _infinities_to_words(self.scheduler_config)}
        return json.dumps(data, ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Raises ImageError for broken JSON, a missing or mistyped field, and a record of a newer format."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise ImageError(f"the t2i record is not valid JSON: {str(e)[:200]}") from None
        if not isinstance(data, dict):
            raise ImageError(f"the t2i record must be a JSON object, got {type(data).__name__}")
        version = data.get("version")
        if isinstance(version, int) and version > VERSION:
            raise ImageError(
                f"the t2i record has format {version}, this t2i reads up to {VERSION}", "pip install -U t2i"
            )
        known = {f.name: str(f.type) for f in fields(cls) if f.name in data}
        for name, kind in known.items():
            if not _is(data[name], kind):
                raise ImageError(f"the t2i record's {name!r} must be {kind}, got {str(data[name])[:80]!r}")
        values = {name: data[name] for name in known}
        try:
            values["scheduler_config"] = _words_to_infinities(values.get("scheduler_config", {}))
            return cls(**values)
        except RecursionError:
            raise ImageError("the t2i record's 'scheduler_config' is nested too deep") from None
        except TypeError as e:  # a field without a default is not there
            raise ImageError(f"the t2i record is incomplete: {e}") from None

    def save_options(self, format: str) -> dict[str, Any]:
        """Pillow's keyword arguments that write this recipe into a file of the given Pillow format."""
        return metadata.embed(format, self.parameters(), self.to_json())


@dataclass(frozen=True)
class Record:
    """What an image file says about how it was made; what it does not say is None."""

    recipe: Recipe | None  # ours
    parameters: str | None  # A1111's text, ours or another tool's
    generated: bool  # marked as made by a trained model
    problems: tuple[str, ...] = ()  # what was there and could not be understood


@dataclass(frozen=True)
class Mark:
    """For a picture without a recipe of its own, such as a grid: says that a model made it, and no more."""

    def save_options(self, format: str) -> dict[str, Any]:
        """As `Recipe.save_options`."""
        return metadata.embed(format)


def public_name(model: str) -> str:
    """A model's name as others may see it: a Hub id or a plain name as it is, of any other path the last part."""
    path = model.replace("\\", "/").rstrip("/")
    is_path = path.startswith(("/", ".", "~")) or ":" in path or path.count("/") > 1
    return path.rpartition("/")[2] if is_path else path


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config as JSON can hold it: no private entries, no tuples, no folders of this machine."""
    plain: dict[str, Any] = _plain(dict(config))
    return plain


def parse_parameters(text: str) -> dict[str, str]:
    """A1111's text as a dict of settings, "Prompt" and "Negative prompt", as A1111 parses it."""
    return infotext.parse(text)


def read(data: bytes | Path, where: str | None = None) -> Record:
    """The record of an image file, from whatever tool it comes.

    Raises ImageError only where the file is no readable image; a damaged record is a problem in the result.
    """
    texts = metadata.extract(open_image(data, where or (str(data) if isinstance(data, Path) else "image")))
    recipe, problems = None, texts.problems
    if texts.json:
        try:
            recipe = Recipe.from_json(texts.json)
        except ImageError as e:
            problems = (*problems, str(e))
    return Record(recipe, texts.parameters, texts.generated, problems)


def _is(value: object, kind: str) -> bool:
    """Whether a JSON value is of a field's type."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if kind == "dict[str, str]":
        return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    return isinstance(value, _KINDS[kind]) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        hidden = ("_name_or_path", "_use_default_values")
        return {str(key): _plain(item) for key, item in value.items() if key not in hidden}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return public_name(value) if value.startswith(("/", "~", "\\")) else value
    return value if value is None or isinstance(value, bool | int | float) else type(value).__name__


def _infinities_to_words(value: Any) -> Any:
    """DPM++ schedulers hold -inf, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: _infinities_to_words(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_infinities_to_words(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _words_to_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _words_to_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_words_to_infinities(item) for item in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
