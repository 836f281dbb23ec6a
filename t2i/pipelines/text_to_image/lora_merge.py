"""Merge LoRAs into a model: a new pipeline folder that draws the same images without them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2i.errors import ModelError, T2IError, UsageError, one_line
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.locate import ModelFiles
from t2i.model_files.registry import MODEL_FILE, read_json
from t2i.model_files.weight_files import check_pipeline_folder
from t2i.pipelines.adapters.attach import AttachedAdapters, attach
from t2i.pipelines.adapters.files import find_all
from t2i.pipelines.adapters.specs import Adapters
from t2i.pipelines.loading.load import load_pipeline
from t2i.pipelines.prompts.tokenizers import load_tokenizers

SAVED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def merge(files: ModelFiles, adapters: Adapters, folder: Path, offline: bool = False) -> AttachedAdapters:
    """Write the model with these LoRAs into `folder`, atomically, and never over an existing one.

    Merged in float32 and saved in the dtype of the model's own files.  Returns the merged adapters.
    Raises UsageError (the folder exists, a pipeline that takes no LoRA), ModelError (a LoRA that does not match).
    """
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists already", "choose another folder: `output`")
    found = find_all(adapters, offline)
    pipe = load_pipeline(files, "cpu", "float32", load_tokenizers(files))
    attached = attach(pipe, files.model.name, adapters, found)
    _fuse(pipe, files.model.name)
    temporary = folder.parent / f".t2i-{secrets.token_hex(8)}.tmp"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with silence_libraries():
            _cast(pipe, saved_dtype(files.weights))
            pipe.save_pretrained(temporary, safe_serialization=True)
        _complete(temporary, files, attached)
        check_pipeline_folder(temporary)
        os.rename(temporary, folder)
    except OSError as e:
        raise T2IError(f"cannot write {folder}: {e.strerror or e}", "choose another folder: `output`") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return attached


def saved_dtype(weights: Sequence[Path]) -> str:
    """Return the dtype of a model's largest file."""
    from safetensors import safe_open

    with safe_open(max(weights, key=lambda path: path.stat().st_size), framework="np") as file:
        names = {str(file.get_slice(name).get_dtype()) for name in list(file.keys())}
    return next((dtype for name, dtype in SAVED_DTYPES.items() if name in names), "float32")


def _fuse(pipe: Any, model: str) -> None:
    parts = [name for name in pipe._lora_loadable_modules if getattr(pipe, name, None) is not None]
    with silence_libraries():
        try:
            pipe.fuse_lora(components=parts, safe_fusing=True)
        except ValueError as e:  # of peft, for NaN and infinity
            reason = one_line(e)
            raise ModelError(f"cannot merge into {model}: {reason}", "try a smaller scale") from e
        pipe.unload_lora_weights()


def _cast(pipe: Any, dtype: str) -> None:
    import torch

    pipe.to(getattr(torch, dtype))


def _complete(folder: Path, files: ModelFiles, attached: AttachedAdapters) -> None:
    """Add our defaults of the model and a model card with the merged LoRAs; remove paths of this machine."""
    if (files.path / MODEL_FILE).is_file():
        shutil.copyfile(files.path / MODEL_FILE, folder / MODEL_FILE)
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = {key: value for key, value in read_json(path).items() if key != "_name_or_path"}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    lines = [f"- {one['name']}, scale {one['scale']:g}, sha256 {one['sha256']}" for one in attached.records]
    text = f"# {files.model.name} with LoRAs merged in\n\n" + "\n".join(lines) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
