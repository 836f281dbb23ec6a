"""Tensors split over processes: sharded weights (FSDP) to and from whole tensors, and the mean of gradients.

Tensors that are not sharded pass through unchanged.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def gather_full(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather sharded tensors.  Every process must call this."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def shard_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Place a whole tensor like `model`: its device, memory format and sharding.  Every process must call this."""
    if isinstance(model, DTensor):
        return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
    # a copy: the tensor may be mapped from a checkpoint that will be removed
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def average_gradients(accelerator: Accelerator, module: nn.Module) -> None:
    """Replace every gradient of a module by its mean over all processes, as DistributedDataParallel does."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    means = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
