"""Which of several processes am I, and the door to Accelerate's view of them."""

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
    """Whether this process is the one that prints, saves and draws: the only one, or number 0 of a launcher's.

    Read from the environment that a launcher sets, without importing Accelerate.
    """
    return os.environ.get("RANK", "0") == "0"


def is_alone() -> bool:
    """Whether no launcher has started others beside this process; read as `is_main` is."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def processes() -> PartialState:
    """All processes of this program, joined at the first call.  Ask for them here before anything else of Accelerate.

    Without an accelerator, or where it shall not be used, Accelerate must be told so: it would take each of several
    processes for the only one, and all of them would write the same run.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    if state.num_processes > 1:
        _part_at_exit()
    return state


def gather(x: Tensor) -> Tensor:
    """The tensors of all processes, (B, ...) of one shape and dtype each: (processes * B, ...), in their order."""
    if processes().num_processes == 1:
        return x
    from accelerate.utils import gather as gather_all

    device = processes().device
    return gather_all(x.to(device)).to(x.device)


@cache
def _part_at_exit() -> None:
    """Leave the group while the interpreter lives: a thread of gloo's that then frees a tensor aborts the process."""

    def part() -> None:
        import torch

        gc.collect()  # a network wrapped for several processes holds the group, and so its threads
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    atexit.register(part)
