"""Processes of one program: rank, world size and gathering, by way of Accelerate."""

from __future__ import annotations

import atexit
import gc
import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor


def is_main() -> bool:
    """Return whether this process prints and saves: it is the only one, or the launcher's number 0.

    Read from the environment that a launcher sets: importing Accelerate takes a second.
    """
    return os.environ.get("RANK", "0") == "0"


def is_alone() -> bool:
    """Return whether this is the only process; read from the environment, as in `is_main`."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def processes() -> PartialState:
    """Return the state of all processes of this program, which join at the first call.

    Call it before anything else of Accelerate. Without a GPU, or where it is not to be used, Accelerate has to be told
    so: otherwise each of several processes believes to be the only one, and all of them write the same run.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    if state.num_processes > 1:
        _part_at_exit()
    return state


def gather(x: Tensor) -> Tensor:
    """Gather the tensors of all processes, (B, ...) of one shape and dtype: (processes * B, ...), ordered by rank."""
    if processes().num_processes == 1:
        return x
    from accelerate.utils import gather as gather_all

    device = processes().device
    return gather_all(x.to(device)).to(x.device)


@cache
def _part_at_exit() -> None:
    """Leave the process group at exit: a gloo thread that frees a tensor after the interpreter aborts the process."""

    def part() -> None:
        import torch

        gc.collect()  # a DistributedDataParallel network that waits to be freed keeps the group's threads alive
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    atexit.register(part)
