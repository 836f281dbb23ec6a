"""Image sets to be scored: stored ones (a data set, a folder of samples) and those that a model generates on request.

All give 8-bit pixels of the extractor's size, each with its class where it has one. Image k is the same in every call
and on every process, so that any number of processes can share the work.
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
    """The images of one subject.

    name: of the subject.  count: of the images.  facts: what identifies the subject in a result.
    formats: of their files, PNG or JPEG; none for generated ones.  sides: their own short sides, of the first few.
    prompted: they were generated from prompts.
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
        """Return images, (B, 3, S, S) uint8."""
        ...

    def labels(self, which: Sequence[int], question: str = "") -> list[str]:
        """Return what the images are meant to show: the name of a class, or the whole prompt; "" where unknown.

        question: selects the answers to one question, where the images have an answer to each.
        """
        ...


@dataclass(frozen=True)
class StoredSet:
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
class SampledSet:
    """A folder written by `t2i sample` or `t2i generate`; classes or prompts from the images' own records."""

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
    """Images of a model: image k has seed + k, and class k in turn.

    settings: further arguments of `model.draw`.
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
        # classes come in turn from the first image on, so all up to the last one are needed
        numbers = self.model.label_numbers(max(which) + 1, None)
        return None if numbers is None else numbers[list(which)]


def class_indices(texts: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Return the class that each text is or names, -1 where it names none of them, or several: (B,) int64."""
    numbers = {name: k for k, name in enumerate(classes)}
    return torch.tensor([numbers.get(text, _named(text, tuple(classes))) for text in texts], dtype=torch.int64)


@lru_cache(maxsize=100_000)  # prompts repeat, and each is searched for every class
def _named(text: str, classes: tuple[str, ...]) -> int:
    """Return the one class whose name is a word of a text, in the singular or with an s; -1: none, or several."""
    found = [k for k, name in enumerate(classes) if re.search(rf"\b{re.escape(name)}s?\b", text, re.IGNORECASE)]
    return found[0] if len(found) == 1 else -1
