"""Weights that several processes hold in parts (FSDP), as the whole tensors that checkpoints are made of, and back.

Tensors that are not sharded pass through untouched.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, gathered where they are sharded.  Every process must ask."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor on the device of `model`, and sharded as `model` is.  Every process must ask."""
    if isinstance(model, DTensor):
        return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
    return tensor.to(model.device, copy=True)  # a copy: what was read is still mapped from a file that will be pruned
