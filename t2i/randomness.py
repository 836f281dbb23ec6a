"""Stateless randomness: every draw is a function of (seed, purpose, index).

No generator outlives the draw it serves, so there is no generator state to save, lose or restore: a run that is resumed
after a kill, or distributed over other processes, makes the same draws.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """Return the 63-bit seed of one draw.

    purpose: names the draw ("order", "noise", ...), so that two purposes never share a stream.
    index: the global step or global image index of the draw.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """Return a fresh generator for one draw, on the CPU: every device and process count sees the same numbers."""
    import torch

    return torch.Generator("cpu").manual_seed(derive_seed(seed, purpose, index))
