"""Samplers: each step against diffusers, walks against the closed form of Gaussian data, orders of convergence.

diffusers keeps its tables in float32. Where a step is compared, its tables are replaced by float64 ones computed here
from the betas, so that what is left is the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from t2i.diffusion.guidance import denoiser
from t2i.diffusion.samplers import SAMPLERS, Sampler, SamplerStep, ddim, ddpm, dpmpp_2m, euler, factors, heun, sample
from t2i.diffusion.schedule import Flow, Schedule, VariancePreserving, cosine, linear
from t2i.diffusion.spacing import SPACINGS

SHAPE = (2, 3, 4, 4)
DISCRETE: dict[str, tuple[Callable[[], VariancePreserving], str]] = {
    "linear": (linear, "linear"),
    "cosine": (cosine, "squaredcos_cap_v2"),
}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answer(x_t: Tensor, t: float) -> Tensor:
    """Stands for a network that predicts eps: smooth, bounded, not linear."""
    return torch.tanh(1.3 * x_t + 0.2) * (0.6 + 0.4 * math.cos(t / 300))


def as_denoiser(schedule: Schedule, predict: str = "eps") -> Any:
    """`answer`, seen as the samplers see a network."""
    return denoiser(lambda x_t, t: answer(x_t, float(t[0])), schedule, predict)


def one_step(
    sampler: Sampler,
    schedule: Schedule,
    x_t: Tensor,
    t: float,
    s: float,
    before: Any = None,
    fresh: Tensor | None = None,
) -> Tensor:
    """A step on its own, as the loop makes it."""
    denoise = as_denoiser(schedule)
    x0 = denoise(x_t, torch.tensor(t, dtype=torch.float64))
    noise = torch.zeros_like(x_t) if fresh is None or s == 0 else fresh
    return sampler(SamplerStep(t, s, x_t, x0, before, s == 0, schedule, denoise, lambda: noise))


def abar(beta_schedule: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """cumprod(1 - beta) in float64, from the papers' formulas and not from t2i."""
    if beta_schedule == "linear":
        return np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))


def theirs(kind: str, beta_schedule: str, steps: int, **options: Any) -> Any:
    """A scheduler of diffusers, ready for so many steps, with float64 tables."""
    made = getattr(diffusers, kind)(beta_start=1e-4, beta_end=0.02, beta_schedule=beta_schedule, **options)
    table = torch.from_numpy(abar(beta_schedule))
    assert (made.alphas_cumprod - table).abs().max() < 1e-5
    made.alphas_cumprod = table
    made.set_timesteps(steps)
    return made


# Each step equals diffusers'


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", DISCRETE)
def test_ddim_step(name: str, eta: float, spacing: str) -> None:
    make, beta_schedule = DISCRETE[name]
    scheduler = theirs("DDIMScheduler", beta_schedule, 20, clip_sample=False, timestep_spacing=spacing)
    for k in scheduler.timesteps.tolist():
        x_t, fresh, t = draw(k), draw(k + 1), k + 1.0
        expected = scheduler.step(answer(x_t, t), k, x_t, eta=eta, variance_noise=fresh).prev_sample
        s = max(k - 1000 // 20 + 1.0, 0.0)
        found = one_step(partial(ddim, eta=eta), make(), x_t, t, s, fresh=fresh)
        assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [1000, 50])
