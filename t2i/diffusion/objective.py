"""What a diffusion network is trained to do: noise a clean image to time t, and name the target it must predict."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from t2i.diffusion.schedule import Schedule


def add_noise(x0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Noise clean images to time t: alpha(t) * x0 + sigma(t) * eps.

    x0, eps: (B, ...) float32.  t: (B,) in [0, T].
    Ho et al. 2020, eq. 4, with alpha = sqrt(abar).
    """
    t = t.reshape(-1, *[1] * (x0.dim() - 1))
    return schedule.alpha(t) * x0 + schedule.sigma(t) * eps


def flow_target(x0: Tensor, eps: Tensor) -> Tensor:
    """The velocity dx_t/dt of the straight line, eps - x0 (Lipman et al. 2023, eq. 23, with noise at t = T)."""
    return eps - x0


TARGETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"flow": flow_target}


def uniform_time(n: int, generator: Generator) -> Tensor:
    """(n,) float32, uniform in (0, 1): every noise level equally often."""
    return torch.rand(n, generator=generator)


def logit_normal_time(n: int, generator: Generator) -> Tensor:
    """(n,) float32 in (0, 1): sigmoid of a standard normal; the middle is seen most (Esser et al. 2024, eq. 19)."""
    return torch.randn(n, generator=generator).sigmoid()


TIMES: dict[str, Callable[[int, Generator], Tensor]] = {"uniform": uniform_time, "logit-normal": logit_normal_time}
