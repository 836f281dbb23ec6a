"""The pictures that are judged: stored ones (a data set, a folder of samples) and those that a model draws for it.

All come as 8-bit pixels of the size that the judge takes, each with its class where it has one. Picture k is the same
whoever asks for it, so that any number of processes can share the work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from t2i.data.tables import Table
from t2i.imaging import images
from t2i.metadata import recipe
from t2i.pipelines.class_conditional.protocol import ImageModel


class ImageSet(Protocol):
    """name: what is shown.  count: how many there are.  facts: what a result says of them.

    formats: of their files, PNG or JPEG; none for what is drawn here.  sides: their own short sides, of the first few.
    prompted: whether they were drawn from prompts.
    """

    @property
    def name(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def facts(self) -> dict[str, Any]: ...
    @property
    def formats(self) -> tuple[str, ...]: ...
    @property
    def sides(self) -> tuple[int, ...]: ...
    @property
    def prompted(self) -> bool: ...
    def pixels(self, which: Sequence[int]) -> Tensor:
        """(B, 3, S, S) uint8."""
        ...

    def labels(self, which: Sequence[int], question: str = "") -> list[str]:
        """What they are meant to show: the name of a class, or the whole prompt; "" where that is not known.

        question: of which, where the pictures have an answer to each.
        """
        ...


@dataclass(frozen=True)
class Stored:
    """The rows of a data set."""

    name: str
    table: Table
    label: str | None
    formats: tuple[str, ...]
    sides: tuple[int, ...]
    prompted: bool = False

    @property
    def count(self) -> int:
        return self.table.count

    @property
    def facts(self) -> dict[str, Any]:
        return {"kind": "images", "name": self.name, "hash": self.table.hash}

    def pixels(self, which: Sequence[int]) -> Tensor:
        return self.table.images(torch.tensor(which)).cpu()

    def labels(self, which: Sequence[int], question: str = "") -> list[str]:
        name = question if question in self.table.columns else self.label
        if name is None:
            return [""] * len(which)
        column = self.table.columns[name]
        return [column[k] for k in which]


@dataclass(frozen=True)
class Sampled:
    """A folder that `t2i sample` or `t2i generate` filled; classes or prompts from the pictures' own records."""

    name: str
    files: tuple[Path, ...]
    size: int
    facts: dict[str, Any]
    sides: tuple[int, ...]
    formats: tuple[str, ...] = ("PNG",)
    prompted: bool = False

    @property
    def count(self) -> int:
        return len(self.files)

    def pixels(self, which: Sequence[int]) -> Tensor:
        fitted = [images.fit(images.decode(self.files[k]), self.size) for k in which]
        return torch.stack([images.pixels(image) for image in fitted])

    def labels(self, which: Sequence[int], question: str = "") -> list[str]:
        made = [recipe.read(self.files[k]).recipe for k in which]
        return ["" if one is None else one.prompt for one in made]


@dataclass(frozen=True)
class GeneratedSet:
    """What a model draws: picture k has seed + k, and class k in turn.

    settings: what `model.draw` takes besides.
    """

    model: ImageModel
    count: int
    size: int
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    sides: tuple[int, ...] = ()
    formats: tuple[str, ...] = ()
    prompted: bool = False

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "kind": "model",
            "name": self.name,
            "hash": self.model.hash,
            "seed": self.seed,
            "settings": {key: value for key, value in self.settings.items() if value is not None},
        }

    def pixels(self, which: Sequence[int]) -> Tensor:
        numbers = self._numbers(which)
        drawn = self.model.draw([self.seed + k for k in which], numbers, **self.settings)
        return torch.stack([images.pixels(images.fit(image, self.size)) for image in drawn])

    def labels(self, which: Sequence[int], question: str = "") -> list[str]:
        numbers = self._numbers(which)
        return [""] * len(which) if numbers is None else [self.model.classes[k] for k in numbers.tolist()]

    def _numbers(self, which: Sequence[int]) -> Tensor | None:
        numbers = self.model.label_numbers(max(which) + 1, None)
        return None if numbers is None else numbers[list(which)]


def class_indices(texts: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Which class each text is or names, -1 where it names none of them, or several: (B,) int64."""
    numbers = {name: k for k, name in enumerate(classes)}
    return torch.tensor([numbers.get(text, _named(text, tuple(classes))) for text in texts], dtype=torch.int64)


@lru_cache(maxsize=100_000)
def _named(text: str, classes: tuple[str, ...]) -> int:
    """The one class whose name stands in a text as a word, in the singular or with an s."""
    found = [k for k, name in enumerate(classes) if re.search(rf"\b{re.escape(name)}s?\b", text, re.IGNORECASE)]
    return found[0] if len(found) == 1 else -1
