"""Noising, targets and time densities: against closed forms, and against diffusers with the same numbers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from t2i.diffusion.objective import PREDICTIONS, TIMES, WEIGHTS, add_noise, image_from, shifted, target
from t2i.diffusion.schedule import SCHEDULES, Flow, linear
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


def test_add_noise_equals_diffusers_at_every_step() -> None:
    """Its timestep k is our t = k + 1."""
    scheduler, k = DDPMScheduler(), torch.arange(1000)
    x0, eps = torch.randn(2, 1000, 2, generator=torch.Generator().manual_seed(0))
    assert (add_noise(x0, eps, k + 1.0, linear()) - scheduler.add_noise(x0, eps, k)).abs().max() < 1e-5


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_flow_target_is_the_velocity(t: float) -> None:
    x0, eps = (x.double() for x in pair())
    h = 1e-4
    after, before = (add_noise(x0, eps, torch.full((5,), t + d, dtype=torch.float64), Flow()) for d in (h, -h))
    assert (target(x0, eps, torch.full((5,), t), Flow(), "flow") - (after - before) / (2 * h)).abs().max() < 1e-8


def test_targets_are_what_they_are_called() -> None:
    x0, eps = (x.double() for x in pair())
    t, schedule = torch.tensor([1.0, 10.0, 200.0, 700.0, 1000.0]), linear()
    alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    expected = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}
    assert expected.keys() == PREDICTIONS.keys()
    for predict, value in expected.items():
        assert (target(x0, eps, t, schedule, predict) - value).abs().max() < 1e-12, predict


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_target_and_x_t_give_back_the_image(name: str, predict: str) -> None:
    schedule = SCHEDULES[name]()
    x0, eps = (x.double() for x in pair())
    t = schedule.T * torch.tensor([0.001, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    out = target(x0, eps, t, schedule, predict)
    assert (image_from(out, add_noise(x0, eps, t, schedule), t, schedule, predict) - x0).abs().max() < 1e-9


@pytest.mark.parametrize(("predict", "theirs"), [("eps", "epsilon"), ("v", "v_prediction"), ("x0", "sample")])
def test_image_from_equals_diffusers(predict: str, theirs: str) -> None:
    x_t, out = pair()
    schedule, scheduler = linear(), DDIMScheduler(prediction_type=theirs, clip_sample=False)
    scheduler.set_timesteps(1000)
    for k in (0, 10, 500, 999):
        expected = scheduler.step(out, k, x_t).pred_original_sample
        found = image_from(out, x_t, torch.tensor(k + 1.0), schedule, predict)
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", SCHEDULES)
def test_min_snr_weighs_the_same_error_of_the_image_equally(name: str) -> None:
    """Whatever is predicted: moved by the same amount of x0 at the same x_t, the weighted squared error is the same."""
    schedule = SCHEDULES[name]()
    x0, eps = (x.double() for x in pair())
    t = schedule.T * torch.tensor([0.01, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64)
    x_t = add_noise(x0, eps, t, schedule)
    moved = x0 + 0.1
    alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    moved_eps = (x_t - alpha * moved) / sigma
    expected = (alpha / sigma).square().clamp(max=5.0).flatten() * 0.1**2
    for predict in PREDICTIONS:
        error = target(moved, moved_eps, t, schedule, predict) - target(x0, eps, t, schedule, predict)
        found = WEIGHTS["min-snr"](t, schedule, predict) * error.square().mean((1, 2, 3))
        assert (found / expected - 1).abs().max() < 1e-9, predict


def test_min_snr_weights_are_the_published_ones() -> None:
    t, schedule = torch.tensor([1.0, 50.0, 300.0, 999.0]), linear()
    snr = (schedule.alpha(t) / schedule.sigma(t)).square()
    capped = snr.clamp(max=5.0)
    assert snr[0] > 5 > snr[-1]
    for predict, expected in {"x0": capped, "eps": capped / snr, "v": capped / (snr + 1)}.items():
        assert (WEIGHTS["min-snr"](t, schedule, predict) / expected - 1).abs().max() < 1e-9
    assert torch.equal(WEIGHTS["plain"](t, schedule, "v"), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("name", TIMES)
def test_times_are_inside_and_given_by_the_generator(name: str) -> None:
    for make in SCHEDULES.values():
        schedule = make()
        t = TIMES[name](10_000, schedule, generator(0, "noise"))
        assert t.dtype == torch.float64
        assert t.shape == (10_000,)
        assert ((t > 0) & (t <= schedule.T)).all()
        assert torch.equal(t, TIMES[name](10_000, schedule, generator(0, "noise")))
        assert not torch.equal(t, TIMES[name](10_000, schedule, generator(0, "noise", 1)))


def test_integer_times_are_the_steps_of_the_paper() -> None:
    t = TIMES["integers"](200_000, linear(10), generator(0, "noise"))
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == list(range(1, 11))
    assert (counts / 20_000 - 1).abs().max() < 0.04


@pytest.mark.parametrize("p", [0.05, 0.25, 0.5, 0.75, 0.95])
def test_quantiles_of_the_time_densities(p: float) -> None:
    n = 200_000
    probability = torch.tensor(p, dtype=torch.float64)
    exact = {
        "uniform": probability,
        "integers": probability,
        "logit-normal": Normal(0.0, 1.0).icdf(probability).sigmoid(),
    }
    assert exact.keys() == TIMES.keys()
    for name, quantile in exact.items():
        t = TIMES[name](n, Flow(), generator(3, "noise"))
        below = (t < quantile).double().mean()
        assert abs(below - p) < 4 * (p * (1 - p) / n) ** 0.5, name


@pytest.mark.parametrize("name", SCHEDULES)
def test_shifted_times_keep_their_ends_and_shift_back(name: str) -> None:
    schedule = SCHEDULES[name]()
    t = torch.linspace(0, 1, 101, dtype=torch.float64) * schedule.T
    assert torch.equal(shifted(t, schedule, 1.0), t)
    there = shifted(t, schedule, 3.0)
    assert (there[0], there[-1]) == (0, schedule.T)
    assert (there[1:-1] > t[1:-1]).all()
    assert (shifted(there, schedule, 1 / 3) - t).abs().max() < 1e-12 * schedule.T


def test_shift_is_a_factor_of_noise_over_image_and_that_of_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    there = shifted(t, Flow(), 3.0)
    assert ((there / (1 - there) / (t / (1 - t)))[:-1] - 3).abs().max() < 1e-9
    assert (scheduler.sigmas[:1000].flip(0) - there).abs().max() < 1e-6
