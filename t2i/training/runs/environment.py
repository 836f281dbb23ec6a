"""What computed a run: versions, device, processes, precision. Never a user, a host, a path or a token."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator

from t2i.pipelines.environment import device_name
from t2i.version import __version__


def environment(accelerator: Accelerator, precision: str) -> dict[str, Any]:
    """As plain JSON values."""
    return {
        "t2i": __version__,
        **{name: version(name) for name in ("torch", "diffusers", "accelerate")},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def idle_cores(device: torch.device, processes: int, threads: int, env: Mapping[str, str] = os.environ) -> str | None:
    """What to say where a launcher leaves most of a CPU idle; None: nothing.

    `accelerate launch` gives each process one thread, unless told `--cpu` or a number.
    """
    cores = os.cpu_count() or 1
    launched = "ACCELERATE_MIXED_PRECISION" in env  # which its launcher sets
    if device.type != "cpu" or not launched or threads > 1 or processes >= cores:
        return None
    each = cores // processes
    return (
        f"note: computing with 1 thread of {cores} cores; accelerate launch --cpu, or OMP_NUM_THREADS={each}, takes all"
    )
