"""All numbers of a set of pictures against real ones, and the floor: the same numbers of real pictures.

No set of N pictures, real ones among them, is at distance 0 from other real ones: the floor is what N real pictures get
that are taken out of the reference and measured against the rest, DRAWS times. A number without it says little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t2i.errors import DataError
from t2i.evaluation.extraction import Seen, sample
from t2i.evaluation.metrics import Moments, classifier_score, frechet_distance, kernel_distance, manifolds, nearest
from t2i.randomness import generator

PAIRS = 10_000  # pictures of each side, at most, where each is compared with each
FEWEST = 10  # pictures that every number here can be had of
DRAWS = 3  # of the floor
UNEVEN = 0.005  # of all pictures, by which the share of a class may be off where classes are balanced
LOOKED_UP = 1_000  # pictures of the floor whose nearest others are looked up: a median needs no more
OF_CLASS = 2 * FEWEST  # pictures of one class, at least, for numbers of its own

# What each number is, and whether more of it is better (1), less (-1), or as near to the floor as can be (0).
MEASURES = {
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
class Side:
    """One side of a comparison.

    moments: of all its pictures.  features: (n, D), of a random sample of them.  logits: (n, K) or None.
    labels: (n,) int64, -1 where there is none.
    """

    moments: Moments
    features: Tensor
    logits: Tensor | None
    labels: Tensor

    @classmethod
    def of(cls, seen: Seen) -> Side:
        """All that was seen, of the first question."""
        logits = None if seen.logits is None else seen.logits[:, : len(seen.classes)]
        return cls(seen.moments, seen.features, logits, seen.labels)

    def take(self, rows: Tensor | slice) -> Side:
        """The same, with the features of these rows alone."""
        logits = None if self.logits is None else self.logits[rows]
        return Side(self.moments, self.features[rows], logits, self.labels[rows])


def split(seen: Seen, rows: Tensor) -> tuple[Side, Side]:
    """Pictures of these rows of what was kept, and all others, as if they had been seen apart."""
    others = torch.ones(len(seen.features), dtype=torch.bool).index_fill_(0, rows, False)
    whole, drawn = Side.of(seen), seen.features[rows]
    out, left = whole.take(rows), whole.take(others)
    return replace(out, moments=Moments.of(drawn)), replace(left, moments=seen.moments.without(drawn))


def measure(fake: Side, real: Side, pairs: int, seed: int = 0, looked_up: int = PAIRS) -> dict[str, float]:
    """The numbers of MEASURES that can be had; the kernel's and the classifier's with their own spread.

    pairs: real pictures, at most, that each is compared with.  looked_up: pictures whose nearest real one is looked
    for, among all of them.  Raises DataError: fewer than FEWEST pictures on a side.
    """
    x, y = fake.features[:PAIRS], real.features[:pairs]
    smaller = min(len(x), len(y))
    if smaller < FEWEST:
        raise DataError(f"a comparison needs at least {FEWEST} pictures on each side, got {smaller}")
    size = min(1000, smaller // 2)  # subsets that are not all of it, and so differ
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
        "nearest": float(nearest(x[:looked_up], real.features)[0].median()),
    }
    if fake.logits is not None:
        scores = classifier_score(fake.logits[:PAIRS].double().softmax(1))
        found |= {"classifier_score": float(scores.mean()), "classifier_score_spread": float(scores.std())}
        if (fake.labels >= 0).any():
            found["class_accuracy"] = accuracy(fake)
    return found


def accuracy(side: Side) -> float:
    """The share of pictures that are taken for what they are meant to be; of those that are meant to be something."""
    assert side.logits is not None
    labelled = side.labels >= 0
    return float((side.logits.argmax(1) == side.labels)[labelled].double().mean())


def by_class(fake: Side, real: Side, classes: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """{class: {`n`, `accuracy`, `frechet`}}, of classes with at least OF_CLASS pictures on both sides.

    `frechet` only where there are more pictures than features: else the covariance of so few is singular.
    """
    found = {}
    for number, name in enumerate(classes):
        mine, theirs = (side.take(side.labels == number) for side in (fake, real))
        if min(len(mine.labels), len(theirs.labels)) >= OF_CLASS:
            numbers = {"n": float(len(mine.labels))}
            if min(len(mine.labels), len(theirs.labels)) > mine.features.shape[1]:
                numbers["frechet"] = frechet_distance(Moments.of(mine.features), Moments.of(theirs.features))
            if mine.logits is not None:
                numbers["accuracy"] = accuracy(mine)
            found[name] = numbers
    return found


@dataclass(frozen=True)
class Floor:
    """What real pictures get against real ones.

    n: pictures of a draw.  pairs: real pictures each is compared with.  disjoint: whether no two draws share a picture.
    balanced: whether each class has its share of every draw.
    draws: the numbers of each.  classes: {class: numbers} of each.
    """

    n: int
    pairs: int
    disjoint: bool
    balanced: bool
    draws: list[dict[str, float]]
    classes: list[dict[str, dict[str, float]]]

    def mean(self, name: str) -> float | None:
        """Over the draws; None where none has this number."""
        return _mean([draw[name] for draw in self.draws if name in draw])

    def spread(self, name: str) -> float | None:
        """The deviation between the draws."""
        values = [draw[name] for draw in self.draws if name in draw]
        return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else None

    def of_class(self, name: str, number: str) -> float | None:
        """The mean of one class's number over the draws."""
        return _mean([draw[name][number] for draw in self.classes if number in draw.get(name, {})])


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def floor_size(reference: Seen, n: int) -> int:
    """How many real pictures stand in for n: half of those whose features are kept, at most."""
    return min(n, len(reference.features) // 2)


def is_balanced(found: Seen, reference: Seen) -> bool:
    """Whether each class has the share of the pictures that it has of the reference, to UNEVEN of them all."""
    if (found.labels < 0).any() or (reference.labels < 0).any() or not reference.classes:
        return False
    counts = (torch.bincount(side.labels, minlength=len(reference.classes)) for side in (found, reference))
    ours, theirs = (count / count.sum() for count in counts)
    return bool(((ours - theirs).abs() <= UNEVEN + 1 / len(found.labels)).all())


def floor(reference: Seen, n: int, balanced: bool = False) -> Floor:
    """The floor at n pictures.  Raises DataError: the reference is too small for any.

    balanced: every draw has each class's share of the reference, as pictures have that were drawn class by class; to
    them, n pictures at random would be a floor too high, since chance gives one class more and another less.
    """
    kept, size = len(reference.features), floor_size(reference, n)
    if size < FEWEST:
        raise DataError(f"a floor needs at least {FEWEST} pictures, and a reference of twice as many, got {kept}")
    pairs = min(PAIRS, kept - size)
    disjoint = DRAWS * size <= kept
    draws, classes = [], []
    for k in range(DRAWS):
        order = torch.arange(kept) if disjoint else sample(kept, kept, 1 + k)
        if balanced:
            order = evenly(order, reference.labels)
        out, left = split(reference, order[k * size :][:size] if disjoint else order[:size])
        draws.append(measure(out, left, pairs, k, LOOKED_UP))
        classes.append(by_class(out, left, reference.classes))
    return Floor(size, pairs, disjoint, balanced, draws, classes)


def evenly(order: Tensor, labels: Tensor) -> Tensor:
    """The same rows in an order any stretch of which has each class's share of them all, to one picture."""
    classes = labels[order]
    place = torch.zeros(len(order), dtype=torch.float64)
    for number in classes.unique():
        mine = (classes == number).nonzero()[:, 0]
        place[mine] = (torch.arange(len(mine), dtype=torch.float64) + 0.5) / len(mine)
    return order[place.argsort(stable=True)]
