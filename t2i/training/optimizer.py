"""AdamW as the engine uses it: parameter groups, learning rate over images seen, state by parameter name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from t2i.config import Optimizer
from t2i.errors import CheckpointError
from t2i.training.sharding import shard_like

STATE = ("exp_avg", "exp_avg_sq", "step")


def learning_rate(optimizer: Optimizer, images_seen: int, images: int) -> float:
    """Return the rate for the step that begins at `images_seen`, of a run of `images`.

    Linear warm-up; then a cosine to zero, or constant with a linear cooldown to zero at the end (Zhai et al. 2022,
    section 3.5). The cooldown of a longer run only starts later: until then, runs of all lengths are equal.
    """
    # + 1: the first step, too, has a rate above zero
    rate = optimizer.lr * min(1.0, (images_seen + 1) / max(1, optimizer.warmup))
    if optimizer.cooldown:
        rate *= max(0.0, min(1.0, (images - images_seen) / optimizer.cooldown))
    if optimizer.decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, images_seen / images)))
    return rate


def adamw(config: Optimizer, module: nn.Module, rates: dict[str, float]) -> torch.optim.AdamW:
    """Return AdamW over a module's parameters, in one group per factor of the learning rate.

    rates: {beginning of parameter names: factor}; 1 for all others.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        factor = next((rate for prefix, rate in rates.items() if name.startswith(prefix)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    described: list[dict[str, Any]] = [{"params": group, "factor": factor} for factor, group in groups.items()]
    return torch.optim.AdamW(described, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate, scaled by its factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * rate


def state_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return AdamW's state as {parameter.key: tensor}: exp_avg, exp_avg_sq and step of each parameter.

    A parameter without a step has no state in torch, which is equivalent to zeros.
    """
    tensors: dict[str, Tensor] = {}
    for name, p in module.named_parameters():
        fresh = {key: torch.zeros((), device=p.device) if key == "step" else torch.zeros_like(p) for key in STATE}
        tensors |= {f"{name}.{key}": value for key, value in (optimizer.state.get(p) or fresh).items()}
    return tensors


def load_state_tensors(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore the state of a checkpoint.  Raises CheckpointError naming a missing tensor."""
    for name, p in module.named_parameters():
        for key in STATE:
            if f"{name}.{key}" not in tensors:
                raise CheckpointError(f"the checkpoint's optimizer part has no {name}.{key}", "--fresh starts over")
            value = tensors[f"{name}.{key}"]
            optimizer.state[p][key] = shard_like(value, p) if value.dim() else value.to(p.device, copy=True)
