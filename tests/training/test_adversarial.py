"""The games of two networks against their formulas, penalties against slopes that are known, and DiffAugment."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from t2i.training.adversarial import GAMES, NUMBERS, POLICIES, diff_augment, gradient_penalty, r1

ZERO, ONE = torch.zeros(4), torch.ones(4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def middle(count: int) -> Tensor:
    """Numbers with which no policy changes an image, but for the cutout in its middle."""
    return torch.full((count, NUMBERS), 0.5)


def test_cross_entropy_is_torch_s() -> None:
    real, fake = noise(4), noise(4, seed=1)
    loss = F.binary_cross_entropy_with_logits
    game = GAMES["bce"]
    assert (game.discriminator(real, fake) - loss(real, ONE) - loss(fake, ZERO)).abs() < 1e-6
    assert (game.generator(fake) - loss(fake, ONE)).abs() < 1e-6


def test_hinge_does_not_care_beyond_one() -> None:
    game = GAMES["hinge"]
    assert game.discriminator(2 * ONE, -3 * ONE) == 0
    assert game.discriminator(0.5 * ONE, -0.25 * ONE) == 0.5 + 0.75
    assert game.generator(0.5 * ONE) == -0.5


def test_wasserstein_is_the_difference_of_means() -> None:
    real, fake = noise(4), noise(4, seed=1)
    assert torch.equal(GAMES["wgan-gp"].discriminator(real, fake), fake.mean() - real.mean())


@pytest.mark.parametrize("name", GAMES)
def test_each_side_wants_the_opposite(name: str) -> None:
    """A higher answer to generated images costs the discriminator and pays the generator."""
    game = GAMES[name]
    low, high = -0.5 * ONE, 0.5 * ONE
    assert game.discriminator(ZERO, high) > game.discriminator(ZERO, low)
    assert game.discriminator(high, ZERO) < game.discriminator(low, ZERO)
    assert game.generator(high) < game.generator(low)


@given(st.floats(0.1, 5))
@settings(max_examples=10, deadline=None)
def test_penalties_know_the_slope_of_a_linear_judge(slope: float) -> None:
    direction = F.normalize(noise(3 * 4 * 4), dim=0).reshape(3, 4, 4)

    def judge(x: Tensor) -> Tensor:
        return slope * (x * direction).sum((1, 2, 3))

    real, fake = noise(5, 3, 4, 4), noise(5, 3, 4, 4, seed=1)
    assert gradient_penalty(judge, real, fake, torch.rand(5)) == pytest.approx((slope - 1) ** 2, abs=1e-4)
    assert r1(judge, real) == pytest.approx(0.5 * slope**2, rel=1e-4)


def test_penalty_is_taken_between_real_and_generated_images() -> None:
    seen = []

    def judge(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.square().sum((1, 2, 3))

    real, fake, u = noise(3, 3, 2, 2), noise(3, 3, 2, 2, seed=1), torch.tensor([0.0, 0.25, 1.0])
    gradient_penalty(judge, real, fake, u)
    assert torch.equal(seen[0][0], real[0])
    assert (seen[0][1] - (0.75 * real[1] + 0.25 * fake[1])).abs().max() < 1e-6
    assert torch.equal(seen[0][2], fake[2])


def test_penalties_teach_the_judge() -> None:
    scale = torch.tensor(3.0, requires_grad=True)
    r1(lambda x: scale * x.sum((1, 2, 3)), noise(2, 3, 2, 2)).backward()
    assert scale.grad == pytest.approx(3.0 * 12)


def test_nothing_asked_for_changes_nothing() -> None:
    x = noise(2, 3, 8, 8)
    assert diff_augment(x, torch.rand(2, NUMBERS), ()) is x


def test_colour_in_the_middle_of_its_range_changes_nothing() -> None:
    x = noise(2, 3, 8, 8)
    assert (diff_augment(x, middle(2), ("color",)) - x).abs().max() < 1e-6


def test_colour_changes_brightness_saturation_and_contrast() -> None:
    x, u = noise(1, 3, 8, 8), middle(1)
    u[0, 0] = 0.9
    assert (diff_augment(x, u, ("color",)) - x - 0.4).abs().max() < 1e-6
    u[0, 0], u[0, 1] = 0.5, 0.0
    grey = diff_augment(x, u, ("color",))
    assert (grey - x.mean(1, keepdim=True)).abs().max() < 1e-6
    u[0, 1], u[0, 2] = 0.5, 0.0
    assert diff_augment(x, u, ("color",)).std() == pytest.approx(float(x.std()) / 2, rel=1e-4)


@given(st.integers(-2, 2), st.integers(-2, 2))
@settings(max_examples=25, deadline=None)
def test_translation_moves_and_fills_with_zero(down: int, right: int) -> None:
    side = 16
    x, u = noise(2, 3, side, side), middle(2)
    u[0, 3:5] = (torch.tensor([down, right]) + 2.5) / 5
    moved = diff_augment(x, u, ("translation",))
    expected = F.pad(x[0], (2, 2, 2, 2))[:, 2 + down : 2 + down + side, 2 + right : 2 + right + side]
    assert torch.equal(moved[0], expected)
    assert torch.equal(moved[1], x[1])


@given(st.floats(0, 0.999), st.floats(0, 0.999))
@settings(max_examples=25, deadline=None)
def test_cutout_is_a_square_of_half_the_side(row: float, column: float) -> None:
    u = middle(1)
    u[0, 5:7] = torch.tensor([row, column])
    hidden = diff_augment(torch.ones(1, 3, 16, 16), u, ("cutout",))[0, 0] == 0
    i, j = int(u[0, 5] * 16), int(u[0, 6] * 16)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[max(0, i - 4) : i + 4, max(0, j - 4) : j + 4] = True
    assert torch.equal(hidden, expected)


def test_each_image_of_a_batch_is_changed_by_its_own_numbers() -> None:
    x, u = noise(3, 3, 16, 16), torch.rand(3, NUMBERS, generator=torch.Generator().manual_seed(0))
    together = diff_augment(x, u, tuple(POLICIES))
    for k in range(3):
        alone = diff_augment(x[k : k + 1], u[k : k + 1], tuple(POLICIES))
        assert (together[k] - alone[0]).abs().max() < 1e-6


def test_gradients_pass_through_all_of_it() -> None:
    x = noise(2, 3, 16, 16).requires_grad_()
    diff_augment(x, middle(2), tuple(POLICIES)).sum().backward()
    assert x.grad is not None
    hidden = (x.grad == 0).float().mean()
    assert 0.2 < hidden < 0.3  # the cutout alone
