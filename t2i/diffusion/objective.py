"""Training objectives of a diffusion network: noise a clean image to time t, and predict a mix of image and noise.

Every prediction is such a mix, p * x0 + q * eps; with x_t = alpha * x0 + sigma * eps it gives back x0:

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
    """Return the network's regression target at time t, p * x0 + q * eps: (B, ...).

    x0, eps: (B, ...).  t: (B,).  predict: a key of PREDICTIONS.
    """
    p, q = PREDICTIONS[predict](schedule.alpha(t), schedule.sigma(t))
    return _like(p, x0) * x0 + _like(q, x0) * eps


def image_from(out: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, predict: str) -> Tensor:
    """Convert a network's output to its estimate of x0: (B, ...).

    out, x_t: (B, ...).  t: (B,) or scalar, in (0, T].  predict: a key of PREDICTIONS.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = PREDICTIONS[predict](alpha, sigma)
    scale = q * alpha - p * sigma
    return _like(q / scale, x_t) * x_t - _like(sigma / scale, x_t) * out


def plain_weight(t: Tensor, schedule: Schedule, predict: str) -> Tensor:
    """Weigh every time alike, in the units of the prediction: ones, (B,) float64."""
    return torch.ones_like(t, dtype=torch.float64)


def min_snr_weight(t: Tensor, schedule: Schedule, predict: str, gamma: float = 5.0) -> Tensor:
    """Return min(SNR, gamma), a weight on the error of x0, in units of the prediction: (B,) float64.

    An error of the output is one of x0 times sigma / |q * alpha - p * sigma|: for eps the weight is
    min(SNR, gamma) / SNR, for v min(SNR, gamma) / (SNR + 1).  Hang et al. 2023, eq. 8 and section 3.4.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = PREDICTIONS[predict](alpha, sigma)
    return (alpha / sigma).square().clamp(max=gamma) * (sigma / (q * alpha - p * sigma)).square()


WEIGHTS: dict[str, Callable[[Tensor, Schedule, str], Tensor]] = {"plain": plain_weight, "min-snr": min_snr_weight}


def integer_time(n: int, schedule: Schedule, generator: Generator) -> Tensor:
    """Draw from 1 .. T, each equally often: (n,) float64. The discrete steps of Ho et al. 2020, algorithm 1.

    A schedule without discrete steps is cut into 1000.
    """
    steps = schedule.steps or 1000
    return torch.randint(1, steps + 1, (n,), generator=generator).double() * (schedule.T / steps)


def uniform_time(n: int, schedule: Schedule, generator: Generator) -> Tensor:
    """Draw uniformly from (0, T]: (n,) float64."""
    # 1 - [0, 1) is (0, 1]: at t = 0 the SNR is infinite
    return schedule.T * (1 - torch.rand(n, generator=generator, dtype=torch.float64))


def logit_normal_time(n: int, schedule: Schedule, generator: Generator) -> Tensor:
    """Draw T * sigmoid of a standard normal, densest in the middle: (n,) float64 in (0, T).

    Esser et al. 2024, eq. 19.
    """
    return schedule.T * torch.randn(n, generator=generator, dtype=torch.float64).sigmoid()


def shifted(t: Tensor, schedule: Schedule, shift: float) -> Tensor:
    """Shift times towards noise, or, by a shift below 1, towards the image: (B,). 0 and T stay.

    shift: factor of t / (T - t), and for flow of sigma / alpha.  Esser et al. 2024, eq. 23, with shift = sqrt(m / n).
    """
    return schedule.T * shift * t / (schedule.T + (shift - 1) * t)


TIMES: dict[str, Callable[[int, Schedule, Generator], Tensor]] = {
    "integers": integer_time,
    "uniform": uniform_time,
    "logit-normal": logit_normal_time,
}


def _like(factor: Tensor, x: Tensor) -> Tensor:
    """Broadcast factors, (B,) or scalar, over x, (B, ...), in its type and on its device."""
    # Cast last: the factors are computed in float64, and only their product with x is rounded.
    return factor.reshape(-1, *[1] * (x.dim() - 1)).to(x)
