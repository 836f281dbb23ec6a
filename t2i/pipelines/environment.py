"""The environment of a drawing for records: hardware, threads, versions; never a host or a user."""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device_name(device: torch.device | str) -> str:
    """Return the name of the hardware: `NVIDIA H100 80GB HBM3`, `AMD EPYC 9R14`."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xpu":
        return str(torch.xpu.get_device_name(device))
    return _processor() if device.type == "cpu" else device.type


def thread_count() -> int:
    """Return how many threads the CPU computes with."""
    import torch

    return torch.get_num_threads()


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def compel_version() -> dict[str, str]:
    """Return the version of compel, which applies weights in prompts and splits long ones."""
    from importlib.metadata import version

    return {"compel": version("compel")}


def versions() -> dict[str, str]:
    import diffusers
    import torch
    import transformers

    from t2i.version import __version__

    libraries = {"torch": torch, "diffusers": diffusers, "transformers": transformers}
    return {"t2i": __version__} | {name: str(library.__version__) for name, library in libraries.items()}
