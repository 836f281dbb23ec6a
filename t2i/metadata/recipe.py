"""The record of how an image was made: its JSON form, and reading it back from a file.

The JSON is exact for every text: it is pure ASCII, so that NUL, control characters and lone surrogates are escaped.
In A1111's text NUL and lone surrogates become U+FFFD, since PNG cannot hold them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from t2i.config.options import OPTIONS
from t2i.errors import ImageError
from t2i.imaging.decoding import open_image
from t2i.metadata import a1111, embedding
from t2i.metadata.jsonable import infinities_to_words, is_of_kind, plain_config, public_name, words_to_infinities

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that is needed to reproduce one image, and nothing that identifies its maker.

    An absolute path in `model` or `scheduler_config` is cut to its last part, `device` to its kind.
    """

    prompt: str  # after wildcards and choices
    negative_prompt: str = ""
    template: str = ""  # as the user wrote it, before wildcards and choices; empty: the prompt
    negative_template: str = ""  # likewise; empty: the negative prompt
    reading: dict[str, Any] = field(default_factory=dict)  # weights, chunks; empty: as plain text, cut at the end
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
    adapters: list[dict[str, Any]] = field(default_factory=list)  # kind, name, sha256, and scale, token or image
    dtype: str = "float32"
    device: str = "cpu"
    hardware: str = ""  # the processor's name, as its maker calls it
    threads: int = 0  # of the CPU; 0: not known
    batch_size: int = 1  # images drawn at once: another number may round differently
    batch_index: int = 0  # which of them this image was
    machine: dict[str, Any] = field(default_factory=dict)  # what is not default: see pipelines/loading/plan.py
    safety: str = ""  # of the model's own checker: "checked", "off", "none here"; empty: not known
    versions: dict[str, str] = field(default_factory=dict)
    image_hash: str | None = None  # images.pixel_hash of the image
    edit: dict[str, Any] = field(default_factory=dict)  # the input images; empty: the prompt alone
    options: dict[str, Any] = field(default_factory=dict)  # further ones that were set, by name: see config/options.py
    version: int = VERSION  # of this record's format

    def __post_init__(self) -> None:
        put = object.__setattr__  # the one moment at which a frozen dataclass may still be changed
        put(self, "template", self.template or self.prompt)
        put(self, "negative_template", self.negative_template or self.negative_prompt)
        put(self, "model", public_name(self.model))
        put(self, "device", self.device.partition(":")[0])
        put(self, "scheduler_config", plain_config(self.scheduler_config))

    def parameters(self) -> str:
        """Render A1111's text form."""
        denoising = _denoising(self.edit)
        # A1111 records the size of the first of two passes
        size = self.edit.get("size") if "Hires upscale" in denoising else None
        settings = {
            "Steps": self.steps,
            "Sampler": self.sampler,
            "Schedule type": self.schedule_type,
            "CFG scale": repr(float(self.guidance)).removesuffix(".0"),
            "Seed": self.seed,
            "Size": "x".join(map(str, size or (self.width, self.height))),
            "Model hash": self.weights_hash[:10] if self.weights_hash else None,
            "Model": self.model,
            "Lora hashes": _hashes(self.adapters, "lora"),
            "TI hashes": _hashes(self.adapters, "embedding"),
            **denoising,
            **labelled(self.options),
            "RNG": "CPU",
            "Version": f"t2i {self.versions.get('t2i', '')}".strip(),
        }
        return a1111.render(self.prompt, self.negative_prompt, settings)

    def to_json(self) -> str:
        """Return one line of ASCII, from which `from_json` restores an equal recipe."""
        data = asdict(self) | {"scheduler_config": infinities_to_words(self.scheduler_config)}
        return json.dumps(data, ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Parse a recipe.  Raises ImageError: broken JSON, a missing or mistyped field, a newer format."""
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
            if not is_of_kind(data[name], kind):
                raise ImageError(f"the t2i record's {name!r} must be {kind}, got {str(data[name])[:80]!r}")
        values = {name: data[name] for name in known}
        try:
            values["scheduler_config"] = words_to_infinities(values.get("scheduler_config", {}))
            return cls(**values)
        except RecursionError:
            raise ImageError("the t2i record's 'scheduler_config' is nested too deep") from None
        except TypeError as e:  # a field without a default is not there
            raise ImageError(f"the t2i record is incomplete: {e}") from None

    def save_options(self, format: str) -> dict[str, Any]:
        """Return Pillow's keyword arguments that write this recipe into a file of the given Pillow format."""
        return embedding.embed(format, self.parameters(), self.to_json())


@dataclass(frozen=True)
class Record:
    """The metadata found in an image file; None: not there."""

    recipe: Recipe | None  # ours
    parameters: str | None  # A1111's text, ours or another tool's
    generated: bool  # marked as made by a trained model
    problems: tuple[str, ...] = ()  # texts that are there and could not be parsed


@dataclass(frozen=True)
class Mark:
    """A mark for an image without a recipe of its own, such as a grid: made by a model."""

    def save_options(self, format: str) -> dict[str, Any]:
        """Return Pillow's keyword arguments, like `Recipe.save_options`."""
        return embedding.embed(format)


def parse_parameters(text: str) -> dict[str, str]:
    """Parse A1111's text into a dict of settings, "Prompt" and "Negative prompt", as A1111 does."""
    return a1111.parse(text)


def read(data: bytes | Path, where: str | None = None) -> Record:
    """Read the record of an image file of any tool.

    Raises ImageError only where the file is no readable image; a damaged record is listed among the problems.
    """
    texts = embedding.extract(open_image(data, where or (str(data) if isinstance(data, Path) else "image")))
    recipe, problems = None, texts.problems
    if texts.json:
        try:
            recipe = Recipe.from_json(texts.json)
        except ImageError as e:
            problems = (*problems, str(e))
    return Record(recipe, texts.parameters, texts.generated, problems)


def labelled(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a record under A1111's names, where it has them."""
    known = {name: OPTIONS[name].option.a1111 for name in options if name in OPTIONS}
    return {label: options[name] for name, label in known.items() if label}


def _hashes(adapters: Sequence[Mapping[str, Any]], kind: str) -> str | None:
    """Return `name: hash, name: hash` as A1111 writes it; a LoRA's hash leaves out its header."""
    pairs = []
    for adapter in adapters:
        if adapter.get("kind") == kind:
            stem = str(adapter.get("name", "")).rpartition("/")[2].removesuffix(".safetensors")
            digits = str(adapter.get("autov3") or adapter.get("sha256", ""))[:12]
            pairs.append(f"{adapter.get('token') or stem}: {digits}")
    return ", ".join(pairs) or None


def _denoising(edit: Mapping[str, Any]) -> dict[str, Any]:
    """Return A1111's settings for a strength: of image-to-image, or else of the second pass."""
    if "image" in edit:
        return {"Denoising strength": edit.get("strength")}
    second = edit.get("upscale")
    if not isinstance(second, Mapping):
        return {}
    return {
        "Denoising strength": second.get("strength"),
        "Hires upscale": str(second.get("factor")).removesuffix(".0"),
        "Hires upscaler": "Lanczos",
    }
