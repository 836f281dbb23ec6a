"""Feature extraction over a set of images, distributed over all processes with identical results on any number of them.

The images are split into batches of BATCH by position. Every process extracts its own, then all exchange theirs, so
that each has the batches in order: sums are the same to the last bit, however many processes there are.
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

KEPT = 50_000  # images whose features are kept, at most


@dataclass
class ExtractedFeatures:
    """The output of an extractor over a set of images.

    moments: of all of them, float64.  rows: (K,) int64, the images whose features are kept, a random sample in random
    order where there are more.  features: (K, D) float32.  logits: (K, classes) float32, or None.
    answers: (K, Q) int64, the classes that the images are meant to show, a column for each of `questions`, -1 where
    unknown.  digests: (N,) int64, one of each image's pixels.
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
        """Return the answers to the first question: (K,) int64."""
        return self.answers[:, 0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes of the first question."""
        return next(iter(self.questions.values()))

    @property
    def dimensions(self) -> int:
        return self.features.shape[1]


def extract_features(
    extractor: Extractor,
    pictures: ImageSet,
    which: Sequence[int],
    seed: int = 0,
    keep: int = KEPT,
    questions: Questions | None = None,
    seen: Callable[[int], object] = lambda n: None,
) -> ExtractedFeatures:
    """Extract the features of these images.  Memory grows with `keep`, not with their number.

    questions: by which to number answers; none: the extractor's own.  seen: called with each batch's number of images.
    Raises NonFinite, and what reading or generating the images raises.
    """
    asked = extractor.questions if questions is None else questions
    chosen = sample(len(which), keep, seed)
    # the inverse of `chosen`: the place of each position among those kept, -1 where it is not
    slots = torch.full((len(which),), -1).index_copy_(0, chosen, torch.arange(len(chosen)))
    moments, digests = Moments(), torch.zeros(len(which), dtype=torch.int64)
    kept: list[Tensor] = []
    for first, features, logits, answers, digest in _extract_batches(extractor, pictures, which, asked):
        if not features.isfinite().all():
            raise NonFinite(f"{extractor.name} returns NaN or infinity on pictures {first} to {first + len(features)}")
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
    return ExtractedFeatures(moments, rows, kept[0], kept[1] if kept[1].shape[1] else None, kept[2], digests, asked)


def sample(count: int, most: int, seed: int) -> Tensor:
    """Return at most `most` of 0 .. count - 1, at random, in random order: (n,) int64."""
    return visit_order(seed, count, 0, min(count, most), "evaluation")


ExtractedBatch = tuple[int, Tensor, Tensor | None, Tensor, Tensor]


def _extract_batches(
    extractor: Extractor, pictures: ImageSet, which: Sequence[int], questions: Questions
) -> Iterator[ExtractedBatch]:
    """Yield (first, features, logits, answers, digests) of one batch after the other, the same on every process."""
    if not which:
        raise DataError("there are no pictures to extract features from")
    state = processes()
    begins = range(0, len(which), BATCH)
    for step in range(0, len(begins), state.num_processes):
        # Without a batch of its own in the last step, a process repeats the last one, to take part in the gather; the
        # repetition is dropped below.
        mine = begins[min(step + state.process_index, len(begins) - 1)]
        positions = which[mine : mine + BATCH]
        pixels = pictures.pixels(positions)
        features, logits = extractor.extract(pixels)
        answers = [class_indices(pictures.labels(positions, name), classes) for name, classes in questions.items()]
        numbers = torch.stack([*answers, torch.tensor([digest(one) for one in pixels])], 1)
        outputs = features if logits is None else torch.cat([features, logits], 1)
        outputs, numbers = gather(_padded(outputs)), gather(_padded(numbers))
        for k, first in enumerate(begins[step : step + state.num_processes]):
            here = slice(k * BATCH, k * BATCH + min(BATCH, len(which) - first))
            some = outputs[here, : features.shape[1]]
            some_logits = None if logits is None else outputs[here, features.shape[1] :]
            yield first, some, some_logits, numbers[here, :-1], numbers[here, -1]


def _padded(x: Tensor) -> Tensor:
    """Append rows of zeros up to BATCH: gather needs the same shape on every process."""
    return torch.cat([x, x.new_zeros(BATCH - len(x), x.shape[1])])


def digest(pixels: Tensor) -> int:
    """Return 63 bits that identify an image's pixels.  pixels: (3, S, S) uint8."""
    return int.from_bytes(hashlib.sha256(pixels.numpy().tobytes()).digest()[:8], "big") >> 1
