"""What a diffusion network is trained to do: noise a clean image to time t, and predict what was mixed.

Every prediction is a mix of image and noise, p * x0 + q * eps; with x_t = alpha * x0 + sigma * eps it gives back x0:

    out = p * x0 + q * eps    =>    x0 = (q * x_t - sigma * out) / (q * alpha - p * sigma)

so that one formula trains, weighs and inverts them all.
"""

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
    return _like(schedule.alpha(t), x0) * x0 + _like(schedule.sigma(t), x0) * eps


# (alpha, sigma) -> (p, q)
PREDICTIONS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    # the noise (Ho et al. 2020, eq. 14)
    "eps": lambda alpha, sigma: (torch.zeros_like(alpha), torch.ones_like(alpha)),
    # the image
    "x0": lambda alpha, sigma: (torch.ones_like(alpha), torch.zeros_like(alpha)),
    # v = alpha * eps - sigma * x0 (Salimans and Ho 2022, appendix D)
    "v": lambda alpha, sigma: (-sigma, alpha),
    # the velocity dx_t/dt of the straight line (Lipman et al. 2023, eq. 23, with noise at t = T)
    "flow": lambda alpha, sigma: (-torch.ones_like(alpha), torch.ones_like(alpha)),
}


def target(x0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule, predict: str) -> Tensor:
    """What the network must answer at time t, p * x0 + q * eps: (B, ...).

    x0, eps: (B, ...).  t: (B,).  predict: a key of PREDICTIONS.
    """
    p, q = PREDICTIONS[predict](schedule.alpha(t), schedule.sigma(t))
    return _like(p, x0) * x0 + _like(q, x0) * eps


def image_from(out: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, predict: str) -> Tensor:
    """The x0 that a network's answer stands for: (B, ...).  out, x_t: (B, ...).  t: (B,) or scalar, in (0, T]."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = PREDICTIONS[predict](alpha, sigma)
    scale = q * alpha - p * sigma
    return _like(q / scale, x_t) * x_t - _like(sigma / scale, x_t) * out


def plain_weight(t: Tensor, schedule: Schedule, predict: str) -> Tensor:
    """Every time counts the same in the network's own units: ones, (B,) float64."""
    return torch.ones_like(t, dtype=torch.float64)


def min_snr_weight(t: Tensor, schedule: Schedule, predict: str, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma), as a weight on the error of x0, in units of what is predicted: (B,) float64.

    An error of the answer is one of x0 times sigma / |q * alpha - p * sigma|: for eps the weight is
    min(SNR, gamma) / SNR, for v min(SNR, gamma) / (SNR + 1).  Hang et al. 2023, eq. 8 and section 3.4.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = PREDICTIONS[predict](alpha, sigma)
    return (alpha / sigma).square().clamp(max=gamma) * (sigma / (q * alpha - p * sigma)).square()


WEIGHTS: dict[str, Callable[[Tensor, Schedule, str], Tensor]] = {"plain": plain_weight, "min-snr": min_snr_weight}


def integer_time(n: int, schedule: Schedule, generator: Generator) -> Tensor:
    """(n,) float64, each of 1 .. T equally often: the discrete steps of Ho et al. 2020, algorithm 1.

    A schedule without discrete steps is cut into 1000.
    """
    steps = schedule.steps or 1000
    return torch.randint(1, steps + 1, (n,), generator=generator).double() * (schedule.T / steps)


def uniform_time(n: int, schedule: Schedule, generator: Generator) -> Tensor:
    """(n,) float64, uniform in (0, T]: every time equally often."""
    return schedule.T * (1 - torch.rand(n, generator=generator, dtype=torch.float64))


def logit_normal_time(n: int, schedule: Schedule, generator: Generator) -> Tensor:
    """(n,) float64 in (0, T): T * sigmoid of a standard normal; the middle is seen most (Esser et al. 2024, eq. 19)."""
    return schedule.T * torch.randn(n, generator=generator, dtype=torch.float64).sigmoid()


def shifted(t: Tensor, schedule: Schedule, shift: float) -> Tensor:
    """Times moved towards noise, or, by a shift below 1, towards the image; 0 and T stay: (B,).

    shift: factor of t / (T - t), and for flow of sigma / alpha.  Esser et al. 2024, eq. 23, with shift = sqrt(m / n).
    """
    return schedule.T * shift * t / (schedule.T + (shift - 1) * t)


TIMES: dict[str, Callable[[int, Schedule, Generator], Tensor]] = {
    "integers": integer_time,
    "uniform": uniform_time,
    "logit-normal": logit_normal_time,
}


def _like(factor: Tensor, x: Tensor) -> Tensor:
    """(B,) or scalar factors made to multiply x, (B, ...), in its type and on its device."""
    return factor.reshape(-1, *[1] * (x.dim() - 1)).to(x)
