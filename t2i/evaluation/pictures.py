"""The pictures that are judged: stored ones (a data set, a folder of samples) and those that a model draws for it.

All come as 8-bit pixels of the size that the judge takes, each with its class where it has one. Picture k is the same
whoever asks for it, so that any number of processes can share the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from t2i import config, images, recipe
from t2i.data.rows import Row
from t2i.data.sources import open_source
from t2i.data.tables import Table, load_table
from t2i.decoding import open_image
from t2i.errors import DataError, T2IError, UsageError
from t2i.pipelines.model import ImageModel
from t2i.pipelines.sampling import MANIFEST, load_model
from t2i.zoo import read_json

PEEKED = 100  # pictures whose format and own size are looked at, from the beginning


class Pictures(Protocol):
    """name: what is shown.  count: how many there are.  facts: what a result says of them.

    formats: of their files, PNG or JPEG; none for what is drawn here.  sides: their own short sides, of the first few.
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
    def pixels(self, which: Sequence[int]) -> Tensor:
        """(B, 3, S, S) uint8."""
        ...

    def labels(self, which: Sequence[int]) -> list[str]:
        """The names of their classes, "" where there is none."""
        ...


@dataclass(frozen=True)
class Stored:
    """The rows of a data set."""

    name: str
    table: Table
    label: str | None
    formats: tuple[str, ...]
    sides: tuple[int, ...]

    @property
    def count(self) -> int:
        return self.table.count

    @property
    def facts(self) -> dict[str, Any]:
        return {"kind": "images", "name": self.name, "hash": self.table.hash}

    def pixels(self, which: Sequence[int]) -> Tensor:
        return self.table.images(torch.tensor(which)).cpu()

    def labels(self, which: Sequence[int]) -> list[str]:
        if self.label is None:
            return [""] * len(which)
        column = self.table.columns[self.label]
        return [column[k] for k in which]


@dataclass(frozen=True)
class Sampled:
    """A folder that `t2i sample` filled: its numbered pictures, their classes from their own records."""

    name: str
    files: tuple[Path, ...]
    size: int
    facts: dict[str, Any]
    sides: tuple[int, ...]
    formats: tuple[str, ...] = ("PNG",)

    @property
    def count(self) -> int:
        return len(self.files)

    def pixels(self, which: Sequence[int]) -> Tensor:
        fitted = [images.fit(images.decode(self.files[k]), self.size) for k in which]
        return torch.stack([images.pixels(image) for image in fitted])

    def labels(self, which: Sequence[int]) -> list[str]:
        made = [recipe.read(self.files[k]).recipe for k in which]
        return ["" if one is None else one.prompt for one in made]


@dataclass(frozen=True)
class Drawn:
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

    def labels(self, which: Sequence[int]) -> list[str]:
        numbers = self._numbers(which)
        return [""] * len(which) if numbers is None else [self.model.classes[k] for k in numbers.tolist()]

    def _numbers(self, which: Sequence[int]) -> Tensor | None:
        numbers = self.model.label_numbers(max(which) + 1, None)
        return None if numbers is None else numbers[list(which)]


def open_pictures(
    what: str, size: int, *, count: int | None = None, seed: int = 0, label: str | None = None, **given: Any
) -> Pictures:
    """A run or model, a folder of pictures, or parquet files, at this size.

    count: how many a model draws.  given: how it draws (`device`, `offline`, and its settings).
    Raises UsageError, DataError, ModelError, ModelUnavailable.
    """
    device, offline = given.pop("device", None), given.pop("offline", False)
    settings = {key: value for key, value in given.items() if value is not None}
    path = Path(what)
    is_model = any((folder / "model_index.json").is_file() for folder in (path, path / "export"))
    if is_model or (path / "config.yaml").is_file():
        return drawn(load_model(what, device=device, offline=offline), size, count or 0, seed, **settings)
    if settings:
        raise UsageError(f"{', '.join(settings)}: {path.name} holds pictures that are drawn already", "leave it out")
    if (path / MANIFEST).is_file():
        return open_sampled(path, size)
    return open_stored(config.Source(path=what), size, label)


def drawn(model: ImageModel, size: int, count: int, seed: int = 0, **given: Any) -> Drawn:
    """What a model draws with these settings.  Raises UsageError: settings it has no use for."""
    settings = model.settings(**given)
    (one,) = model.draw([seed], model.label_numbers(1, None), **settings)
    return Drawn(model, count, size, seed, settings, (min(one.size),))


def open_sampled(folder: Path, size: int) -> Sampled:
    """The numbered pictures of a folder of samples; a sheet beside them is none.  Raises DataError."""
    found = tuple(sorted(path for path in folder.glob("*.png") if path.stem.isdigit()))
    if not found:
        raise DataError(f"{folder} holds no samples yet", "t2i sample writes them: 000000.png ...")
    drawn_with = dict(read_json(folder / MANIFEST))
    facts = {"kind": "samples", "name": folder.resolve().name, "hash": drawn_with.pop("model", None)}
    sides = {min(open_image(path, path.name).size) for path in found[:PEEKED]}
    return Sampled(folder.resolve().name, found, size, facts | {"settings": drawn_with}, tuple(sorted(sides)))


def open_stored(source: config.Source, size: int, label: str | None = None, progress: bool = False) -> Stored:
    """A data set.  size: 0 takes that of its first picture.  label: the column of classes; none: the only one.

    Raises DataError: no such data or column, a picture that cannot be read.
    """
    formats, sides = peek(source)
    size = size or sides[0]
    table = load_table(config.Data(sources=(source,), size=size), progress)
    if label is not None and label not in table.classes:
        known = ", ".join(map(repr, table.classes)) or "none"
        raise DataError(f"label: no column {label!r} of classes; the data has {known}")
    if label is None and len(table.classes) == 1:
        (label,) = table.classes
    return Stored(recipe.public_name(source.path), table, label, formats, sides)


def peek(source: config.Source) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The formats and short sides of the first pictures: what was done to them before they came here."""
    formats, sides = set(), set()
    for number, row in enumerate(open_source(source).rows):
        if number == PEEKED:
            break
        if (head := _head(row)) is not None:
            formats.add(head[0])
            sides.add(head[1])
    if not sides:
        raise DataError(f"{source.path}: none of the first {PEEKED} images can be read")
    return tuple(sorted(formats)), tuple(sorted(sides))


def _head(row: Row) -> tuple[str, int] | None:
    if row.image is None:
        return None
    try:
        image = open_image(row.image, row.where)
    except T2IError:  # it is named when it is decoded
        return None
    return str(image.format), min(image.size)


def class_indices(names: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Numbers of class names among these classes, -1 for any other: (B,) int64."""
    numbers: Mapping[str, int] = {name: k for k, name in enumerate(classes)}
    return torch.tensor([numbers.get(name, -1) for name in names], dtype=torch.int64)
