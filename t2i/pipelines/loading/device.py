"""Facts about this machine: devices, free memory, support for bfloat16; and recognition of exhausted memory."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROC_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")
NO_LIMIT = 2**60  # cgroups of version 1 say "no limit" as a number near 2**63
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # instructions, as torch names them; the last is ARM's
CUDA_BF16 = (8, 0)  # least compute capability with bfloat16 in hardware, not emulated
EXHAUSTED = ("DefaultCPUAllocator", "can't allocate memory", "out of memory", "bad_alloc", "Cannot allocate memory")


@dataclass(frozen=True)
class Machine:
    """A device to draw on.

    free, total: bytes of its memory, which on a CPU and on Apple's chips is the main memory.  ram: free main memory.
    bfloat16: whether the hardware computes in it.  why: how that is known.
    """

    device: str
    free: int
    total: int
    ram: int
    bfloat16: bool
    why: str = ""

    @property
    def kind(self) -> str:
        """Return "cpu", "cuda", "mps" or "xpu"."""
        return self.device.partition(":")[0]

    @property
    def own_memory(self) -> bool:
        """Return whether the device has memory of its own, so that weights can wait in main memory."""
        return self.kind in ("cuda", "xpu")


def measure(device: str) -> Machine:
    """Measure a device of this machine, now."""
    import torch

    ram, all_ram = main_memory()
    kind = device.partition(":")[0]
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        capability = torch.cuda.get_device_capability(device)
        why = f"CUDA capability {capability[0]}.{capability[1]}"
        return Machine(device, free, total, ram, tuple(capability) >= CUDA_BF16, why)
    if kind == "xpu":
        free, total = torch.xpu.mem_get_info(device)
        return Machine(device, free, total, ram, bool(torch.xpu.is_bf16_supported()), "as torch says of XPU")
    if kind == "mps":
        most = int(torch.mps.recommended_max_memory())
        free = min(ram, max(0, most - int(torch.mps.driver_allocated_memory())))
        return Machine(device, free, min(all_ram, most), ram, True, "Apple GPU")
    names = cpu_bf16()
    return Machine(device, ram, all_ram, ram, bool(names), ", ".join(names) or "this CPU has no instructions for it")


def cpu_bf16() -> list[str]:
    """Return the instruction sets of this CPU that compute in bfloat16."""
    import torch

    known = torch.cpu.get_capabilities()
    return [name for name in CPU_BF16 if known.get(name)]


def main_memory() -> tuple[int, int]:
    """Return (free, total) bytes of main memory for this process: the machine's, or a container's if that is less.

    Free memory can be had without swapping; it includes file caches that the system would give back.
    """
    import psutil

    now = psutil.virtual_memory()
    free, total = int(now.available), int(now.total)
    for limit, used in _cgroup_limits():
        total, free = min(total, limit), min(free, max(0, limit - used))
    return free, total


def is_out_of_memory(e: BaseException) -> bool:
    """Return whether an error means exhausted memory: Python's, torch's on any device, or the system's."""
    if isinstance(e, MemoryError):
        return True
    torch: Any = sys.modules.get("torch")  # an error of torch's implies that torch is loaded
    if torch is not None and isinstance(e, torch.OutOfMemoryError):
        return True
    if isinstance(e, OSError) and e.errno == errno.ENOMEM:
        return True
    # safetensors and the CPU allocator have no class of their own for it.
    return isinstance(e, RuntimeError | OSError) and any(words in str(e) for words in EXHAUSTED)


def _cgroup_limits() -> list[tuple[int, int]]:
    """Return (limit, used) in bytes of each control group that limits this process's memory; none outside of Linux."""
    try:
        lines = PROC_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, most, now, idle = CGROUP_ROOT, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, now = CGROUP_ROOT / "memory", "memory.usage_in_bytes"
            most, idle = "memory.limit_in_bytes", "total_inactive_file"
        else:
            continue
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root) and (limit := _number(place / most)) is not None and limit < NO_LIMIT:
                found.append((limit, max(0, (_number(place / now) or 0) - _statistic(place / "memory.stat", idle))))
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there; "max"
        return None


def _statistic(path: Path, name: str) -> int:
    """Read a number of a control group's statistics, such as file pages that the system can take back."""
    try:
        rows = dict(line.split() for line in path.read_text(encoding="ascii").splitlines())
        return int(rows.get(name, 0))
    except (OSError, ValueError):
        return 0
