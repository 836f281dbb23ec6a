"""All metrics of a set of images against real ones, and the floor: the same metrics of real images.

No set of N images, real ones among them, is at distance 0 from other real ones: the floor is the metrics of N real
images that are taken out of the reference and measured against the rest, DRAWS times. A metric without it says little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t2i.errors import DataError
from t2i.evaluation.extraction import ExtractedFeatures, sample
from t2i.evaluation.metrics import Moments, classifier_score, frechet_distance, kernel_distance, manifolds, nearest
from t2i.randomness import generator

PAIRS = 10_000  # images of each side, at most, where each is compared with each
FEWEST = 10  # images from which every metric here can be computed
DRAWS = 3  # of the floor
BALANCE_TOLERANCE = 0.005  # as a part of all images: deviation of a class's share that still counts as balanced
NEAREST_SAMPLE = 1_000  # images of the floor whose nearest others are searched: enough for a median
FEWEST_PER_CLASS = 2 * FEWEST  # images of one class, at least, for metrics of its own

# name -> title, and which values are better: higher (1), lower (-1), or nearer to the floor (0).
METRICS = {
    "frechet": ("Frechet distance", -1),
    "kernel": ("kernel distance x 1000", -1),
    "precision": ("precision", 1),
    "recall": ("recall", 1),
    "density": ("density", 1),
    "coverage": ("coverage", 1),
    "classifier_score": ("classifier score", 1),
    "class_accuracy": ("class accuracy", 1),
    "nearest": ("distance to the nearest real picture, median", 0),
}


@dataclass(frozen=True)
class FeatureSet:
    """One side of a comparison.

    moments: of all its images.  features: (n, D), of a random sample of them.  logits: (n, K) or None.
    labels: (n,) int64, -1 where there is none.
    """

    moments: Moments
    features: Tensor
    logits: Tensor | None
    labels: Tensor

    @classmethod
    def of(cls, extracted: ExtractedFeatures) -> FeatureSet:
        """Take everything that was extracted, with the first question's logits and labels."""
        logits = None if extracted.logits is None else extracted.logits[:, : len(extracted.classes)]
        return cls(extracted.moments, extracted.features, logits, extracted.labels)

    def take(self, rows: Tensor | slice) -> FeatureSet:
        """Return the same set with the features of these rows alone."""
        logits = None if self.logits is None else self.logits[rows]
        return FeatureSet(self.moments, self.features[rows], logits, self.labels[rows])


def split(extracted: ExtractedFeatures, rows: Tensor) -> tuple[FeatureSet, FeatureSet]:
    """Split what was extracted into these rows and all others, each with moments of its own."""
    others = torch.ones(len(extracted.features), dtype=torch.bool).index_fill_(0, rows, False)
    whole, drawn = FeatureSet.of(extracted), extracted.features[rows]
    out, left = whole.take(rows), whole.take(others)
    return replace(out, moments=Moments.of(drawn)), replace(left, moments=extracted.moments.without(drawn))


