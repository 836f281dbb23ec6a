"""Verification of model files before loading: only safetensors, only complete, and no code.

Nothing here unpickles, imports or trusts a suffix. Every check reads a bounded amount.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from t2i.atomic import file_hash
from t2i.errors import ModelError, one_line
from t2i.model_files.registry import PICKLES, read_json

MAX_HEADER_BYTES = 32 * 2**20
MAX_HASHED_BYTES = 2**28  # hashing more would slow down every start
NO_WEIGHTS = re.compile(r"Scheduler|Tokenizer|Processor|FeatureExtractor|Guider")
CODE_KEYS = ("auto_map", "custom_pipeline", "transformers_weights")
SAFETY = "safety_checker"  # the one component that a model can draw without
SAFETENSORS_HINT = "use a model whose weights are .safetensors files"

LOADED = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")  # no variants such as fp16


def check_pipeline_folder(folder: Path) -> tuple[str, tuple[Path, ...]]:
    """Verify a pipeline folder without loading it; return the pipeline's class name and its weights files, sorted.

    Raises ModelError: code in the folder, an unsafe component, pickles only, or a damaged weights file.
    """
    kind, components = _read_index(folder)
    weights: list[Path] = []
    unchecked = safety_state(folder) == "missing"
    for name, component in components.items():
        part = folder / name
        if unchecked and (name == SAFETY or (name == "feature_extractor" and not part.is_dir())):
            if part.is_dir():
                _check_files(part, sorted(part.iterdir()))
            continue
        if not part.is_dir() and (folder / "config.json").is_file():
            part = folder  # as google/ddpm-cifar10-32 is published, and as diffusers reads it
        weights += check_component(part, component)
    if not weights:
        raise ModelError(f"{folder.name}: no component with weights in model_index.json", "get the model again")
    return kind, tuple(sorted(weights))


def safety_state(folder: Path) -> str:
    """Return a folder's safety checker: "there", "missing" (named, without safetensors weights), or "none"."""
    value = read_json(folder / "model_index.json").get(SAFETY)
    if not isinstance(value, list) or None in value:
        return "none"
    part = folder / SAFETY
    return "there" if part.is_dir() and any(file.suffix == ".safetensors" for file in part.iterdir()) else "missing"


def check_config_folder(folder: Path) -> str:
    """Verify a folder of configs and tokenizers, and of weights where it has them; return the pipeline's class name.

    Raises ModelError as `check_pipeline_folder` does, except for missing files.
    """
    if not (folder / "model_index.json").is_file():
        message = f"{folder.name} holds no configs of a model: it has no model_index.json"
        raise ModelError(message, "give a diffusers pipeline folder; its weights are not needed")
    kind, components = _read_index(folder)
    for name, component in components.items():
        files = sorted((folder / name).iterdir()) if (folder / name).is_dir() else []
        if any(file.suffix.lower() in (".safetensors", *PICKLES) for file in files):
            check_component(folder / name, component)
        else:
            _check_files(folder / name, files)
    return kind


def check_component_folder(folder: Path) -> tuple[str, tuple[Path, ...]]:
    """Verify a folder of one network, such as a ControlNet; return its class name and its weights files, sorted.

    Raises ModelError as `check_pipeline_folder` does.
    """
    config = folder / "config.json"
    kind = read_json(config).get("_class_name") if config.is_file() else None
    if not isinstance(kind, str):
        message = f"{folder.name} is not a folder of a diffusers network: no config.json names its class"
        raise ModelError(message, "give a folder with config.json and a .safetensors file")
    return kind, tuple(check_component(folder, kind))


def _read_index(folder: Path) -> tuple[str, dict[str, str]]:
    """Return (pipeline class, {component: its class}) of a model_index.json.  Raises ModelError: it names code."""
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if not isinstance(kind, str) or "custom_pipeline" in index or (folder / "pipeline.py").exists():
        raise _carries_code(folder, "pipeline.py, or a pipeline class that is not diffusers' own")
    components = {}
    for name, value in index.items():
        if not isinstance(value, list) or len(value) != 2 or None in value:
            continue
        library, component = value
        if not (name.isidentifier() and _is_safe_library(library)) or str(component).endswith("Pipeline"):
            raise _carries_code(folder, f"component {name[:40]!r} is {str(component)[:40]!r} of {str(library)[:40]!r}")
        components[name] = str(component)
    return kind, components


