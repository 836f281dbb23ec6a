"""The bound against distributions of torch and models known in closed form, and the units it is given in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from t2i.training.elbo import LEVEL, apply_free_bits, bits, density_bits, dequantise, kl_nats, reconstruction_nats


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_reconstruction_is_a_normal_density() -> None:
    x, x_hat = noise(5, 3, 4, 4), noise(5, 3, 4, 4, seed=1)
    ours = reconstruction_nats((x - x_hat).square().mean(), 0.7**2)
    assert ours == pytest.approx(float(-Normal(x_hat, 0.7).log_prob(x).mean()), abs=1e-12)


def test_kl_is_torch_s() -> None:
    mean, log_variance = noise(5, 6), noise(5, 6, seed=1)
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    assert (kl_nats(mean, log_variance) - theirs).abs().max() < 1e-12


@given(st.floats(0.01, 2))
@settings(max_examples=20, deadline=None)
def test_the_calibrated_deviation_is_the_best(error: float) -> None:
    best = reconstruction_nats(error, error)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert reconstruction_nats(error, factor * error) > best


def test_its_gradient_is_that_of_half_the_log_error() -> None:
    error = torch.tensor(0.3, requires_grad=True)
    reconstruction_nats(error, error.detach()).backward()
    assert error.grad == pytest.approx(0.5 / 0.3)


def test_what_is_free_is_decided_over_the_whole_batch() -> None:
    """The gradients of two halves have the mean of the whole, also where one half alone would be free."""
    whole = torch.tensor([[0.1, 0.9, 0.1], [0.5, 0.7, 0.2]], requires_grad=True)  # means 0.3, 0.8, 0.15
    mean = whole.mean(0)
    loss = apply_free_bits(mean, mean.detach(), 0.25)
    assert loss.tolist() == pytest.approx([0.3, 0.8, 0.25])
    loss.sum().backward()
    halves = whole.detach().clone().requires_grad_()
    (sum(apply_free_bits(half, mean.detach(), 0.25).sum() for half in halves) / 2).backward()
    assert whole.grad is not None
    assert torch.equal(whole.grad, torch.tensor([[0.5, 0.5, 0.0]] * 2))
    assert halves.grad is not None
    assert torch.equal(halves.grad, whole.grad)


def test_an_image_that_knows_nothing_costs_eight_bits() -> None:
    """A density that is even over the 256 levels."""
    density = 1 / (256 * LEVEL)
    assert float(density_bits(-math.log(density))) == pytest.approx(8.0)


def test_a_bound_that_is_tight_is_the_likelihood() -> None:
    """z in two numbers, x = z + noise of deviation s: q is the true posterior, so the bound is log p(x) itself."""
    s = 0.6
    x = noise(200_000, 2) * math.sqrt(1 + s**2)
    variance = s**2 / (1 + s**2)
    mean, log_variance = x / (1 + s**2), torch.full_like(x, math.log(variance))
    z = mean + math.sqrt(variance) * noise(200_000, 2, seed=1)
    bound = reconstruction_nats((x - z).square().mean(), s**2) + kl_nats(mean, log_variance).mean()
    exact = -Normal(0.0, math.sqrt(1 + s**2)).log_prob(x).mean()
    assert bound == pytest.approx(float(exact), abs=5e-3)


def test_dequantised_pixels_stay_within_their_level() -> None:
    pixels = torch.arange(256)
    x = pixels / 127.5 - 1
    for u in (0.01, 0.5, 0.99):
        there = dequantise(x, torch.full_like(x, u))
        assert torch.equal(((there + 1) * 127.5).round().clamp(0, 255).long(), pixels)
    assert torch.equal(dequantise(x, torch.full_like(x, 0.5)), x)
    assert pytest.approx(float(x[1] - x[0])) == LEVEL


def test_a_nat_is_so_many_bits() -> None:
    assert float(bits(math.log(2))) == pytest.approx(1.0)
