"""What the pipelines of all families that draw without a prompt have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from t2i.pipelines.class_conditional.labels import Labels

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class ImageModel(Protocol):
    """What every family's pipeline offers: image k of a batch is a function of the model, its class and its seed."""

    name: str
    hash: str | None
    classes: tuple[str, ...]

    def label_numbers(self, batch: int, labels: Labels) -> Tensor | None:
        """Class numbers of a batch, (B,) int64; None for an unconditional model."""
        ...

    def settings(self, **given: Any) -> dict[str, Any]:
        """What `draw` takes besides, with defaults.  Raises UsageError for what the model has no use for."""
        ...

    def draw(self, seeds: Sequence[int], labels: Tensor | None, **settings: Any) -> list[Image]:
        """One batch of pictures."""
        ...

    def interpolate(self, first: int, last: int, count: int, label: str | int | None, **settings: Any) -> list[Image]:
        """`count` pictures on the way from one seed to another."""
        ...

    def record(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What a picture's recipe says of how it was drawn."""
        ...


def draw_batches(
    model: ImageModel, batch: int, labels: Labels, seed: int, batch_size: int, **settings: Any
) -> list[Image]:
    """`batch` pictures, at most `batch_size` at once; picture k has seed + k.  Raises UsageError, NonFinite."""
    numbers = model.label_numbers(batch, labels)
    drawn: list[Image] = []
    for begin in range(0, batch, batch_size):
        part = slice(begin, min(begin + batch_size, batch))
        seeds = range(seed + part.start, seed + part.stop)
        drawn += model.draw(seeds, None if numbers is None else numbers[part], **settings)
    return drawn
