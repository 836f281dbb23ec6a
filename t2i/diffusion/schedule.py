"""Noise schedules over real time.

x_t = alpha(t) * x0 + sigma(t) * eps,  eps ~ N(0, I),  t in [0, T].
t = 0 is the clean image: alpha(0) = 1, sigma(0) = 0.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Schedule(Protocol):
    """How much of the image (alpha) and of the noise (sigma) is left at time t."""

    T: float

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the clean image, decreasing from 1.  t: any shape, in [0, T]."""

    def sigma(self, t: Tensor) -> Tensor:
        """Factor of the noise, increasing from 0.  t: any shape, in [0, T]."""


class Flow:
    """The straight line from image to noise: alpha = 1 - t, sigma = t, T = 1 (Lipman et al. 2023; Liu et al. 2023)."""

    T = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t


SCHEDULES: dict[str, type[Flow]] = {"flow": Flow}
