"""Distances between sets of images, computed from their features: pure functions of float64 tensors on the CPU.

Features are (N, D). Sums over N are streamed (`Moments`); functions that need all features at once say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from t2i.errors import DataError

CHUNK = 1000  # rows of a distance matrix held at once


@dataclass
class Moments:
    """Number, mean and covariance of features, from any number of batches, of any sizes, in any order.

    sums: (D,), outer: (D, D), of features less `shift`, the first batch's mean; without it a mean far from zero would
    cost the covariance its digits.
    """

    count: int = 0
    shift: Tensor = field(default_factory=lambda: torch.zeros(0))
    sums: Tensor = field(default_factory=lambda: torch.zeros(0))
    outer: Tensor = field(default_factory=lambda: torch.zeros(0))

    def add(self, features: Tensor) -> None:
        """Add a batch.  features: (B, D), any floating type."""
        x = features.double()
        if not self.count:
            self.shift = x.mean(0)
            self.sums, self.outer = torch.zeros_like(self.shift), x.new_zeros(x.shape[1], x.shape[1])
        x = x - self.shift
        self.count += len(x)
        self.sums += x.sum(0)
        self.outer += x.T @ x

    def mean(self) -> Tensor:
        """Return the mean, (D,)."""
        return self.shift + self.sums / self.count

    def covariance(self) -> Tensor:
        """Return the unbiased covariance, (D, D).  Raises DataError: fewer than two images."""
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 images, got {self.count}")
        return (self.outer - torch.outer(self.sums, self.sums) / self.count) / (self.count - 1)

    def without(self, features: Tensor) -> Moments:
        """Return the moments of the rest when these features, (B, D), are taken out again."""
        x = features.double() - self.shift
        sums, outer = self.sums - x.sum(0), self.outer - x.T @ x
        return Moments(self.count - len(x), self.shift, sums, outer)

    @classmethod
    def given(cls, count: int, mean: Tensor, covariance: Tensor) -> Moments:
        """Build from a number of images, their mean (D,) and unbiased covariance (D, D)."""
        return cls(count, mean.double(), torch.zeros_like(mean.double()), covariance.double() * (count - 1))

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Build from features that are all in memory: (N, D)."""
        moments = cls()
        for some in features.split(CHUNK):
            moments.add(some)
        return moments


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), between the normal distributions of these moments.

    Dowson and Landau 1982; Heusel et al. 2017, eq. 6. The trace of the root is the sum of the singular values of
    C_a^(1/2) C_b^(1/2): never complex, and exact where a covariance is singular.
    """
    roots = _root(a.covariance()) @ _root(b.covariance())
    means = (a.mean() - b.mean()).square().sum()
    trace = a.covariance().trace() + b.covariance().trace()
    return float(means + trace - 2 * torch.linalg.svdvals(roots).sum())


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    # rounding can leave eigenvalues of a singular covariance a little below zero
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel_distance(x: Tensor, y: Tensor, draw: torch.Generator, subsets: int = 100, size: int = 1000) -> Tensor:
    """Return squared maximum mean discrepancies of random subsets of x (N, D) and y (M, D): (subsets,), unbiased each.

    Binkowski et al. 2018, with their kernel (x . y / D + 1)^3. Their mean is the distance, and may be a little below
    zero; their standard deviation is its spread. size: images of a subset; all of the smaller set where that has fewer.
    Raises DataError: fewer than two images.
    """
    size = min(size, len(x), len(y))
    if size < 2:
        raise DataError(f"a kernel distance needs at least 2 images on each side, got {len(x)} and {len(y)}")
    found = []
    for _ in range(subsets):
        a = x[torch.randperm(len(x), generator=draw)[:size]].double()
        b = y[torch.randperm(len(y), generator=draw)[:size]].double()
        aa, bb, ab = _kernel(a, a), _kernel(b, b), _kernel(a, b)
        within = (aa.sum() - aa.trace() + bb.sum() - bb.trace()) / (size * (size - 1))
        found.append(within - 2 * ab.mean())
    return torch.stack(found)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


@dataclass(frozen=True)
class Manifolds:
    """Mutual coverage of two sets, each value a share of images except density, which may exceed 1.

    precision: generated images that lie among real ones.  recall: real images that lie among generated ones
    (Kynkaanniemi et al. 2019).  density: real neighbourhoods that a generated image lies in, over k.
    coverage: real images with a generated one in their neighbourhood (Naeem et al. 2020).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(real: Tensor, fake: Tensor, k: int = 5) -> Manifolds:
    """Compute precision, recall, density and coverage.  real: (N, D), fake: (M, D), all in memory.

    The neighbourhood of an image reaches to its k-th nearest in its own set.
    Raises DataError: a set of k images or fewer.
    """
    if min(len(real), len(fake)) <= k:
        got = f"got {len(real)} and {len(fake)}"
        raise DataError(f"neighbourhoods of {k} need more than {k} images on each side, {got}")
    real, fake = real.double(), fake.double()
    radii_real, radii_fake = _radii(real, k), _radii(fake, k)
    inside, held, covered = [], [], []
    for _, apart in _distances(fake, real):
        among = apart <= radii_real
        inside.append(among.any(1))
        held.append(among.sum(1))
    for some, apart in _distances(real, fake):
        covered.append(torch.stack([(apart <= radii_fake).any(1), apart.amin(1) <= radii_real[some]]))
    recall, coverage = torch.cat(covered, 1).double().mean(1).tolist()
    return Manifolds(
        precision=float(torch.cat(inside).double().mean()),
        recall=recall,
        density=float(torch.cat(held).double().mean() / k),
        coverage=coverage,
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """Return the distance of each row to its k-th nearest other: (N,).  An image is its own nearest, hence k + 1."""
    return torch.cat([apart.kthvalue(k + 1, dim=1).values for _, apart in _distances(x, x)])


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, distances of these rows of x to all of y), CHUNK rows at a time."""
    for begin in range(0, len(x), CHUNK):
        rows = slice(begin, begin + CHUNK)
        yield rows, torch.cdist(x[rows], y)


def classifier_score(probabilities: Tensor, splits: int = 10) -> Tensor:
    """Return exp of the mean divergence of P(Y given X) from P(Y), of each split: (splits,), between 1 and the classes.

    Salimans et al. 2016, with another classifier than theirs, so not an Inception Score.
    probabilities: (N, K), in the order of generation.  Raises DataError: fewer images than splits.
    """
    if len(probabilities) < splits:
        raise DataError(f"a classifier score needs at least {splits} images, got {len(probabilities)}")
    scores = []
    for part in probabilities.double().tensor_split(splits):
        # 0 log 0 is 0: a ratio of 1 avoids 0 * -infinity
        ratio = torch.where(part > 0, part / part.mean(0), torch.ones_like(part))
        scores.append((part * ratio.log()).sum(1).mean().exp())
    return torch.stack(scores)


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest row of y (M, D) to each row of x (N, D): distances (N,) float64 and row numbers (N,)."""
    found = [apart.min(1) for _, apart in _distances(x.double(), y.double())]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
