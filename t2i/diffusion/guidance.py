"""Guidance: denoisers that wrap denoisers.

A denoiser is a function (x_t, t) -> x0: its best guess of the clean image.
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
Conditional = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # with the condition of each image, (B, ...), as third argument


def denoiser(network: Callable[..., Tensor], schedule: Schedule, predict: str) -> Callable[..., Tensor]:
    """The denoiser that a network makes: (x_t, t, condition...) -> x0.

    network: (x_t, t, condition...) -> what `predict` names, with t as a tensor (B,).
    """

    def denoise(x_t: Tensor, t: Tensor, *condition: Any) -> Tensor:
        return image_from(network(x_t, t.expand(len(x_t)), *condition), x_t, t, schedule, predict)

    return denoise


def guided(denoise: Conditional, condition: Tensor, null: Tensor, scale: float) -> Denoiser:
    """Classifier-free guidance: uncond + scale * (cond - uncond), of x0.

    Ho and Salimans 2022, eq. 6, with w = scale - 1.
    condition: (B, ...), of each image.  null: of the same shape, what stands for no condition.
    Both branches run as one batch of 2B. scale <= 1 turns guidance off: the conditional branch runs alone.
    That x0 is mixed, not eps, makes no difference: at a given x_t each is a linear function of the other.
    """
    if scale <= 1:
        return lambda x_t, t: denoise(x_t, t, condition)

    def guide(x_t: Tensor, t: Tensor) -> Tensor:
        both = denoise(torch.cat([x_t, x_t]), t, torch.cat([condition, null]))
        cond, uncond = both.chunk(2)
        return uncond + scale * (cond - uncond)

    return guide


def clipped(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """A denoiser whose guesses stay in the range of images; the noise that samplers derive follows them."""
    return lambda x_t, t: denoise(x_t, t).clamp(low, high)
