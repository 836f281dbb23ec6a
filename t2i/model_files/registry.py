"""The model registry: names, where each model is, and the settings it draws best with.

Distilled models need other steps and guidance than their pipeline class has by default, so defaults are kept per
model. A field that is None is not known: the pipeline's own default holds. Nothing here uses the network.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from t2i.errors import ModelError, ModelUnavailable

MINI = Path(__file__).parents[1] / "mini"  # the embedded model, a plain Stable Diffusion folder
MODEL_FILE = "t2i.json"  # a pipeline folder may carry its own defaults in it
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
MAX_JSON_BYTES = 8_000_000  # shard indices of large models take a few


@dataclass(frozen=True)
class Defaults:
    """Default settings of a model; None where they are not known.

    size: (width, height) in pixels.  dtype: on a GPU; on a CPU it is float32.
    guidance_name: the pipeline's argument that means classifier-free guidance.
    """

    name: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    scheduler: str | None = None
    dtype: str | None = None
    license: str | None = None
    guidance_name: str = "guidance_scale"


@dataclass(frozen=True)
class Entry:
    """A named model: its Hub id, the settings it draws best with, and whether its licence must be accepted first.

    revision: the Hub's commit that the name stands for; None: whatever `main` is, since no commit is known to be good.
    """

    id: str
    defaults: Defaults
    gated: bool = False
    revision: str | None = None


def _entry(
    id: str,
    steps: int,
    guidance: float,
    pixels: int,
    dtype: str,
    license: str | None = None,
    *,
    gated: bool = False,
    guidance_name: str = "guidance_scale",
    revision: str | None = None,
) -> Entry:
    size = (pixels, pixels)
    defaults = Defaults(None, steps, guidance, size, None, dtype, license, guidance_name)
    return Entry(id, defaults, gated, revision)


# Steps, guidance, pixels and dtype as the models' cards and diffusers' documentation give them.
ZOO: dict[str, Entry] = {
    "sd15": _entry("stable-diffusion-v1-5/stable-diffusion-v1-5", 50, 7.5, 512, "float16"),
    "sdxl": _entry("stabilityai/stable-diffusion-xl-base-1.0", 50, 5.0, 1024, "float16"),
    "sdxl-turbo": _entry("stabilityai/sdxl-turbo", 1, 0.0, 512, "float16", "commercial use may need a licence"),
    "sd35-medium": _entry("stabilityai/stable-diffusion-3.5-medium", 28, 7.0, 1024, "bfloat16", gated=True),
    "sd35-large": _entry("stabilityai/stable-diffusion-3.5-large", 28, 7.0, 1024, "bfloat16", gated=True),
    "flux-schnell": _entry("black-forest-labs/FLUX.1-schnell", 4, 0.0, 1024, "bfloat16", "Apache-2.0"),
    "flux-dev": _entry("black-forest-labs/FLUX.1-dev", 28, 3.5, 1024, "bfloat16", "non-commercial", gated=True),
    "flux2-klein-4b": _entry("black-forest-labs/FLUX.2-klein-4B", 4, 1.0, 1024, "bfloat16", "Apache-2.0"),
    "z-image-turbo": _entry("Tongyi-MAI/Z-Image-Turbo", 8, 0.0, 1024, "bfloat16", "Apache-2.0"),
    "qwen-image": _entry("Qwen/Qwen-Image", 50, 4.0, 1024, "bfloat16", guidance_name="true_cfg_scale"),
    "pixart-sigma": _entry("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", 20, 4.5, 1024, "float16"),
    "sana": _entry("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", 20, 4.5, 1024, "bfloat16"),
    "sana-sprint": _entry("Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", 2, 4.5, 1024, "bfloat16"),
    "chroma": _entry("lodestones/Chroma1-HD", 40, 3.0, 1024, "bfloat16", "Apache-2.0"),
}
NAMES = ("mini", *ZOO)


@dataclass(frozen=True)
class ResolvedModel:
    """A model's location.

    kind: "folder" (location is its path), "file" (one safetensors file) or "hub" (location is owner/name).
    name: for display and records, never an absolute path.  revision: the commit that the registry pins.
    """

    kind: Literal["folder", "hub", "file"]
    location: str
    name: str
    defaults: Defaults
    gated: bool = False
    revision: str | None = None


def resolve(model: str) -> ResolvedModel:
    """Resolve a model's name: a registered name, else a path on disk, else a Hub id.

    A folder is a diffusers pipeline, or holds one in `export/` (a training run). Registered names come first: a folder
    called `mini` is `./mini`.
    Raises ModelUnavailable (no such name or path, with near misses) and ModelError (neither pipeline nor safetensors).
    """
    if model == "mini":
        return _resolve_mini()
    if model in ZOO:
        entry = ZOO[model]
        return ResolvedModel("hub", entry.id, model, entry.defaults, entry.gated, entry.revision)
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return _resolve_folder(path)
        if path.is_file():
            return _resolve_file(path)
    except (OSError, ValueError, RuntimeError):  # NUL, a name too long, ~nobody: not a path, then
        pass
    if HUB_ID.fullmatch(model) and Path(model).suffix not in (*PICKLES, ".safetensors"):
        return hub_model(model)
    raise _no_such_model(model)


def hub_model(id: str) -> ResolvedModel:
    """Resolve a Hub id to its newest revision, with the registry's defaults where it has them."""
    known = {entry.id: entry for entry in ZOO.values()}.get(id)
    return ResolvedModel("hub", id, id, known.defaults if known else Defaults(), bool(known and known.gated))