def check_safetensors(path: Path) -> None:
    """Raise ModelError unless the file is, by its content, a complete safetensors file.

    The message tells apart: empty, Git LFS pointer, pickle under any name, huge header, cut short, damaged.
    """
    where = (Path(path.parent.name) / path.name).as_posix()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as e:
        raise ModelError(f"cannot read {where}: {e.strerror}") from None
    if size == 0:
        raise ModelError(f"{where} is empty (0 bytes)", "the download or copy failed: get the file again")
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"{where} is a Git LFS pointer, not the weights", "run `git lfs pull` where it was cloned")
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length > 2**40:
        if head.startswith((b"PK\x03\x04", b"\x80")) or head[:1] in (b"(", b"c"):
            raise ModelError(f"{where} is a pickle, whatever its name: loading it can run any code", SAFETENSORS_HINT)
        raise ModelError(f"{where} is not a safetensors file", SAFETENSORS_HINT)
    if length > MAX_HEADER_BYTES:
        raise ModelError(f"{where}: its header claims {length} bytes, allowed are {MAX_HEADER_BYTES}", SAFETENSORS_HINT)
    if length + 8 > size:
        raise ModelError(f"{where} is cut short: {size} bytes, its header alone has {length}", "get the file again")
    _check_tensors(path, where)


def weights_hash(files: Sequence[Path], root: Path) -> str | None:
    """Return the sha256 (hex) of the weights; None where they are too large to hash at every start.

    For one file it is its own sha256, as other tools give it; for several, that of the lines `path sha256`, sorted.
    """
    if sum(file.stat().st_size for file in files) > MAX_HASHED_BYTES:
        return None
    if len(files) == 1:
        return hash_weights(files[0])
    lines = sorted(f"{file.relative_to(root).as_posix()} {hash_weights(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of the tensors in a verified safetensors file; none is read."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}


def _is_safe_library(library: Any) -> bool:
    """Return whether model_index.json may name this library: any other would be imported, and so run."""
    if library in ("diffusers", "transformers") or str(library).startswith("t2i.nn."):
        return True
    spec = find_spec("diffusers")  # without importing it
    places = (spec.submodule_search_locations if spec else None) or ()
    return str(library).isidentifier() and any((Path(p) / "pipelines" / str(library)).is_dir() for p in places)


def check_component(folder: Path, component: str) -> list[Path]:
    """Verify the folder of one component without loading it; return its weights files.  Raises ModelError."""
    where = f"{folder.parent.name}/{folder.name}"
    if not folder.is_dir():
        raise ModelError(f"{where}: the folder of this component is missing", "the model is incomplete: get it again")
    files = sorted(folder.iterdir())
    _check_files(folder, files)
    if NO_WEIGHTS.search(component):
        return []
    weights = [file for file in files if file.suffix == ".safetensors"]
    for file in weights:
        check_safetensors(file)
    if not weights:
        pickles = [file.name for file in files if file.suffix.lower() in PICKLES]
        if pickles:
            raise ModelError(f"{where}: only pickled weights ({pickles[0]}); they can run any code", SAFETENSORS_HINT)
        raise ModelError(f"{where}: no .safetensors weights", "the model is incomplete: get it again")
    return weights


def _check_files(folder: Path, files: Sequence[Path]) -> None:
    """Raise ModelError where one of a component's files is code, asks for code, or names shards elsewhere."""
    for file in files:
        if file.suffix.lower() == ".py" or file.name == "adapter_config.json":
            raise _carries_code(folder.parent, f"{folder.name}/{file.name}")
        if file.name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "scheduler_config.json"):
            found = [key for key in CODE_KEYS if key in read_json(file)]
            if found:
                raise _carries_code(folder.parent, f"{found[0]!r} in {folder.name}/{file.name}")
        if file.name.endswith(".index.json"):
            _check_shards(file)


def _check_shards(index: Path) -> None:
    """Raise ModelError unless the files that a shard index names are safetensors files next to it."""
    shards = read_json(index).get("weight_map")
    for shard in set(shards.values()) if isinstance(shards, dict) else ():
        if not isinstance(shard, str) or os.path.basename(shard) != shard or not shard.endswith(".safetensors"):
            if str(shard).endswith(PICKLES) and not index.name.endswith(".safetensors.index.json"):
                return  # the index of the pickled twin, which is never read
            raise ModelError(f"{index.parent.name}/{index.name} names {str(shard)[:80]!r}, which is no shard of it")


def _check_tensors(path: Path, where: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            if not list(file.keys()):
                raise ModelError(f"{where} holds no tensors", "get the file again")
    except (SafetensorError, OSError, ValueError) as e:
        reason = one_line(e, 160)
        raise ModelError(f"{where} is damaged or cut short: {reason}", "get the file again") from None


def hash_weights(path: Path) -> str:
    """Return the sha256 (hex) of a file of weights."""
    blob = path.resolve().name
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob) and path.resolve().parent.name == "blobs":
        return blob  # the Hub's cache names its large files by their sha256
    return file_hash(path)


def _carries_code(folder: Path, what: Any) -> ModelError:
    return ModelError(
        f"{folder.name} carries its own code ({what}); t2i never runs code that comes with a model",
        "use a model that needs none",
    )