def compute_metrics(
    fake: FeatureSet, real: FeatureSet, pairs: int, seed: int = 0, nearest_count: int = PAIRS
) -> dict[str, float]:
    """Compute those of METRICS that can be; the kernel's and the classifier's with their own spread.

    pairs: real images, at most, that each is compared with.  nearest_count: images whose nearest real one is searched
    for, among all of them.  Raises DataError: fewer than FEWEST images on a side.
    """
    x, y = fake.features[:PAIRS], real.features[:pairs]
    smaller = min(len(x), len(y))
    if smaller < FEWEST:
        raise DataError(f"a comparison needs at least {FEWEST} pictures on each side, got {smaller}")
    size = min(1000, smaller // 2)  # at most half, so that the random subsets differ
    kernel = 1000 * kernel_distance(x, y, generator(seed, "kernel subsets"), size=size)
    among = manifolds(y, x)
    found = {
        "frechet": frechet_distance(fake.moments, real.moments),
        "kernel": float(kernel.mean()),
        "kernel_spread": float(kernel.std()),
        "precision": among.precision,
        "recall": among.recall,
        "density": among.density,
        "coverage": among.coverage,
        "nearest": float(nearest(x[:nearest_count], real.features)[0].median()),
    }
    if fake.logits is not None:
        scores = classifier_score(fake.logits[:PAIRS].double().softmax(1))
        found |= {"classifier_score": float(scores.mean()), "classifier_score_spread": float(scores.std())}
        if (fake.labels >= 0).any():
            found["class_accuracy"] = accuracy(fake)
    return found


def accuracy(side: FeatureSet) -> float:
    """Return the share of the labelled images that are classified as their label."""
    assert side.logits is not None
    labelled = side.labels >= 0
    return float((side.logits.argmax(1) == side.labels)[labelled].double().mean())


def by_class(fake: FeatureSet, real: FeatureSet, classes: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return {class: {`n`, `accuracy`, `frechet`}}, of classes with at least FEWEST_PER_CLASS images on both sides.

    `frechet` only where there are more images than features: the covariance of fewer is singular.
    """
    found = {}
    for number, name in enumerate(classes):
        mine, theirs = (side.take(side.labels == number) for side in (fake, real))
        if min(len(mine.labels), len(theirs.labels)) >= FEWEST_PER_CLASS:
            numbers = {"n": float(len(mine.labels))}
            if min(len(mine.labels), len(theirs.labels)) > mine.features.shape[1]:
                numbers["frechet"] = frechet_distance(Moments.of(mine.features), Moments.of(theirs.features))
            if mine.logits is not None:
                numbers["accuracy"] = accuracy(mine)
            found[name] = numbers
    return found


@dataclass(frozen=True)
class Floor:
    """The metrics of real images against real ones.

    n: images of a draw.  pairs: real images each is compared with.  disjoint: no two draws share an image.
    balanced: each class has its share of every draw.
    draws: the metrics of each.  classes: {class: metrics} of each.
    """

    n: int
    pairs: int
    disjoint: bool
    balanced: bool
    draws: list[dict[str, float]]
    classes: list[dict[str, dict[str, float]]]

    def mean(self, name: str) -> float | None:
        """Return the mean over the draws; None where none has this metric."""
        return _mean([draw[name] for draw in self.draws if name in draw])

    def spread(self, name: str) -> float | None:
        """Return the standard deviation over the draws; None for fewer than two."""
        values = [draw[name] for draw in self.draws if name in draw]
        return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else None

    def of_class(self, name: str, number: str) -> float | None:
        """Return the mean of one class's metric over the draws."""
        return _mean([draw[name][number] for draw in self.classes if number in draw.get(name, {})])


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def floor_size(reference: ExtractedFeatures, n: int) -> int:
    """Return the number of real images of a draw in place of n: at most half of those whose features are kept."""
    return min(n, len(reference.features) // 2)


def is_balanced(found: ExtractedFeatures, reference: ExtractedFeatures) -> bool:
    """Return whether each class has the same share of the images as of the reference, to within BALANCE_TOLERANCE."""
    if (found.labels < 0).any() or (reference.labels < 0).any() or not reference.classes:
        return False
    counts = (torch.bincount(side.labels, minlength=len(reference.classes)) for side in (found, reference))
    ours, theirs = (count / count.sum() for count in counts)
    return bool(((ours - theirs).abs() <= BALANCE_TOLERANCE + 1 / len(found.labels)).all())


def floor(reference: ExtractedFeatures, n: int, balanced: bool = False) -> Floor:
    """Compute the floor at n images.  Raises DataError: the reference is too small for any.

    balanced: every draw has each class's share of the reference, like images that were generated class by class. For
    those a floor of n random images would be too high, since chance gives one class more and another less.
    """
    kept, size = len(reference.features), floor_size(reference, n)
    if size < FEWEST:
        raise DataError(f"a floor needs at least {FEWEST} pictures, and a reference of twice as many, got {kept}")
    pairs = min(PAIRS, kept - size)
    disjoint = DRAWS * size <= kept
    draws, classes = [], []
    for k in range(DRAWS):
        # The kept rows are in random order already; only overlapping draws need an order each.
        order = torch.arange(kept) if disjoint else sample(kept, kept, 1 + k)
        if balanced:
            order = interleave_classes(order, reference.labels)
        out, left = split(reference, order[k * size :][:size] if disjoint else order[:size])
        draws.append(compute_metrics(out, left, pairs, k, NEAREST_SAMPLE))
        classes.append(by_class(out, left, reference.classes))
    return Floor(size, pairs, disjoint, balanced, draws, classes)


def interleave_classes(order: Tensor, labels: Tensor) -> Tensor:
    """Reorder rows so that any stretch has each class's share of them all, to one image.

    order: (n,) int64.  labels: of all rows.  Returns (n,) int64.
    """
    classes = labels[order]
    place = torch.zeros(len(order), dtype=torch.float64)
    for number in classes.unique():
        mine = (classes == number).nonzero()[:, 0]
        place[mine] = (torch.arange(len(mine), dtype=torch.float64) + 0.5) / len(mine)
    return order[place.argsort(stable=True)]