@pytest.mark.parametrize("name", DISCRETE)
def test_ddpm_step(name: str, steps: int, variance: str, spacing: str) -> None:
    make, beta_schedule = DISCRETE[name]
    options = {"clip_sample": False, "variance_type": f"fixed_{variance}", "timestep_spacing": spacing}
    scheduler = theirs("DDPMScheduler", beta_schedule, steps, **options)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    pairs = list(pairwise([*(scheduler.timesteps + 1.0).tolist(), 0.0]))
    if variance == "large" and pairs[-1][0] > 1:
        pairs.pop()  # theirs adds noise to the finished picture, unless its last step is from timestep 0
    for t, s in [*pairs[:: steps // 25], pairs[-1]]:
        k = int(t) - 1
        x_t = draw(k)
        theirs_draws = torch.Generator().manual_seed(k)
        expected = scheduler.step(answer(x_t, t), k, x_t, generator=theirs_draws).prev_sample
        found = one_step(partial(ddpm, variance=variance), make(), x_t, t, s, fresh=draw(k))
        assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
@pytest.mark.parametrize("name", DISCRETE)
def test_dpmpp_2m_step(name: str, spacing: str) -> None:
    """First step, second-order steps, and the last one."""
    make, beta_schedule = DISCRETE[name]
    schedule, n = make(), 12
    options = {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    scheduler = theirs("DPMSolverMultistepScheduler", beta_schedule, n, solver_order=2, **options)
    table = abar(beta_schedule)
    ratios = np.sqrt((1 - table) / table)
    if spacing == "karras":
        low, high = ratios[0] ** (1 / 7), ratios[-1] ** (1 / 7)
        sigmas = (high + np.linspace(0, 1, n) * (low - high)) ** 7
        times = schedule.time(torch.from_numpy(sigmas)).tolist()
    else:
        sigmas = ratios[scheduler.timesteps.numpy()]
        times = (scheduler.timesteps + 1.0).tolist()
    exact = torch.from_numpy(np.append(sigmas, 0.0))
    assert (scheduler.sigmas / exact - 1).nan_to_num(0).abs().max() < 2e-4  # what float32 tables explain, no more
    scheduler.sigmas = exact
    x_t, before = draw(1), None
    for k, (t, s) in zip(scheduler.timesteps, pairwise([*times, 0.0]), strict=True):
        x0 = as_denoiser(schedule)(x_t, torch.tensor(t, dtype=torch.float64))
        expected = scheduler.step(answer(x_t, t), k, x_t).prev_sample
        found = one_step(dpmpp_2m, schedule, x_t, t, s, before=before)
        assert (found - expected).abs().max() < 1e-6 * expected.abs().max()
        x_t, before = found, (t, x0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("name", DISCRETE)
def test_euler_and_heun_step(name: str, kind: str, spacing: str) -> None:
    """theirs walk x / alpha; ten steps fall on whole timesteps, but for Karras' spacing."""
    make, beta_schedule = DISCRETE[name]
    schedule, steps, twice = make(), 10, kind.startswith("Heun")
    options = {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    scheduler = theirs(kind, beta_schedule, steps, **options)
    times = SPACINGS[spacing](schedule, steps)
    sigmas = np.array([b / a for a, b in (factors(schedule, t) for t in times)])
    if twice:
        sigmas = np.concatenate([sigmas[:1], sigmas[1:-1].repeat(2), sigmas[-1:]])
    exact = torch.from_numpy(sigmas)
    assert (scheduler.sigmas / exact - 1).nan_to_num(0).abs().max() < 2e-4  # what float32 tables explain, no more
    scheduler.sigmas = exact
    scheduler.is_scale_input_called = True
    for t, s in pairwise(times):
        (a_t, _), (a_s, _) = factors(schedule, t), factors(schedule, s)
        x_t = draw(int(t))
        expected = (
            a_s * scheduler.step(answer(x_t, t), scheduler.timesteps[scheduler.step_index or 0], x_t / a_t).prev_sample
        )
        if twice and s:
            at = scheduler.timesteps[scheduler.step_index]
            expected = a_s * scheduler.step(answer(expected, s), at, expected / a_s).prev_sample
        found = one_step(heun if twice else euler, schedule, x_t, t, s)
        assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("twice", [False, True])
def test_flow_euler_and_heun_step(twice: bool) -> None:
    kind = diffusers.FlowMatchHeunDiscreteScheduler if twice else diffusers.FlowMatchEulerDiscreteScheduler
    scheduler = kind()
    scheduler.set_timesteps(10)
    schedule = Flow()
    sigmas = scheduler.sigmas.double()
    scheduler.sigmas = sigmas
    times = list(dict.fromkeys(sigmas.tolist()))
    assert len(times) == 11
    denoise = as_denoiser(schedule, "flow")
    for t, s in pairwise(times):
        x_t = draw(int(1000 * t))
        at = scheduler.timesteps[scheduler.step_index or 0]
        expected = scheduler.step(answer(x_t, t), at, x_t).prev_sample
        if twice and s:
            at = scheduler.timesteps[scheduler.step_index]
            expected = scheduler.step(answer(expected.double(), s), at, expected).prev_sample
        x0 = denoise(x_t, torch.tensor(t, dtype=torch.float64))
        step = SamplerStep(t, s, x_t, x0, None, s == 0, schedule, denoise, partial(torch.zeros_like, x_t))
        found = (heun if twice else euler)(step)
        assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("make", [linear, cosine, Flow])
def test_ddim_with_eta_one_is_ddpm(make: Callable[[], Schedule]) -> None:
    schedule = make()
    for t, s in ((0.99, 0.75), (0.75, 0.5), (0.5, 0.002), (0.002, 0.001)):
        step = (schedule, draw(0), t * schedule.T, s * schedule.T)
        difference = one_step(partial(ddim, eta=1.0), *step, fresh=draw(1)) - one_step(ddpm, *step, fresh=draw(1))
        assert difference.abs().max() < 1e-9


# Whole walks


def walk(sampler: Sampler, schedule: Schedule, times: list[float], denoise: Any, x_T: Tensor, **options: Any) -> Tensor:
    return [x for _, x, _ in sample(denoise, x_T, times, schedule, sampler, **options)][-1]


def sensible(x_t: Tensor, t: float) -> Tensor:
    """The eps of a guess that is an image: with it walks end at pictures of order 1, as a trained network's do."""
    a, b = factors(linear(), t)
    return (x_t - a * 0.8 * torch.tanh(1.5 * x_t)) / b


DDPM = {"clip_sample": False}
KARRAS = {"use_karras_sigmas": True}
# (sampler, spacing): how diffusers does it, where it visits the same times
WHOLE: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("ddim", "leading"): ("DDIMScheduler", DDPM),
    ("ddim", "trailing"): ("DDIMScheduler", DDPM),
    ("ddpm", "leading"): ("DDPMScheduler", DDPM),
    ("ddpm", "trailing"): ("DDPMScheduler", DDPM),
    ("ddpm", "linspace"): ("DDPMScheduler", DDPM),
    ("ddpm-large", "leading"): ("DDPMScheduler", {**DDPM, "variance_type": "fixed_large"}),
    ("dpm++2m", "trailing"): ("DPMSolverMultistepScheduler", {}),
    ("dpm++2m", "karras"): ("DPMSolverMultistepScheduler", KARRAS),
    ("euler", "trailing"): ("EulerDiscreteScheduler", {}),
    ("euler", "karras"): ("EulerDiscreteScheduler", KARRAS),
    ("heun", "trailing"): ("HeunDiscreteScheduler", {}),
    ("heun", "karras"): ("HeunDiscreteScheduler", KARRAS),
}


def walk_of_theirs(scheduler: Any, times: list[float], x_T: Tensor) -> Tensor:
    """Their loop, from the same noise; some of their schedulers walk x / alpha, and Heun's asks twice."""
    kind = type(scheduler).__name__
    scaled = "Euler" in kind or "Heun" in kind
    options = {"generator": torch.Generator().manual_seed(7)} if "DDPM" in kind else {}
    asked = [times[0], *np.repeat(times[1:-1], 2)] if "Heun" in kind else times[:-1]
    x = x_T / factors(linear(), times[0])[0] if scaled else x_T
    for k, t in zip(scheduler.timesteps, asked, strict=True):
        assert abs(k + 1 - t) < 0.51  # some round Karras' times
        x_t = x * factors(linear(), t)[0] if scaled else x
        x = scheduler.step(sensible(x_t, t), k, x, **options).prev_sample
    return x


@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize(("name", "spacing"), WHOLE)
def test_whole_walks_are_theirs_within_float32_tables(name: str, spacing: str, steps: int) -> None:
    """With diffusers as it ships the pictures, of order 1, differ by 2.7e-5 at most; with float64 tables, nothing.

    But for roundings that it keeps: dpm++ and euler turn the picture itself into float32 in every step (2e-7), and
    the variance of ddpm is never below 1e-20 (4e-10).
    """
    kind, options = WHOLE[name, spacing]
    schedule, x_T = linear(), draw(0)
    times = SPACINGS[spacing](schedule, steps)
    noise = partial(torch.randn, SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    denoise = denoiser(lambda x_t, t: sensible(x_t, float(t[0])), schedule, "eps")
    found = walk(SAMPLERS[name], schedule, times, denoise, x_T, noise=noise)
    assert 0.3 < found.abs().max() < 3
    if spacing != "karras":
        options = {**options, "timestep_spacing": spacing}
    shipped = getattr(diffusers, kind)(beta_start=1e-4, beta_end=0.02, **options)
    shipped.set_timesteps(steps)
    exact = theirs(kind, "linear", steps, **options)
    exact.one = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(exact, "sigmas"):
        first, *inner = [b / a for a, b in (factors(schedule, t) for t in times[:-1])]
        inner = list(np.repeat(inner, 2)) if name == "heun" else inner
        exact.sigmas = torch.tensor([first, *inner, 0.0], dtype=torch.float64)
    for scheduler, tolerance in ((shipped, 5e-5), (exact, 1e-6 if name in ("dpm++2m", "euler") else 1e-9)):
        scheduler.is_scale_input_called = True
        assert (found - walk_of_theirs(scheduler, times, x_T)).abs().max() < tolerance


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 20, 50, 1000])
def test_times_are_theirs(steps: int, spacing: str) -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    expected = [*(scheduler.timesteps + 1.0).tolist(), 0.0]
    if spacing == "linspace" and steps == 1:
        expected = [1000.0, 0.0]  # theirs begins at a nearly clean image
    assert SPACINGS[spacing](linear(), steps) == expected


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_times_of_flow_fall_evenly(steps: int) -> None:
    times = SPACINGS["trailing"](Flow(), steps)
    assert times == pytest.approx([1 - k / steps for k in range(steps + 1)], abs=1e-12)


def test_karras_spacing_of_flow_is_refused() -> None:
    with pytest.raises(ValueError, match="flow"):
        SPACINGS["karras"](Flow(), 10)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("make", [linear, cosine, Flow])
def test_times_fall_strictly_to_zero(make: Callable[[], Schedule], spacing: str) -> None:
    schedule = make()
    if spacing == "karras" and schedule.bend:
        pytest.skip("refused")
    times = SPACINGS[spacing](schedule, 20)
    assert len(times) == 21
    assert times[0] <= schedule.T
    assert times[-1] == 0
    assert all(t > s for t, s in pairwise(times))


# Gaussian data: the denoiser and the ODE's end are known in closed form

MEAN, DEVIATION = 0.7, 0.3


def best_guess(schedule: Schedule) -> Any:
    """E[x0 | x_t] for x0 ~ N(MEAN, DEVIATION^2)."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        a, b = schedule.alpha(t), schedule.sigma(t)
        return MEAN + a * DEVIATION**2 / (a**2 * DEVIATION**2 + b**2) * (x_t - a * MEAN)

    return denoise


def exact_end(schedule: Schedule, x_t: Tensor, t: float, s: float) -> Tensor:
    """Where the ODE leads: a quantile of p_t stays that quantile of p_s."""
    (a_t, b_t), (a_s, b_s) = factors(schedule, t), factors(schedule, s)
    spread = math.hypot(a_s * DEVIATION, b_s) / math.hypot(a_t * DEVIATION, b_t)
    return a_s * MEAN + spread * (x_t - a_t * MEAN)


class ContinuousCosine:
    """A smooth variance-preserving schedule, for orders of convergence: alpha = cos, sigma = sin."""

    T = 1.0
    steps: int | None = None
    bend = 0

    def alpha(self, t: Tensor) -> Tensor:
        return (t.double() * math.pi / 2).cos()

    def sigma(self, t: Tensor) -> Tensor:
        return (t.double() * math.pi / 2).sin()

    def time(self, ratio: Tensor) -> Tensor:
        return ratio.double().atan() * 2 / math.pi


ORDERS: list[tuple[Sampler, float]] = [(ddim, 1.0), (euler, 1.0), (heun, 2.0), (dpmpp_2m, 2.0)]


@pytest.mark.parametrize("schedule", [Flow(), ContinuousCosine()], ids=["flow", "vp"])
@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=["ddim", "euler", "heun", "dpm++2m"])
def test_order_of_convergence(sampler: Sampler, order: float, schedule: Schedule) -> None:
    """The slope of log error over log steps, between two inner times (both ends are special)."""
    start, end = 0.9, 0.1
    x_t = draw(0)
    expected = exact_end(schedule, x_t, start, end)
    counts = [80, 160, 320, 640]
    errors = []
    for n in counts:
        times = torch.linspace(start, end, n + 1, dtype=torch.float64).tolist()
        errors.append((walk(sampler, schedule, times, best_guess(schedule), x_t) - expected).abs().max().item())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.12)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "heun", "euler"])
@pytest.mark.parametrize("make", [linear, cosine, Flow])
def test_walk_ends_where_the_ode_leads(make: Callable[[], Schedule], name: str) -> None:
    schedule, x_T = make(), draw(0)
    times = SPACINGS["trailing"](schedule, 250)
    found = walk(SAMPLERS[name], schedule, times, best_guess(schedule), x_T)
    assert (found - exact_end(schedule, x_T, times[0], 0.0)).abs().max() < 0.02


@pytest.mark.parametrize("name", ["ddpm", "ddpm-large", "ddim-1"])
@pytest.mark.parametrize("make", [linear, cosine, Flow])
def test_stochastic_walks_end_in_the_distribution_of_the_data(make: Callable[[], Schedule], name: str) -> None:
    """Exactly: mean and variance are carried through the steps, which are linear in x and noise, without drawing."""
    schedule = make()
    sampler = partial(ddim, eta=1.0) if name == "ddim-1" else SAMPLERS[name]
    denoise = best_guess(schedule)
    mean, variance = 0.0, 1.0
    for t, s in pairwise(SPACINGS["trailing"](schedule, 1000)):

        def at(x: float, fresh: float, t: float = t, s: float = s) -> float:
            x_t, noise = torch.tensor([x], dtype=torch.float64), torch.tensor([fresh], dtype=torch.float64)
            x0 = denoise(x_t, torch.tensor(t, dtype=torch.float64))
            return sampler(SamplerStep(t, s, x_t, x0, None, s == 0, schedule, denoise, lambda: noise * (s > 0))).item()

        offset = at(0.0, 0.0)
        mean = offset + (at(1.0, 0.0) - offset) * mean
        variance = (at(1.0, 0.0) - offset) ** 2 * variance + (at(0.0, 1.0) - offset) ** 2
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert math.sqrt(variance) == pytest.approx(DEVIATION, rel=0.03)


# The loop


def test_last_step_has_no_fresh_noise_and_all_others_have() -> None:
    schedule = linear()
    drawn = []

    def noise() -> Tensor:
        drawn.append(len(drawn))
        return draw(len(drawn))

    reached = [s for s, _, _ in sample(best_guess(schedule), draw(0), [1000.0, 500.0, 1.0, 0.0], schedule, ddpm, noise)]
    assert reached == [500.0, 1.0, 0.0]
    assert len(drawn) == 2


def test_a_sampler_that_needs_noise_says_so() -> None:
    with pytest.raises(ValueError, match="noise"):
        walk(ddpm, linear(), [1000.0, 500.0, 0.0], best_guess(linear()), draw(0))


def test_float32_walk_stays_close_to_float64() -> None:
    schedule = linear()
    times = SPACINGS["trailing"](schedule, 100)
    exact = walk(dpmpp_2m, schedule, times, best_guess(schedule), draw(0))
    single = walk(dpmpp_2m, schedule, times, lambda x, t: best_guess(schedule)(x, t).float(), draw(0).float())
    assert single.dtype == torch.float32
    assert (single - exact).abs().max() < 1e-5
