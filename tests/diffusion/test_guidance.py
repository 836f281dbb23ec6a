"""Guidance and the other denoisers that wrap denoisers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t2i.diffusion.guidance import clipped, denoiser, guided
from t2i.diffusion.objective import PREDICTIONS, add_noise, target
from t2i.diffusion.schedule import linear

LABELS, NULL = torch.tensor([1, 2]), torch.tensor([0, 0])
T_NOW = torch.tensor(400.0)


class Network:
    """Answers that depend on image, time and label; counts its calls and the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        assert t.shape == (len(x_t),)
        self.batches.append(len(x_t))
        return (x_t + labels.reshape(-1, 1, 1, 1)).tanh() + t.reshape(-1, 1, 1, 1).to(x_t) / 1000


def x() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.5, 3.0, 7.5])
def test_guided_is_the_formula(scale: float) -> None:
    denoise = denoiser(Network(), linear(), "eps")
    cond, uncond = denoise(x(), T_NOW, LABELS), denoise(x(), T_NOW, NULL)
    found = guided(denoise, LABELS, NULL, scale)(x(), T_NOW)
    assert (found - (uncond + scale * (cond - uncond))).abs().max() < 1e-12


@pytest.mark.parametrize("predict", ["eps", "v", "flow"])
def test_guidance_of_the_image_is_guidance_of_any_prediction(predict: str) -> None:
    """Mixing what the network says, as diffusers does, and then turning it into x0 is the same."""
    network, schedule, scale = Network(), linear(), 3.0
    t = T_NOW.expand(2)
    mixed = network(x(), t, NULL) + scale * (network(x(), t, LABELS) - network(x(), t, NULL))
    expected = denoiser(lambda *_: mixed, schedule, predict)(x(), T_NOW)
    found = guided(denoiser(network, schedule, predict), LABELS, NULL, scale)(x(), T_NOW)
    assert (found - expected).abs().max() < 1e-10


def test_both_branches_run_as_one_batch() -> None:
    network = Network()
    guided(denoiser(network, linear(), "eps"), LABELS, NULL, 2.0)(x(), T_NOW)
    assert network.batches == [4]


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_guidance_of_one_or_less_runs_the_conditional_branch_alone(scale: float) -> None:
    network = Network()
    denoise = denoiser(network, linear(), "eps")
    found = guided(denoise, LABELS, NULL, scale)(x(), T_NOW)
    assert network.batches == [2]
    assert torch.equal(found, denoise(x(), T_NOW, LABELS))


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_a_perfect_network_makes_a_perfect_denoiser(predict: str) -> None:
    x0, eps, schedule = x(), x().flip(0), linear()
    x_t = add_noise(x0, eps, T_NOW.expand(2), schedule)
    denoise = denoiser(lambda _, t: target(x0, eps, t, schedule, predict), schedule, predict)
    assert (denoise(x_t, T_NOW) - x0).abs().max() < 1e-10


def test_clipped_stays_in_range_and_leaves_the_rest() -> None:
    found = clipped(lambda x_t, _: 3 * x_t)(x(), T_NOW)
    assert found.abs().max() == 1
    inside = (3 * x()).abs() < 1
    assert torch.equal(found[inside], (3 * x())[inside])
