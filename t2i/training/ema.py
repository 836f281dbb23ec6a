"""Exponential moving average (EMA) of the weights, its half-life in images seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from t2i.training.sharding import shard_like


def ema_decay(batch: int, images_seen: int, half_life: int, ramp: float = 0.05) -> float:
    """Return the factor that keeps the old average over one step of `batch` images.

    The half-life grows with the run until it reaches `half_life`, so that early averages forget the initial weights:
    half = min(half_life, ramp * images_seen)  (Karras et al. 2022, EDM, appendix F.3).
    """
    half = min(half_life, ramp * images_seen)
    return 0.5 ** (batch / half) if half > 0 else 0.0


class Ema:
    """The EMA of a module's parameters and buffers, in float32, on its device."""

    def __init__(self, module: nn.Module, half_life: int) -> None:
        self.half_life = half_life
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, batch: int, images_seen: int) -> None:
        """Move towards the module's weights after a step that ended at `images_seen`."""
        beta = ema_decay(batch, images_seen, self.half_life)
        now = module.state_dict()
        floats = [name for name, value in self.values.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.values[n] for n in floats], [now[n] for n in floats], 1 - beta)
        for name in self.values.keys() - floats:  # counters of batch norms have no average
            self.values[name].copy_(now[name])

    def load(self, values: dict[str, Tensor]) -> None:
        """Take over the values of a checkpoint."""
        for name, value in self.values.items():
            value.copy_(shard_like(values[name], value))
