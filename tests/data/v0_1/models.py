"""Build the small models of the fixtures: weights that are the same bits on every machine, under any library version.

Each file `NAME.safetensors.json` below `models/` stands for a file of weights and lists the shapes in it, as the test
kits of t2i 0.1 saved them. `build` writes the weights: integers of a frozen generator over a power of two, so that no
rounding is left to the machine. All other files of the models are copied as they are. A folder with `like.json` is
another one with other seeds, and with its own files in the place of those of the same name.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

HERE = Path(__file__).parent
SHAPES = ".safetensors.json"
STEPS = 2**10  # weights are whole multiples of 1 / STEPS of their bound: float16 holds them exactly


def workspace(target: Path) -> Path:
    """Fill a folder with what the commands of the fixtures find where they run: inputs, models and adapters."""
    shutil.copytree(HERE / "work", target, dirs_exist_ok=True)
    return build(target)


def build(target: Path) -> Path:
    """Write every model and adapter of `models/` into the folder `target`, and return it."""
    models = HERE / "models"
    for like in models.glob("*/like.json"):
        about = json.loads(like.read_text(encoding="utf-8"))
        _build(models / about["model"], target / like.parent.name, about["seed"])
    _build(models, target, 0)
    return target


def _build(model: Path, target: Path, seed: int) -> None:
    for source in sorted(model.rglob("*")):
        path = target / source.relative_to(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            continue
        if source.name.endswith(SHAPES):
            about = json.loads(source.read_text(encoding="utf-8"))
            write_weights(about | {"seed": about["seed"] ^ seed}, path.with_suffix(""))
        elif source.name != "like.json":
            shutil.copyfile(source, path)


def write_weights(about: dict[str, Any], path: Path) -> None:
    """Write one file of weights.

    Args:
        about: `seed`; `gain`, a factor of every bound; `metadata`, of the file, or None; `shapes` by tensor name.
        path: The file.
    """
    header: dict[str, Any] = {} if about["metadata"] is None else {"__metadata__": about["metadata"]}
    data = []
    end = 0
    for name, shape in sorted(about["shapes"].items()):
        data.append(_tensor(name, shape, about).tobytes())
        begin, end = end, end + len(data[-1])
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    # By hand: safetensors writes metadata in another order each time, and with them goes the hash of the file.
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def _tensor(name: str, shape: list[int], about: dict[str, Any]) -> Any:
    """Draw float32 weights as wide as torch's own start for a layer of this shape; norms begin near one."""
    import numpy as np

    inputs = math.prod(shape[1:]) if len(shape) > 1 else 64
    bound = about["gain"] * 2.0 ** round(-math.log2(inputs) / 2)
    # RandomState's stream is frozen by numpy's own promise, where Generator's and torch's are not.
    draws = np.random.RandomState(crc32(name.encode()) ^ about["seed"]).randint(-STEPS, STEPS + 1, size=shape)
    values = draws.astype(np.float32) * np.float32(bound / STEPS)
    return values + np.float32(1) if len(shape) == 1 and "norm" in name and name.endswith("weight") else values


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of weights below a folder that `build` has filled."""
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def machine() -> dict[str, Any]:
    """Name what decides the last bits of a computation: where all of it is the same, so are the bits."""
    from importlib.metadata import version

    import torch

    libraries = ("torch", "diffusers", "transformers", "peft", "compel", "pillow", "numpy")
    return {
        "processor": _cpuinfo("model name") or platform.processor(),
        "instructions": sorted(one for one in _cpuinfo("flags").split() if one.startswith(("avx", "amx", "fma"))),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in libraries},
    }


def _cpuinfo(key: str) -> str:
    """Read one line of /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
