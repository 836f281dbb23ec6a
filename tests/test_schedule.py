"""Noise schedules: what is left of image and noise at time t, and that the exported scheduler walks the same line."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from t2i.diffusion.objective import add_noise
from t2i.diffusion.schedule import SCHEDULES, Flow

TIME = torch.linspace(0, 1, 101)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_zero_is_the_clean_image(name: str) -> None:
    schedule = SCHEDULES[name]()
    zero = torch.zeros(3)
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
    assert torch.equal(schedule.sigma(TIME), TIME)


def exported_scheduler(steps: int) -> DPMSolverMultistepScheduler:
    """As a text-to-image run exports it, ready for so many steps."""
    from t2i.training.text2image import export_scheduler

    scheduler = export_scheduler()
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_exported_scheduler_walks_our_line(steps: int) -> None:
    """With a perfect model every x_t is ours at that timestep, and the walk ends at the clean image.

    This holds sign and scale of the prediction, the unit of time and the last step to what training assumes.
    """
    from t2i.training.text2image import TIMESTEPS

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
