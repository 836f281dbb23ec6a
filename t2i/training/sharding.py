"""What several processes hold in parts: sharded weights (FSDP) as the whole tensors that checkpoints are made of, and
back; and the mean of gradients, each of another share of the batch.

Tensors that are not sharded pass through untouched.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, gathered where they are sharded.  Every process must ask."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor as `model` is: on its device, as it lies in memory, and sharded.  Every process must ask."""
    if isinstance(model, DTensor):
        return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
    # a copy: what was read is still mapped from a file that will be pruned
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def average_gradients(accelerator: Accelerator, module: nn.Module) -> None:
    """Make every gradient of a module its mean over all processes, as DistributedDataParallel does along the way."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    means = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
