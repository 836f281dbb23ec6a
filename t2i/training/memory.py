"""Out of memory while training: what to change, so that the run stays the same run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from t2i.config import Run
from t2i.errors import OutOfMemory


@contextmanager
def advice(config: Run) -> Iterator[None]:
    """Turn a device's or the CPU allocator's failure inside into OutOfMemory with the next thing to try.

    Accumulation keeps the global batch, and with it the run: only rounding differs.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as e:
        if not isinstance(e, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(e):
            raise
        parts = 2 * config.accumulate
        raise OutOfMemory(
            f"out of memory at batch {config.batch}, taken in {config.accumulate} parts: {str(e).splitlines()[0]}",
            f"--set accumulate={parts} takes smaller parts, with the same result; the run goes on where it was saved",
        ) from e