def model_defaults(folder: Path, fallback: Defaults) -> Defaults:
    """Return the defaults in the folder's `t2i.json` over `fallback`; `fallback` where the folder carries none.

    Raises ModelError when the file is there and cannot be read.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        return fallback
    known = {field.name for field in fields(Defaults)}
    values = {key: value for key, value in read_json(path).items() if key in known and value is not None}
    try:
        return replace(fallback, **{key: _DEFAULT_READERS[key](value) for key, value in values.items()})
    except (TypeError, ValueError, OverflowError) as e:
        raise ModelError(f"{folder.name}/{MODEL_FILE}: bad value ({e})", "fix or remove the file") from None


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a model's small JSON file, of bounded size.  Raises ModelError."""
    where = f"{path.parent.name}/{path.name}"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
        if len(raw) > MAX_JSON_BYTES:
            raise ModelError(f"{where}: more than {MAX_JSON_BYTES} bytes for a config")
        data = json.loads(raw)
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(f"{where}: not readable as JSON ({type(e).__name__})", "get the model again") from None
    if not isinstance(data, dict):
        raise ModelError(f"{where}: expected a JSON object, got {type(data).__name__}")
    return data


def near(model: str) -> list[str]:
    """Return registered names similar to `model`, best first, at most three."""
    wanted = model.rsplit("/", 1)[-1].lower()
    return difflib.get_close_matches(wanted, NAMES, n=3, cutoff=0.6)


def _size(value: Any) -> tuple[int, int]:
    width, height = (value, value) if isinstance(value, int) else value
    return int(width), int(height)


_DEFAULT_READERS: dict[str, Any] = {
    "name": str,
    "steps": int,
    "guidance": float,
    "size": _size,
    "scheduler": str,
    "dtype": str,
    "license": str,
    "guidance_name": str,
}


def _resolve_mini() -> ResolvedModel:
    if not (MINI / "model_index.json").is_file():
        message = "this installation of t2i carries no embedded model (t2i/mini)"
        raise ModelUnavailable(message, "reinstall t2i, or choose another `model`")
    return ResolvedModel("folder", str(MINI), "mini", model_defaults(MINI, Defaults()))


def _resolve_folder(path: Path) -> ResolvedModel:
    name = path.resolve().name
    path = Path(os.path.abspath(path))  # "." has no name to be called by; links stay
    for folder in (path, path / "export"):
        if (folder / "model_index.json").is_file():
            return ResolvedModel("folder", str(folder), name, model_defaults(folder, Defaults()))
    if (path / "export" / "config.json").is_file():
        kind = str(read_json(path / "export" / "config.json").get("_class_name", "network"))[:40]
        raise ModelError(f"{name} is a training run whose export, a {kind}, draws no images by itself")
    if (path / "config.yaml").is_file():
        raise ModelError(f"{name} is a training run that has exported nothing yet", "let its t2i train command end")
    raise ModelError(
        f"{name} is not a model: it has no model_index.json",
        "give a diffusers pipeline folder, a finished training run, or one .safetensors file",
    )


def _resolve_file(path: Path) -> ResolvedModel:
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{path.name}: a {path.suffix} file is a pickle, and loading it can run any code; it was not opened",
            "get the model's .safetensors file",
        )
    return ResolvedModel("file", str(path), path.name, Defaults())


def _no_such_model(model: str) -> ModelUnavailable:
    if Path(model).suffix in (*PICKLES, ".safetensors") or model.startswith((".", "/", "~")) or "\\" in model:
        return ModelUnavailable(f"no model at {model!r}: no such file or folder", "check the path")
    guesses = near(model)
    shown = model if len(model) <= 80 else model[:77] + "..."
    hint = f"did you mean {' or '.join(guesses)}?" if guesses else f"names: {', '.join(NAMES)}"
    return ModelUnavailable(f"no model named {shown!r}", f"{hint} (also: a folder, owner/name, a .safetensors file)")
