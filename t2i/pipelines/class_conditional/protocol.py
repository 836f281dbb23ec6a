"""The protocol of all pipelines that draw without a prompt, and drawing in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from t2i.pipelines.class_conditional.labels import Labels

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class ImageModel(Protocol):
    """A pipeline of any family: image k of a batch is a function of the model, its class and its seed."""

    name: str
    hash: str | None
    classes: tuple[str, ...]

    def label_numbers(self, batch: int, labels: Labels) -> Tensor | None:
        """Return class numbers of a batch, (B,) int64; None for an unconditional model."""
        ...

    def settings(self, **given: Any) -> dict[str, Any]:
        """Complete the settings of `draw` with defaults.  Raises UsageError for unknown or useless ones."""
        ...

    def draw(self, seeds: Sequence[int], labels: Tensor | None, **settings: Any) -> list[Image]:
        """Draw one batch."""
        ...

    def interpolate(self, first: int, last: int, count: int, label: str | int | None, **settings: Any) -> list[Image]:
        """Draw `count` images on the way from one seed to another."""
        ...

    def record(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a recipe that depend on the settings."""
        ...


def draw_batches(
    model: ImageModel, batch: int, labels: Labels, seed: int, batch_size: int, **settings: Any
) -> list[Image]:
    """Draw `batch` images, at most `batch_size` at once; image k has seed + k.  Raises UsageError, NonFinite."""
    numbers = model.label_numbers(batch, labels)
    drawn: list[Image] = []
    for begin in range(0, batch, batch_size):
        part = slice(begin, min(begin + batch_size, batch))
        seeds = range(seed + part.start, seed + part.stop)
        drawn += model.draw(seeds, None if numbers is None else numbers[part], **settings)
    return drawn
