"""Denoisers and classifier-free guidance: a guided denoiser wraps a denoiser and is one itself.

A denoiser is a function (x_t, t) -> x0: its estimate of the clean image.
x_t: (B, C, H, W).  t: a scalar tensor in (0, T].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from t2i.diffusion.objective import image_from
from t2i.diffusion.schedule import Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
ConditionalDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # third argument: each image's condition, (B, ...)


def denoiser(network: Callable[..., Tensor], schedule: Schedule, predict: str) -> Callable[..., Tensor]:
    """Return the denoiser of a network: (x_t, t, condition...) -> x0.

    network: (x_t, t, condition...) -> the prediction that `predict` names, with t as a tensor (B,).
    predict: a key of objective.PREDICTIONS.
    """

    def denoise(x_t: Tensor, t: Tensor, *condition: Any) -> Tensor:
        return image_from(network(x_t, t.expand(len(x_t)), *condition), x_t, t, schedule, predict)

    return denoise


def guided(denoise: ConditionalDenoiser, condition: Tensor, null: Tensor, scale: float) -> Denoiser:
    """Wrap a denoiser in classifier-free guidance: uncond + scale * (cond - uncond), of x0.

    Ho and Salimans 2022, eq. 6, with w = scale - 1.
    condition: (B, ...), of each image.  null: of the same shape, the condition that stands for none.
    scale: at most 1 turns guidance off, and the conditional branch runs alone.

    Mixing x0 instead of eps makes no difference: at a given x_t each is a linear function of the other.
    """
    if scale <= 1:
        return lambda x_t, t: denoise(x_t, t, condition)

    def guide(x_t: Tensor, t: Tensor) -> Tensor:
        # one call with 2B images costs less than two with B
        both = denoise(torch.cat([x_t, x_t]), t, torch.cat([condition, null]))
        cond, uncond = both.chunk(2)
        return uncond + scale * (cond - uncond)

    return guide


def clipped(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Wrap a denoiser so that its estimates stay in [low, high], the range of images.

    Samplers derive their noise from the clamped estimate, not from the network's output.
    """
    return lambda x_t, t: denoise(x_t, t).clamp(low, high)
