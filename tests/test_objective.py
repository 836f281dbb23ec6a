"""Noising, targets and time densities: against closed forms, and against diffusers with the same numbers."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from t2i.diffusion.objective import TARGETS, TIMES, add_noise, flow_target
from t2i.diffusion.schedule import Flow
from t2i.randomness import generator

SHAPE = (5, 4, 3, 2)


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x0, eps = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return x0, eps


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=SHAPE[0], max_size=SHAPE[0]))
def test_add_noise_is_the_closed_form_for_each_image_of_the_batch(times: list[float]) -> None:
    x0, eps = pair()
    x_t = add_noise(x0, eps, torch.tensor(times), Flow())
    for i, t in enumerate(times):
        expected = (1 - t) * x0[i].double() + t * eps[i].double()
        assert (x_t[i].double() - expected).abs().max() < 1e-6


def test_add_noise_ends() -> None:
    x0, eps = pair()
    assert torch.equal(add_noise(x0, eps, torch.zeros(5), Flow()), x0)
    assert torch.equal(add_noise(x0, eps, torch.ones(5), Flow()), eps)


def test_add_noise_takes_any_rank() -> None:
    x0, eps = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    assert torch.equal(add_noise(x0, eps, torch.tensor([0.5, 0.25]), Flow()), torch.tensor([2.0, 3.0]))


def test_add_noise_equals_diffusers() -> None:
    x0, eps = pair()
    scheduler = FlowMatchEulerDiscreteScheduler()
    timesteps = scheduler.timesteps[[0, 100, 500, 900, 999]]
    theirs = scheduler.scale_noise(x0, timesteps, eps)
    ours = add_noise(x0, eps, timesteps / scheduler.config.num_train_timesteps, Flow())
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_flow_target_is_the_velocity(t: float) -> None:
    x0, eps = (x.double() for x in pair())
    h = 1e-4
    after, before = (add_noise(x0, eps, torch.full((5,), t + d, dtype=torch.float64), Flow()) for d in (h, -h))
    assert (TARGETS["flow"](x0, eps) - (after - before) / (2 * h)).abs().max() < 1e-8


def test_flow_target_and_x_t_give_back_the_image() -> None:
    x0, eps = pair()
    t = torch.full((5,), 0.7)
    assert (add_noise(x0, eps, t, Flow()) - 0.7 * flow_target(x0, eps) - x0).abs().max() < 1e-6


@pytest.mark.parametrize("name", TIMES)
def test_times_are_inside_and_given_by_the_generator(name: str) -> None:
    t = TIMES[name](10_000, generator(0, "noise"))
    assert t.dtype == torch.float32
    assert t.shape == (10_000,)
    assert ((t >= 0) & (t < 1)).all()
    assert torch.equal(t, TIMES[name](10_000, generator(0, "noise")))
    assert not torch.equal(t, TIMES[name](10_000, generator(0, "noise", 1)))


@pytest.mark.parametrize("p", [0.05, 0.25, 0.5, 0.75, 0.95])
def test_quantiles_of_the_time_densities(p: float) -> None:
    n = 200_000
    probability = torch.tensor(p, dtype=torch.float64)
    exact = {"uniform": probability, "logit-normal": Normal(0.0, 1.0).icdf(probability).sigmoid()}
    assert exact.keys() == TIMES.keys()
    for name, quantile in exact.items():
        t = TIMES[name](n, generator(3, "noise")).double()
        below = (t < quantile).double().mean()
        assert abs(below - p) < 4 * (p * (1 - p) / n) ** 0.5, name
