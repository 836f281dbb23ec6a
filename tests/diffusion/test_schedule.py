"""Noise schedules: what is left of image and noise at time t, and that the exported scheduler walks the same line."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from t2i.diffusion.objective import add_noise
from t2i.diffusion.schedule import SCHEDULES, Flow, VariancePreserving, cosine, linear

TIME = torch.linspace(0, 1, 101)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_zero_is_the_clean_image(name: str) -> None:
    schedule = SCHEDULES[name]()
    zero = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(schedule.alpha(zero), torch.ones(3))
    assert torch.equal(schedule.sigma(zero), zero)


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_falls_and_noise_rises(name: str) -> None:
    schedule = SCHEDULES[name]()
    t = TIME * schedule.T
    assert (schedule.alpha(t).diff() < 0).all()
    assert (schedule.sigma(t).diff() > 0).all()


def test_flow_is_the_straight_line() -> None:
    schedule = Flow()
    assert schedule.T == 1
    assert (schedule.alpha(TIME) + schedule.sigma(TIME) - 1).abs().max() < 1e-6
    assert torch.equal(schedule.sigma(TIME), TIME.double())


def tables() -> dict[str, tuple[VariancePreserving, Tensor]]:
    """Each discrete schedule with alpha^2 at t = 1 .. T by its paper's formula, step by step in Python's floats."""
    abar: dict[str, list[float]] = {"linear": [], "cosine": []}
    linear_product = cosine_product = 1.0
    f = [math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(1001)]
    for k in range(1, 1001):
        linear_product *= 1 - (1e-4 + (0.02 - 1e-4) * (k - 1) / 999)
        cosine_product *= 1 - min(0.999, 1 - f[k] / f[k - 1])
        abar["linear"].append(linear_product)
        abar["cosine"].append(cosine_product)
    schedules = {"linear": linear(), "cosine": cosine()}
    return {name: (schedules[name], torch.tensor(abar[name], dtype=torch.float64)) for name in schedules}


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_whole_times_are_the_steps_of_the_paper(name: str) -> None:
    schedule, abar = tables()[name]
    t = torch.arange(1, 1001)
    assert (schedule.alpha(t).square() / abar - 1).abs().max() < 1e-9
    assert (schedule.sigma(t).square() / (1 - abar) - 1).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_variance_is_preserved_at_all_times(name: str) -> None:
    schedule, _ = tables()[name]
    t = torch.linspace(0, 1000, 3001, dtype=torch.float64)
    assert (schedule.alpha(t).square() + schedule.sigma(t).square() - 1).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_log_snr_is_linear_between_the_steps_and_the_ratio_before_the_first(name: str) -> None:
    schedule, abar = tables()[name]
    half_log_snr = 0.5 * (abar / (1 - abar)).log()
    t = torch.tensor([1.25, 300.5, 999.75], dtype=torch.float64)
    low = t.long()
    part = t - low
    expected = half_log_snr[low - 1] * (1 - part) + half_log_snr[low] * part
    assert ((schedule.alpha(t) / schedule.sigma(t)).log() - expected).abs().max() < 1e-9
    first = schedule.sigma(torch.tensor(1.0)) / schedule.alpha(torch.tensor(1.0))
    small = torch.tensor([1e-6, 0.25, 0.5], dtype=torch.float64)
    assert (schedule.sigma(small) / schedule.alpha(small) / (small * first) - 1).abs().max() < 1e-9


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_is_the_inverse_of_the_ratio(name: str) -> None:
    schedule = SCHEDULES[name]()
    t = schedule.T * torch.tensor([0.0, 1e-5, 5e-4, 0.001, 0.0015, 0.3, 0.77, 1.0], dtype=torch.float64)
    assert (schedule.time(schedule.sigma(t) / schedule.alpha(t)) - t).abs().max() < 1e-9 * schedule.T


def test_float32_times_lose_nothing() -> None:
    """The tables are float64 whatever type the times have."""
    t = torch.tensor([1, 500, 1000])
    assert torch.equal(linear().sigma(t), linear().sigma(t.float()))
    assert linear().sigma(t.float()).dtype == torch.float64


def exported_scheduler(steps: int) -> DPMSolverMultistepScheduler:
    """Return the scheduler that a text-to-image run exports, prepared for this number of steps."""
    from t2i.training.families.text2image import export_scheduler

    scheduler = export_scheduler()
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_exported_scheduler_walks_our_line(steps: int) -> None:
    """With a perfect model every x_t is ours at that timestep, and the walk ends at the clean image.

    This holds sign and scale of the prediction, the unit of time and the last step to what training assumes.
    """
    from t2i.training.families.text2image import TIMESTEPS

    draw = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1, 4, 8, 8, generator=draw)
    scheduler = exported_scheduler(steps)
    x = eps * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        t = timestep.float().reshape(1) / TIMESTEPS
        # the scheduler rounds its timesteps to integers, and starts a little below t = 1
        assert (x - add_noise(x0, eps, t, Flow())).abs().max() < 2e-3 * (x0 - eps).abs().max()
        assert torch.equal(scheduler.scale_model_input(x, timestep), x)
        x = scheduler.step(eps - x0, timestep, x).prev_sample
    assert (x - x0).abs().max() < 2e-3 * (x0 - eps).abs().max()


def test_exported_scheduler_with_the_opposite_sign_misses() -> None:
    """The test above can fail: the velocity towards the image does not lead there."""
    draw = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1, 4, 8, 8, generator=draw)
    scheduler = exported_scheduler(5)
    x = eps
    for timestep in scheduler.timesteps:
        x = scheduler.step(x0 - eps, timestep, x).prev_sample
    assert (x - x0).abs().mean() > 1
