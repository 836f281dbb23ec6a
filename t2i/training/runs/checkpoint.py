"""Checkpoints: folders of safetensors and JSON, written atomically.

A checkpoint is written to a temporary folder, its manifest (size and sha256 of each file) last, synced, and renamed.
An interruption leaves a folder that is reported and skipped. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from t2i.atomic import file_hash
from t2i.errors import CheckpointError

FORMAT = 1
PARTS = ("model", "ema", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `state["images_seen"]` images.

    tensors: {"model" | "ema" | "optimizer": {name: tensor}}.  state: plain JSON values.
    """

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(final: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint folder atomically.

    Raises CheckpointError when it cannot be written (disk full, no permission), with the space it needs.
    """
    from safetensors import SafetensorError

    partial = final.with_name(final.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_parts(partial, checkpoint)
        shutil.rmtree(final, ignore_errors=True)  # one of the same step, damaged or superseded
        partial.rename(final)
        _sync(final.parent)
    except (OSError, SafetensorError) as e:  # safetensors wraps errors of the disk
        shutil.rmtree(partial, ignore_errors=True)
        need = sum(t.nbytes for part in checkpoint.tensors.values() for t in part.values())
        reason = getattr(e, "strerror", None) or e
        raise CheckpointError(
            f"cannot save checkpoint {final}: {reason}; it needs {need / 1e6:.1f} MB",
            "free some space and run the same command again: it resumes from the previous checkpoint",
        ) from e


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint after checking every file against the manifest.

    Raises CheckpointError naming the file that is missing, empty, truncated or changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = _read_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"format {manifest.get('format')!r}; this version of t2i reads {FORMAT}")
    if manifest.pop("sha256", None) not in (None, _json_hash(manifest)):
        raise CheckpointError("checksum mismatch: manifest.json")
    for name in [*(f"{part}.safetensors" for part in PARTS), "state.json"]:
        if name not in manifest["files"]:
            raise CheckpointError(f"{name} is missing")
        _check(folder / name, **manifest["files"][name])
    try:
        tensors = {part: load_file(folder / f"{part}.safetensors") for part in PARTS}
    except SafetensorError as e:
        raise CheckpointError(f"not the safetensors files of a checkpoint: {e}") from None
    return Checkpoint(tensors, _read_json(folder / "state.json"))


def check_fit(part: str, saved: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    """Check that saved tensors match a model.

    Raises CheckpointError naming the first tensor that is missing, has another shape, or is not the model's.
    """
    for name in [*now, *saved]:
        shapes = [str(tuple(tensors[name].shape)) if name in tensors else "not there" for tensors in (saved, now)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"the checkpoint does not fit: in its {part} part {name} is {shapes[0]}, in this model {shapes[1]}",
                "keep the model that the run was started with; --fresh starts over, --run DIR takes another folder",
            )


def tensors_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 over names, shapes, types and bytes: equal exactly when all tensors are equal bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check(path: Path, size: int, sha256: str) -> None:
    """Check a file against its entry in the manifest.  Raises CheckpointError."""
    name = path.name
    if not path.is_file():
        raise CheckpointError(f"{name} is missing")
    found = path.stat().st_size
    if not found:
        raise CheckpointError(f"{name} is empty, of {size} bytes")
    with path.open("rb") as f:
        if f.read(64).startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{name} is a git-lfs pointer, not the file itself")
    if found < size:
        raise CheckpointError(f"{name} has {found} bytes of {size}: cut short")
    if file_hash(path) != sha256:
        raise CheckpointError(f"checksum mismatch: {name}")


def _write_parts(folder: Path, checkpoint: Checkpoint) -> None:
    from safetensors.torch import save_file

    for part in PARTS:
        tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors[part].items()}
        save_file(tensors, folder / f"{part}.safetensors")
    (folder / "state.json").write_text(json.dumps(checkpoint.state, indent=1))
    files = {p.name: {"size": p.stat().st_size, "sha256": file_hash(p)} for p in sorted(folder.iterdir())}
    for name in files:
        _sync(folder / name)
    manifest: dict[str, Any] = {"format": FORMAT, "files": files}
    manifest["sha256"] = _json_hash(manifest)  # its own, so that damage to it is not taken for damage to another file
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    _sync(folder / "manifest.json")
    _sync(folder)


def _json_hash(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    """Force a file or folder entry to the disk, so that a rename never overtakes the bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path.name} is missing or damaged ({type(e).__name__})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} is damaged")
    return value
