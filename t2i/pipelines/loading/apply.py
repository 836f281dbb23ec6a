"""Apply a memory plan to a diffusers pipeline; determinism; errors for memory that runs out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2i.errors import ModelError, OutOfMemory, T2IError, one_line
from t2i.pipelines.loading.device import is_out_of_memory
from t2i.pipelines.loading.memory_estimate import DENOISERS
from t2i.pipelines.loading.plan import SMALLER, MemoryPlan


def apply_plan(pipe: Any, plan: MemoryPlan) -> Any:
    """Put a pipeline on its device as planned, by diffusers' own means: offloaded or whole, tiled, compiled."""
    import torch

    level, device = plan.level, torch.device(plan.device)
    if level.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif level.offload == "group":
        streams = device.type in ("cuda", "xpu")  # the next layer is copied while this one computes
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=streams)
    else:
        pipe = pipe.to(device)
    vae = getattr(pipe, "vae", None)
    for name in ("enable_tiling", "enable_slicing") if level.tiling else ():
        if hasattr(vae, name):
            getattr(vae, name)()
    if plan.options.compile:
        compile_denoiser(pipe)
    return pipe


def compile_denoiser(pipe: Any) -> None:
    """Compile the denoising network at its first call; the compiled code is cached for later processes.

    It is compiled in place: its class, its config and its weights stay as they are.
    """
    keep_compiled()
    for name in DENOISERS:
        network = getattr(pipe, name, None)
        if network is not None:
            network.compile()


def keep_compiled() -> None:
    """Set torch's cache of compiled code to a folder in XDG_CACHE_HOME/t2i, unless the user has chosen one.

    torch's own default is a temporary folder, which a restart empties.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    name = "TORCHINDUCTOR_CACHE_DIR"
    if os.environ.get(name, default_cache_dir()) == default_cache_dir():  # torch sets its own default at first use
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t2i" / "compiled"
        os.environ[name] = str(cache)


def make_deterministic() -> None:
    """Make torch compute the same bits at every run of the same work, for the rest of this process.

    The setting belongs to the whole process. So it is made when a model is loaded and never around a drawing: other
    threads would change their algorithms in the middle of their own.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's first matrix product is planned
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


@contextmanager
def explained(plan: MemoryPlan) -> Iterator[None]:
    """Turn torch's refusal of an operation that cannot be deterministic into ModelError."""
    try:
        yield
    except RuntimeError as e:
        if not plan.options.deterministic or "deterministic" not in str(e):
            raise
        reason = one_line(e)
        raise ModelError(f"the model cannot draw deterministically: {reason}", "leave `deterministic` out") from e


@contextmanager
def advice(doing: str, plan: MemoryPlan | None) -> Iterator[None]:
    """Turn errors of exhausted memory into OutOfMemory that names the next level.  doing: "drawing 4 at once"."""
    try:
        yield
    except Exception as e:
        if isinstance(e, T2IError) or not is_out_of_memory(e):
            raise
        reason = one_line(e) or type(e).__name__
        suggestion = plan.suggestion() if plan is not None else f"less at once: {SMALLER}"
        raise OutOfMemory(f"out of memory while {doing}: {reason}", suggestion) from e


def give_memory_back() -> None:
    """Return unused memory to the device and the system."""
    import gc

    import torch

    gc.collect()
    for device in (torch.cuda, torch.xpu, torch.mps):
        if device.is_available() if device is not torch.mps else torch.backends.mps.is_available():
            device.empty_cache()
