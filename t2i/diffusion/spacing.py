"""Timestep spacings: the times at which a sampler steps, falling from the first to 0.

Discrete schedules are sampled at whole steps, as diffusers does (its timestep k is t = k + 1); Karras' spacing and
continuous schedules use any real time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from t2i.diffusion.schedule import Schedule


def leading(schedule: Schedule, steps: int) -> list[float]:
    """Return .. 1 + 2d, 1 + d, 1, 0 with d = T / steps rounded down: begins below T (Song et al. 2021a)."""
    every = _discrete(schedule) // steps  # rounded down, as in diffusers
    return _times(schedule, [1 + every * k for k in reversed(range(steps))])


def trailing(schedule: Schedule, steps: int) -> list[float]:
    """Return T, T - d .. d, 0 with d = T / steps: begins at pure noise (Lin et al. 2024, table 2)."""
    n = _discrete(schedule)
    falling = [n - k * (n / steps) for k in range(steps)]  # rounded below where the schedule is discrete
    return _times(schedule, falling if schedule.steps is None else [round(step) for step in falling])


def linspace(schedule: Schedule, steps: int) -> list[float]:
    """Return `steps` times evenly from T to step 1, both included, then 0."""
    n = _discrete(schedule)
    return _times(schedule, (1 + torch.linspace(n - 1, 0, steps, dtype=torch.float64).round()).tolist())


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> list[float]:
    """Space (sigma / alpha)^(1 / rho) evenly from its value at T to that at step 1 (Karras et al. 2022, eq. 5).

    Raises ValueError: a schedule without any of the image left at T, as flow, has no finite value there.
    """
    n = _discrete(schedule)
    if schedule.bend:
        raise ValueError("Karras' spacing needs a schedule that still has some of the image left at T; flow has none")
    ends = torch.tensor([schedule.T, schedule.T / n], dtype=torch.float64)
    high, low = (schedule.sigma(ends) / schedule.alpha(ends)) ** (1 / rho)
    ratio = (high + torch.linspace(0, 1, steps, dtype=torch.float64) * (low - high)) ** rho
    return [*schedule.time(ratio).tolist(), 0.0]


SPACINGS: dict[str, Callable[[Schedule, int], list[float]]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "karras": karras,
}


def _discrete(schedule: Schedule) -> int:
    """Return the number of discrete steps; a continuous schedule is cut into 1000."""
    return schedule.steps or 1000


def _times(schedule: Schedule, steps: Sequence[float]) -> list[float]:
    """Convert steps of 1 .. T to times of the schedule, and append 0."""
    return [*(step * schedule.T / _discrete(schedule) for step in steps), 0.0]
