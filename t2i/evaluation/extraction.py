"""An extractor looks at pictures, shared over all processes, in one order and with the same numbers on any of them.

Work is cut into groups of BATCH by position. Every process looks at its own, then all exchange what they saw, so that
each has the groups in their order: sums come out the same to the last bit, however many processes there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from t2i.data.batches import visit_order
from t2i.distributed import gather, processes
from t2i.errors import DataError, NonFinite
from t2i.evaluation.features import BATCH, Extractor, Questions
from t2i.evaluation.image_sets import ImageSet, class_indices
from t2i.evaluation.metrics import Moments

KEPT = 50_000  # pictures whose features are kept, at most


@dataclass
class Seen:
    """What an extractor saw of pictures.

    moments: of all of them, float64.  rows: (K,) int64, the pictures whose features are kept, a random sample in random
    order where there are more.  features: (K, D) float32.  logits: (K, classes) float32, or None.
    answers: (K, Q) int64, what the pictures are meant to show, a column for each of `questions`, -1 where that is not
    known.  digests: (N,) int64, one of each picture's pixels.
    questions: the extractor's, or one without a name, of the classes of the data.
    """

    moments: Moments
    rows: Tensor
    features: Tensor
    logits: Tensor | None
    answers: Tensor
    digests: Tensor
    questions: Questions = field(default_factory=lambda: {"": ()})

    @property
    def count(self) -> int:
        return self.moments.count

    @property
    def labels(self) -> Tensor:
        """The answers to the first question: (K,) int64."""
        return self.answers[:, 0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the first question."""
        return next(iter(self.questions.values()))

    @property
    def dimensions(self) -> int:
        return self.features.shape[1]


def look(
    extractor: Extractor,
    pictures: ImageSet,
    which: Sequence[int],
    seed: int = 0,
    keep: int = KEPT,
    questions: Questions | None = None,
    seen: Callable[[int], object] = lambda n: None,
) -> Seen:
    """Look at these pictures.  The memory it takes grows with `keep`, not with how many there are.

    questions: to number answers by; none: the extractor's own.  seen: called with how many more have been looked at.
    Raises NonFinite, and what reading or drawing the pictures raises.
    """
    asked = extractor.questions if questions is None else questions
    chosen = sample(len(which), keep, seed)
    slots = torch.full((len(which),), -1).index_copy_(0, chosen, torch.arange(len(chosen)))
    moments, digests = Moments(), torch.zeros(len(which), dtype=torch.int64)
    kept: list[Tensor] = []
    for first, features, logits, answers, digest in _rounds(extractor, pictures, which, asked):
        if not features.isfinite().all():
            raise NonFinite(f"{extractor.name} answers NaN or infinity on pictures {first} to {first + len(features)}")
        moments.add(features)
        here = slice(first, first + len(features))
        digests[here] = digest
        if not kept:
            widths = (features.shape[1], 0 if logits is None else logits.shape[1])
            kept = [torch.zeros(len(chosen), width) for width in widths]
            kept.append(torch.zeros(len(chosen), len(asked), dtype=torch.int64))
        mine = slots[here] >= 0
        places = slots[here][mine]
        for store, value in zip(kept, (features, logits, answers), strict=True):
            if value is not None:
                store[places] = value[mine]
        seen(len(features))
    rows = torch.tensor(which, dtype=torch.int64)[chosen]
    return Seen(moments, rows, kept[0], kept[1] if kept[1].shape[1] else None, kept[2], digests, asked)


def sample(count: int, most: int, seed: int) -> Tensor:
    """At most `most` of 0 .. count - 1, at random, in random order: (n,) int64."""
    return visit_order(seed, count, 0, min(count, most), "evaluation")


Found = tuple[int, Tensor, Tensor | None, Tensor, Tensor]


def _rounds(extractor: Extractor, pictures: ImageSet, which: Sequence[int], questions: Questions) -> Iterator[Found]:
    """(first, features, logits, answers, digests) of one group after the other, the same on every process."""
    if not which:
        raise DataError("there are no pictures to look at")
    state = processes()
    begins = range(0, len(which), BATCH)
    for turn in range(0, len(begins), state.num_processes):
        # a process without a group of its own in the last turn looks at the last one again, and nobody takes it
        mine = begins[min(turn + state.process_index, len(begins) - 1)]
        group = which[mine : mine + BATCH]
        pixels = pictures.pixels(group)
        features, logits = extractor.look(pixels)
        answers = [class_indices(pictures.labels(group, name), classes) for name, classes in questions.items()]
        numbers = torch.stack([*answers, torch.tensor([digest(one) for one in pixels])], 1)
        seen = features if logits is None else torch.cat([features, logits], 1)
        seen, numbers = gather(_filled(seen)), gather(_filled(numbers))
        for k, first in enumerate(begins[turn : turn + state.num_processes]):
            here = slice(k * BATCH, k * BATCH + min(BATCH, len(which) - first))
            some = seen[here, : features.shape[1]]
            told = None if logits is None else seen[here, features.shape[1] :]
            yield first, some, told, numbers[here, :-1], numbers[here, -1]


def _filled(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(BATCH - len(x), x.shape[1])])


def digest(pixels: Tensor) -> int:
    """63 bits that tell pictures apart.  pixels: (3, S, S) uint8."""
    return int.from_bytes(hashlib.sha256(pixels.numpy().tobytes()).digest()[:8], "big") >> 1
