"""Samplers: from noise at t = T to an image at t = 0.

A sampler is a function that takes one step, from time t down to s; the one loop, `sample`, owns time. What is special
about the last step, to s = 0, is decided there: no fresh noise, and no look beyond.

Notation: a = alpha, b = sigma of the schedule; x0 is the denoiser's guess at (x_t, t), and eps = (x_t - a_t x0) / b_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from t2i.diffusion.guidance import Denoiser
from t2i.diffusion.schedule import Schedule


@dataclass(frozen=True)
class SamplerStep:
    """A step from t down to s, and all that a sampler may use for it.

    x_t: (B, C, H, W).  x0: the denoiser's guess there.  before: time and guess of the step before, None at the first.
    noise: gives fresh N(0, I) of x_t's shape.  last: s is 0.
    """

    t: float
    s: float
    x_t: Tensor
    x0: Tensor
    before: tuple[float, Tensor] | None
    last: bool
    schedule: Schedule
    denoise: Denoiser
    noise: Callable[[], Tensor]

    def at(self, t: float) -> tuple[float, float]:
        """alpha and sigma at a time."""
        return factors(self.schedule, t)


Sampler = Callable[[SamplerStep], Tensor]  # -> x_s


def sample(
    denoise: Denoiser,
    x_T: Tensor,
    times: Sequence[float],
    schedule: Schedule,
    sampler: Sampler,
    noise: Callable[[], Tensor] | None = None,
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Walk down `times` and yield (s, x_s, x0) after each step: the time reached, the image there, the guess that led.

    x_T: (B, C, H, W), the start at times[0]; usually N(0, I).  times: falling, usually `timesteps(...)`.
    noise: gives fresh N(0, I); samplers that are deterministic do without.
    """
    x_t, before = x_T, None
    for t, s in pairwise(times):
        x0 = denoise(x_t, torch.tensor(t, dtype=torch.float64, device=x_t.device))
        last = s == 0
        draw = partial(torch.zeros_like, x_t) if last else noise or _no_noise
        step = SamplerStep(t, s, x_t, x0, None if last else before, last, schedule, denoise, draw)
        x_t, before = sampler(step), (t, x0)
        yield s, x_t, x0


def ddpm(step: SamplerStep, *, variance: str = "small") -> Tensor:
    """Draw from q(x_s | x_t, x0) (Ho et al. 2020, eq. 6 and 7).

    variance: of the fresh noise, "small" (of the posterior, beta tilde) or "large" (of the step, beta).
    """
    (a_t, b_t), (a_s, b_s) = step.at(step.t), step.at(step.s)
    beta = _step_variance(a_t, b_t, a_s, b_s)
    mean = (a_t / a_s) * (b_s / b_t) ** 2 * step.x_t + a_s * beta / b_t**2 * step.x0
    deviation = math.sqrt(beta) * (b_s / b_t if variance == "small" else 1.0)
    return mean + deviation * step.noise()


def ddim(step: SamplerStep, *, eta: float = 0.0) -> Tensor:
    """Keep the noise that the guess implies, but for a share made fresh (Song et al. 2021a, eq. 12 and 16).

    eta: deviation of the fresh noise in units of the posterior's, in [0, 1]; 0 is deterministic, 1 is `ddpm`.
    """
    (a_t, b_t), (a_s, b_s) = step.at(step.t), step.at(step.s)
    deviation = eta * math.sqrt(_step_variance(a_t, b_t, a_s, b_s)) * b_s / b_t
    eps = (step.x_t - a_t * step.x0) / b_t
    x_s = a_s * step.x0 + math.sqrt(b_s**2 - deviation**2) * eps
    return x_s + deviation * step.noise() if eta else x_s


def dpmpp_2m(step: SamplerStep) -> Tensor:
    """DPM-Solver++ with the guess of the step before: second order, one call each (Lu et al. 2022b, algorithm 2)."""
    (a_t, b_t), (a_s, b_s) = step.at(step.t), step.at(step.s)
    if step.last:
        return step.x0 * a_s
    h = _half_log_snr(a_s, b_s) - _half_log_snr(a_t, b_t)
    guess = step.x0
    if step.before is not None:
        r, x0_before = step.before
        h_before = _half_log_snr(a_t, b_t) - _half_log_snr(*step.at(r))
        guess = guess + 0.5 * h / h_before * (step.x0 - x0_before)  # 0 where the step before came from pure noise
    return (b_s / b_t) * step.x_t - a_s * math.expm1(-h) * guess


def euler(step: SamplerStep) -> Tensor:
    """One step along the ODE's tangent, in the coordinates where a perfect guess makes its path straight."""
    return _along(step, _slope(step, step.x_t, step.x0, step.t))


def heun(step: SamplerStep) -> Tensor:
    """Euler's step, made again with the mean of both ends' slopes: second order, two calls.

    Karras et al. 2022, algorithm 1.
    """
    first = _slope(step, step.x_t, step.x0, step.t)
    x_s = _along(step, first)
    if step.last:
        return x_s
    x0 = step.denoise(x_s, torch.tensor(step.s, dtype=torch.float64, device=x_s.device))
    return _along(step, (first + _slope(step, x_s, x0, step.s)) / 2)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddpm-large": partial(ddpm, variance="large"),
    "ddim": ddim,
    "dpm++2m": dpmpp_2m,
    "heun": heun,
    "euler": euler,
}


def factors(schedule: Schedule, t: float) -> tuple[float, float]:
    """alpha and sigma at one time, in float64."""
    at = torch.tensor(t, dtype=torch.float64)
    return schedule.alpha(at).item(), schedule.sigma(at).item()


def _no_noise() -> Tensor:
    raise ValueError("this sampler draws fresh noise: give `noise`")


def _step_variance(a_t: float, b_t: float, a_s: float, b_s: float) -> float:
    """Variance of x_t given x_s: beta of the step from s to t."""
    return b_t**2 - (a_t / a_s * b_s) ** 2


def _half_log_snr(a: float, b: float) -> float:
    """log(alpha / sigma); -infinity for pure noise."""
    return math.log(a / b) if a else -math.inf


def _slope(step: SamplerStep, x: Tensor, x0: Tensor, t: float) -> Tensor:
    """d(x / c) / d(sigma / c) = eps - bend * x0, with c = alpha + bend * sigma (see Schedule.bend)."""
    a, b = step.at(t)
    return (x - a * x0) / b - step.schedule.bend * x0


def _along(step: SamplerStep, slope: Tensor) -> Tensor:
    """x_s, going from (t, x_t) along a slope of these coordinates."""
    (a_t, b_t), (a_s, b_s) = step.at(step.t), step.at(step.s)
    c_t, c_s = a_t + step.schedule.bend * b_t, a_s + step.schedule.bend * b_s
    return c_s * (step.x_t / c_t + (b_s / c_s - b_t / c_t) * slope)
