"""Files of adapters: find them on this machine or on the Hub, and verify them as model files are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from t2i.errors import ModelError, ModelUnavailable, UsageError
from t2i.model_files.hub_api import OFFLINE
from t2i.model_files.registry import PICKLES
from t2i.model_files.weight_files import SAFETENSORS_HINT, check_safetensors, hash_weights
from t2i.pipelines.adapters.specs import Adapters

USUAL = ("pytorch_lora_weights.safetensors", "learned_embeds.safetensors")  # as diffusers' training scripts save
HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./ -]+))?")
SHOWN = 6  # names in a message


@dataclass(frozen=True)
class AdapterFile:
    """A verified .safetensors file.  name: for records, without folders of this machine.  sha256: of the file."""

    path: Path
    name: str
    sha256: str

    @property
    def stem(self) -> str:
        """Return the name under which A1111 knows it."""
        return self.path.stem

    def autov3(self) -> str:
        """Return the sha256 of all after the header, by which A1111 identifies LoRAs though their metadata changes."""
        with self.path.open("rb") as file:
            file.seek(int.from_bytes(file.read(8), "little") + 8)
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Found:
    """The files of `Adapters`, in the same order."""

    loras: tuple[AdapterFile, ...] = ()
    embeddings: tuple[AdapterFile, ...] = ()
    ip_adapters: tuple[AdapterFile, ...] = ()


def find_all(adapters: Adapters, offline: bool = False) -> Found:
    """Find and verify all files of these adapters.  Raises as `find` does."""
    return Found(
        tuple(find(lora.path, "lora", offline) for lora in adapters.loras),
        tuple(find(embedding.path, "embedding", offline) for embedding in adapters.embeddings),
        tuple(find(adapter.path, "ip_adapter", offline) for adapter in adapters.ip_adapters),
    )


def find(location: str, option: str = "lora", offline: bool = False) -> AdapterFile:
    """Find and verify the file at `location`: a file, a folder that holds one, or the Hub's owner/name[/file].

    option: the field that names it, or the placeholder of an argument, for messages.
    Raises UsageError (no such file, or several), ModelUnavailable (the Hub), ModelError (a pickle, damaged).
    """
    path = Path(location).expanduser()
    name = ""
    if path.is_dir():
        path = _only_file(path, option)
    elif not path.is_file():
        match = HUB.fullmatch(location)
        if match is None or _is_local(path):
            raise UsageError(f"{_named(option, location)}: no such file", "a .safetensors file, a folder, or a Hub id")
        path, file = _from_hub(match[1], match[2], option, offline)
        name = f"{match[1]}/{file}"
    check_safetensors(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"{path.name}: by its content a safetensors file", "rename it to end in .safetensors")
    status = path.stat()
    return AdapterFile(path, name or path.name, _hash(path, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=256)
def _hash(path: Path, size: int, time: int) -> str:
    """Hash a file once.  size, time: of the file; it is hashed again when either changes."""
    return hash_weights(path)


def _is_local(path: Path) -> bool:
    """Return whether a missing path was meant for this machine, not the Hub: it begins with a folder that exists."""
    parts = path.parts
    return path.is_absolute() or parts[0] in (".", "..", "~") or (len(parts) > 1 and Path(parts[0]).is_dir())


def _only_file(folder: Path, option: str) -> Path:
    files = sorted(file for file in folder.iterdir() if file.suffix == ".safetensors")
    chosen = _choose([file.name for file in files], folder.name, option)
    if chosen is not None:
        return folder / chosen
    pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix.lower() in PICKLES]
    if pickles:
        raise ModelError(f"{folder.name}: only pickled weights ({pickles[0]}); they can run any code", SAFETENSORS_HINT)
    raise UsageError(f"{_named(option, folder)}: no .safetensors file in this folder")


def _choose(names: Sequence[str], where: str, option: str) -> str | None:
    """Choose the only or the usual file; None where there is none.  Raises UsageError for an ambiguous choice."""
    usual = [name for name in names if name in USUAL]
    if len(usual) == 1 or len(names) == 1:
        return (usual or list(names))[0]
    if names:
        shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        raise UsageError(f"{_named(option, where)}: {len(names)} files, one must be named", shown)
    return None


def _from_hub(id: str, file: str | None, option: str, offline: bool) -> tuple[Path, str]:
    """Return (the file in the Hub's cache, its name there), downloading it where needed and allowed."""
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.constants import is_offline_mode

    offline = offline or is_offline_mode()
    try:
        if file is None:
            names = _cached(id) if offline else list_repo_files(id)
            file = _choose([name for name in names if re.fullmatch(r"[^/]+\.safetensors", name)], id, option)
        if file is not None:
            return Path(hf_hub_download(id, file, local_files_only=offline)), file
    except UsageError:
        raise
    except Exception as e:  # the Hub's answers and the HTTP library's own errors, whichever library that is
        why = OFFLINE if offline else f"the Hub says {type(e).__name__}"
        message = f"{_named(option, f'{id}/{file}' if file else id)}: no such file here, not in the cache, and {why}"
        command = f"hf download {f'{id} {file}' if file else id}"
        raise ModelUnavailable(message, f"with a network, `{command}` gets it") from None
    where = "in the cache" if offline else "on the Hub"
    raise ModelUnavailable(f"{_named(option, id)}: no .safetensors file of it is {where}", "owner/name/file names one")


def _named(option: str, location: str | Path) -> str:
    """Return a file as a message names it: an option with its value, or an argument's placeholder before it."""
    return f"{option} {location}" if option.isupper() else f"`{option}={location}`"


def _cached(id: str) -> list[str]:
    """Return the files of a Hub repository that are in the cache."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(id, local_files_only=True, allow_patterns=["*.safetensors"]))
    return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*.safetensors"))]
