"""Metrics against independent implementations, closed forms and plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

from t2i.errors import DataError
from t2i.evaluation import metrics
from t2i.evaluation.metrics import Moments, classifier_score, frechet_distance, kernel_distance, manifolds, nearest
from t2i.randomness import generator


def features(n: int, d: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Correlated, of unequal scales, float64."""
    draw = generator(seed, "features")
    mix = torch.randn(d, d, generator=generator(7, "mix"), dtype=torch.float64) / math.sqrt(d)
    return torch.randn(n, d, generator=draw, dtype=torch.float64) @ mix + shift


# Moments and the Frechet distance


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.sampled_from([0.0, 3.0, 1e4]))
@settings(max_examples=20, deadline=None)
def test_moments_do_not_depend_on_batches(sizes: list[int], shift: float) -> None:
    x = features(sum(sizes), 5, shift=shift)
    moments = Moments()
    for part in x.split(sizes):
        moments.add(part)
    torch.testing.assert_close(moments.mean(), x.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.covariance(), x.T.cov(), rtol=1e-7, atol=1e-9)
    assert moments.count == sum(sizes)


def test_moments_of_what_is_left_and_from_what_is_written() -> None:
    x = features(60, 5, shift=10.0)
    for whole in (Moments.of(x), Moments.given(60, x.mean(0), x.T.cov())):
        left = whole.without(x[:20])
        assert left.count == 40
        torch.testing.assert_close(left.mean(), x[20:].mean(0), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(left.covariance(), x[20:].T.cov(), rtol=1e-9, atol=1e-9)


def test_frechet_distance_of_known_gaussians() -> None:
    """Diagonal covariances: the sum of (m - m')^2 + (s - s')^2 over the dimensions."""
    m, s = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([1.0, 2.0, 0.5]).double()

    def exact(mean: Tensor, deviation: Tensor) -> Moments:
        """A set of six points that has just these moments."""
        points = torch.cat([torch.diag(deviation), -torch.diag(deviation)]) * math.sqrt(5 / 2)
        return Moments.of(mean + points)

    found = frechet_distance(exact(m, s), exact(m + 2, s * 3))
    assert found == pytest.approx(3 * 4 + float((2 * s).square().sum()), rel=1e-12)


class Features(torch.nn.Module):
    """Hands torchmetrics our features in the place of Inception's."""

    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_frechet_distance_as_torchmetrics_has_it() -> None:
    x, y = features(300, 6), features(200, 6, seed=1, shift=0.3)
    peer = FrechetInceptionDistance(Features()).set_dtype(torch.float64)
    peer.update(x, real=True)
    peer.update(y, real=False)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(float(peer.compute()), rel=1e-6)


@pytest.mark.parametrize("n", [2, 8, 100])
def test_identical_sets_are_no_distance_apart(n: int) -> None:
    """FAULTS 30: about 0, never complex nor below -1e-6, though a covariance of few images is singular."""
    moments = Moments.of(features(n, 64, shift=100.0))
    assert abs(frechet_distance(moments, moments)) < 1e-6


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_frechet_distance_is_symmetric_and_positive(seed: int) -> None:
    a, b = Moments.of(features(9, 12, seed)), Moments.of(features(30, 12, seed + 1, shift=0.1))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-9)
    assert frechet_distance(a, b) > 0


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(DataError, match="at least 2 images, got 1"):
        Moments.of(features(1, 3)).covariance()


# Kernel distance


def test_kernel_distance_as_torchmetrics_has_it() -> None:
    """Subsets of all images: a single number."""
    x, y = features(50, 8), features(50, 8, seed=1, shift=0.2)
    found = kernel_distance(x, y, generator(0, "subsets"), subsets=3, size=1000)
    torch.testing.assert_close(found, poly_mmd(x, y).expand(3), rtol=1e-6, atol=0)


def test_kernel_distance_is_unbiased() -> None:
    """Between two sets of one distribution it is zero within the error of the mean, and not always above it."""
    found = kernel_distance(features(4000, 4), features(4000, 4, seed=1), generator(0, "subsets"), 40, 100)
    assert abs(float(found.mean())) < 4 * float(found.std()) / math.sqrt(40)
    assert found.min() < 0 < found.max()


def test_kernel_distance_draws_what_it_is_told() -> None:
    x, y = features(90, 4), features(80, 4, seed=1)
    a, b, c = (kernel_distance(x, y, generator(seed, "subsets"), 5, 20) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# Precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifolds_as_prdc_has_them(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CHUNK", 13)  # several chunks, the last of them short
    real, fake = features(60, 4), 0.7 * features(45, 4, seed=1, shift=0.5)
    theirs = compute_prdc(real.numpy(), fake.numpy(), nearest_k=k)
    ours = manifolds(real, fake, k)
    for name, value in theirs.items():
        assert getattr(ours, name) == pytest.approx(float(value), abs=1e-12), name
    assert 0 < ours.precision < 1
    assert 0 < ours.recall < 1


def test_manifolds_of_a_set_with_itself_and_with_one_far_away() -> None:
    x = features(40, 4)
    same, apart = manifolds(x, x), manifolds(x, x + 1000)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)


# The classifier's score


@pytest.mark.filterwarnings("ignore::UserWarning")  # of its buffer, and of the deviation of one split
def test_classifier_score_as_torchmetrics_has_it() -> None:
    """Its splits are of a shuffled set, so one split; its logits are our logarithms."""
    p = features(64, 5).softmax(1)
    peer = InceptionScore(Features(), splits=1).set_dtype(torch.float64)
    peer.update(p.log())
    assert float(classifier_score(p, 1)) == pytest.approx(float(peer.compute()[0]), rel=1e-6)


def test_classifier_score_at_its_ends() -> None:
    """Certain and even over the classes: their number. Always the same answer: 1. A zero probability is no fault."""
    certain, same = torch.eye(4).repeat(5, 1), torch.tensor([[1.0, 0, 0, 0]]).expand(20, 4)
    assert classifier_score(certain, 5).tolist() == pytest.approx([4.0] * 5)
    assert classifier_score(same, 5).tolist() == pytest.approx([1.0] * 5)


def test_nearest_as_a_plain_loop_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CHUNK", 4)
    x, y = features(10, 3), features(15, 3, seed=1)
    distances, rows = nearest(x, y)
    for i, row in enumerate(x):
        each = [float((row - other).square().sum().sqrt()) for other in y]
        assert (float(distances[i]), int(rows[i])) == (pytest.approx(min(each), rel=1e-6), each.index(min(each)))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: kernel_distance(x[:1], x, generator(0, "s")), "at least 2 images on each side, got 1 and 9"),
        (lambda x: manifolds(x, x[:5]), "more than 5 images on each side, got 9 and 5"),
        (lambda x: classifier_score(x), "at least 10 images, got 9"),
    ],
)
def test_too_few_images_are_refused(call: Callable[[Tensor], object], said: str) -> None:
    """FAULTS 30."""
    with pytest.raises(DataError, match=said):
        call(features(9, 4))
