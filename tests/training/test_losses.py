"""Reconstruction losses against what they are by definition, computed the slow way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from t2i.training.losses import feature_distance, gradient_loss, kl_to_standard_normal, psnr, ssim


def pictures(seed: int, shape: tuple[int, ...] = (2, 3, 10, 9)) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=draw) * 2 - 1
    return x, (x + 0.3 * torch.randn(shape, generator=draw)).clamp(-1, 1)


def slow_ssim(x: Tensor, y: Tensor, window: int = 7, dynamic_range: float = 2.0) -> float:
    """Wang et al. 2004, eq. 13, one window at a time in float64, with population statistics."""
    c1, c2 = (0.01 * dynamic_range) ** 2, (0.03 * dynamic_range) ** 2
    values = []
    for plane_x, plane_y in zip(x.double().flatten(0, 1), y.double().flatten(0, 1), strict=True):
        for i in range(plane_x.shape[0] - window + 1):
            for j in range(plane_x.shape[1] - window + 1):
                a = plane_x[i : i + window, j : j + window].flatten()
                b = plane_y[i : i + window, j : j + window].flatten()
                mean_a, mean_b = a.mean(), b.mean()
                covariance = ((a - mean_a) * (b - mean_b)).mean()
                luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
                structure = (2 * covariance + c2) / (a.var(correction=0) + b.var(correction=0) + c2)
                values.append(luminance * structure)
    return torch.stack(values).mean().item()


@pytest.mark.parametrize("seed", [0, 1])
def test_ssim_is_the_definition(seed: int) -> None:
    x, y = pictures(seed)
    assert abs(ssim(x, y).item() - slow_ssim(x, y)) < 1e-5


def test_ssim_of_flat_pictures_is_the_luminance_term() -> None:
    """Flat planes have no variance; float32 leaves a little of mean(x*x) - mean(x)^2, which C2 must outweigh."""
    x, y = torch.full((1, 1, 8, 8), 0.9), torch.full((1, 1, 8, 8), -0.2)
    expected = (2 * 0.9 * -0.2 + 4e-4) / (0.9**2 + 0.2**2 + 4e-4)
    assert abs(ssim(x, y).item() - expected) < 1e-3


def test_ssim_is_one_for_equal_pictures_and_less_for_others() -> None:
    x, y = pictures(2)
    assert abs(ssim(x, x).item() - 1) < 1e-6
    assert ssim(x, y) < 0.99
    assert ssim(x, pictures(9)[0]) < 0.3  # unrelated


def test_kl_equals_torch_distributions() -> None:
    draw = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 4, 5, 5, generator=draw)
    theirs = kl_divergence(Normal(mean.double(), (log_variance.double() / 2).exp()), Normal(0.0, 1.0))
    expected = theirs.flatten(1).sum(1).mean()
    assert abs(kl_to_standard_normal(mean, log_variance).item() / expected.item() - 1) < 1e-5


def test_kl_of_the_standard_normal_is_zero() -> None:
    assert kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


@pytest.mark.parametrize("error", [1.0, 0.1, 2 / 255])
def test_psnr_of_a_constant_error(error: float) -> None:
    """Peak 2, so that one step of 8 bits is 20 log10(255) = 48.1 dB."""
    x = torch.zeros(2, 3, 4, 4)
    expected = 20 * torch.tensor(2 / error, dtype=torch.float64).log10()
    assert abs(psnr(x + error, x).double() - expected) < 1e-4


def test_gradient_loss_by_hand() -> None:
    x = torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]])  # across: 1, 0; down: 0, -1
    y = torch.tensor([[[[0.0, 0.5], [0.0, 1.0]]]])  # across: .5, 1; down: 0, .5
    assert abs(gradient_loss(x, y).item() - ((0.5 + 1.0) / 2 + (0.0 + 1.5) / 2)) < 1e-6


def test_gradient_loss_does_not_see_brightness() -> None:
    x, _ = pictures(3)
    assert gradient_loss(x, x + 0.25) < 1e-6
    assert gradient_loss(x, 0.5 * x) > 0.1


def features(seed: int, batch: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, side, side, generator=draw) for c, side in ((4, 8), (6, 4), (10, 1))]


def test_feature_distance_is_the_definition() -> None:
    """2 - 2 cos of the angle between the vectors at each pixel, a mean over pixels, then over scales."""
    one, other = features(0), features(1)
    scales = [
        2 - 2 * torch.cosine_similarity(a.double(), b.double()).mean((1, 2)) for a, b in zip(one, other, strict=True)
    ]
    found = feature_distance(one, other)
    assert found.shape == (3,)
    assert (found.double() - torch.stack(scales).mean(0)).abs().max() < 1e-6


def test_feature_distance_is_a_distance_between_directions() -> None:
    """0 for equal features and 4 for opposite ones; the length of a vector does not count, nor who is first."""
    one, other = features(2), features(3)
    opposite = [-x for x in one]
    assert feature_distance(one, one).abs().max() == 0
    assert (feature_distance(one, opposite) - 4).abs().max() < 1e-5
    assert ((feature_distance(one, other) > 0) & (feature_distance(one, other) < 4)).all()
    assert torch.equal(feature_distance(one, other), feature_distance(other, one))
    draw = torch.Generator().manual_seed(4)
    longer = [x * (0.1 + 9 * torch.rand(3, 1, *x.shape[2:], generator=draw)) for x in one]
    assert (feature_distance(longer, other) - feature_distance(one, other)).abs().max() < 1e-5


def test_feature_distance_of_an_image_depends_on_no_other() -> None:
    one, other = features(5), features(6)
    alone = feature_distance([x[1:2] for x in one], [x[1:2] for x in other])
    assert torch.equal(feature_distance(one, other)[1:2], alone)
