"""Noise schedules over real time.

    x_t = alpha(t) * x0 + sigma(t) * eps,    eps ~ N(0, I),    t in [0, T]

t = 0 is the clean image: alpha(0) = 1, sigma(0) = 0. `linear` and `cosine` are defined by T discrete steps; there t = k
is step k of the paper (and timestep k - 1 of diffusers), and between the steps log-SNR is interpolated. They preserve
variance, alpha^2 + sigma^2 = 1. `flow` is the straight line from image to noise.

Everything here is computed in float64: 1 - alpha^2 loses digits near t = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """The share of the image (alpha) and of the noise (sigma) at time t.

    T: the last time.  steps: number of discrete steps that define the schedule, None where time is continuous.
    bend: 0 or 1. Divided by c = alpha + bend * sigma, the path of one pair (x0, eps) is a straight line in sigma / c;
    solvers of the ODE work in these coordinates (samplers.py).
    """

    T: float
    steps: int | None
    bend: int

    def alpha(self, t: Tensor) -> Tensor:
        """Return the factor of the clean image, decreasing from 1: float64.  t: any shape, in [0, T]."""

    def sigma(self, t: Tensor) -> Tensor:
        """Return the factor of the noise, increasing from 0: float64.  t: any shape, in [0, T]."""

    def time(self, ratio: Tensor) -> Tensor:
        """Return the t at which sigma(t) / alpha(t) = ratio, the inverse: float64.  ratio: any shape, >= 0."""


class Flow:
    """The straight line from image to noise: alpha = 1 - t, sigma = t, T = 1 (Lipman et al. 2023; Liu et al. 2023)."""

    T = 1.0
    steps: int | None = None
    bend = 1

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        return t.double()

    def time(self, ratio: Tensor) -> Tensor:
        return (ratio.double() / (1 + ratio.double())).nan_to_num(1.0)  # infinity / infinity is t = 1


class VariancePreserving:
    """A schedule of T discrete steps with variances beta_1 .. beta_T (Ho et al. 2020, eq. 2 and 4).

    Between the steps -log(sigma / alpha), half the log-SNR, is linear in t. Before the first it would have to reach
    infinity; there sigma / alpha grows linearly from 0.
    """

    bend = 0

    def __init__(self, betas: Tensor) -> None:
        """Tabulate log(sigma / alpha) at t = 1 .. T.  betas: (T,) in (0, 1)."""
        self.betas = betas.double()
        self.steps: int | None = len(betas)
        self.T = float(len(betas))
        # log1p and expm1, not products of 1 - beta: 1 - abar loses digits near t = 0
        log_abar = torch.log1p(-self.betas).cumsum(0)
        self._log_ratio = 0.5 * (torch.log(-torch.expm1(log_abar)) - log_abar)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self._log_ratio_at(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2 * self._log_ratio_at(t)).sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        log_ratio, table = ratio.double().log(), self._log_ratio.to(ratio.device)
        low = (torch.searchsorted(table, log_ratio.contiguous()) - 1).clamp(0, len(table) - 2)
        # past the last step, the last interval is extended
        t = 1 + low + (log_ratio - table[low]) / (table[low + 1] - table[low])
        return torch.where(log_ratio < table[0], (log_ratio - table[0]).exp(), t)

    def _log_ratio_at(self, t: Tensor) -> Tensor:
        t, table = t.double(), self._log_ratio.to(t.device)
        low = (t.floor().long() - 1).clamp(0, len(table) - 2)
        between = torch.lerp(table[low], table[low + 1], t - 1 - low)
        return torch.where(t < 1, table[0] + t.log(), between)


def linear(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> VariancePreserving:
    """Return the schedule whose variances grow linearly (Ho et al. 2020, section 4)."""
    return VariancePreserving(torch.linspace(first, last, steps, dtype=torch.float64))


def cosine(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> VariancePreserving:
    """Return the schedule with abar(t) proportional to cos^2 of (t / T + offset) / (1 + offset) * pi / 2.

    largest: upper bound of every beta, against singularities near T.  Nichol and Dhariwal 2021, eq. 17.
    """
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    abar = ((t + offset) / (1 + offset) * math.pi / 2).cos().square()
    return VariancePreserving((1 - abar[1:] / abar[:-1]).clamp(max=largest))


def timestep(t: Tensor, schedule: Schedule) -> Tensor:
    """Convert a time to diffusers' count, which is the networks' input: 0 .. 999 at T = 1000 discrete steps.

    Step t of a discrete schedule is timestep t - 1; continuous time t in [0, 1] is 1000 t.
    """
    return t - 1 if schedule.steps else 1000 * t / schedule.T


SCHEDULES: dict[str, Callable[[], Schedule]] = {"linear": linear, "cosine": cosine, "flow": Flow}
