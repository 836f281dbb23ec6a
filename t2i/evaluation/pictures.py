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

from t2i import config, images, recipe
from t2i.data.rows import Row
from t2i.data.sources import open_source
from t2i.data.tables import Table, load_table
from t2i.decoding import open_image
from t2i.errors import DataError, T2IError, UsageError
from t2i.evaluation.prompted import open_prompted
from t2i.pipelines.loading import locate
from t2i.pipelines.model import ImageModel
from t2i.pipelines.sampling import MANIFEST, MODELS, load_model
from t2i.zoo import HUB_ID, NAMES, read_json

DRAWN = (".png", ".jpg", ".jpeg", ".webp")  # what `t2i generate` writes
FIRST = 10  # pictures of a folder, that show whether it is full of our own
PEEKED = 100  # pictures whose format and own size are looked at, from the beginning


class Pictures(Protocol):
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


def open_pictures(
    what: str,
    size: int,
    *,
    count: int | None = None,
    seed: int = 0,
    label: str | None = None,
    prompts: Sequence[str] = (),
    **given: Any,
) -> Pictures:
    """A run or model, a folder of pictures, or parquet files, at this size.

    count: how many a model draws.  prompts: of a text-to-image model, in turn.
    given: how it draws (`device`, `offline`, and its settings).
    Raises UsageError, DataError, ModelError, ModelUnavailable.
    """
    device, offline = given.pop("device", None), given.pop("offline", False)
    settings = {key: value for key, value in given.items() if value is not None}
    path = Path(what)
    if _is_model(what):
        if (kind := locate(what, offline=offline).kind) not in MODELS:
            return open_prompted(what, size, count or 0, seed, prompts, device=device, offline=offline, **settings)
        if prompts:
            raise UsageError(f"prompts: {path.name} is a {kind}, which draws without them", "leave them out")
        return drawn(load_model(what, device=device, offline=offline), size, count or 0, seed, **settings)
    if settings or prompts:
        said = ", ".join([*settings, *(["prompts"] if prompts else [])])
        raise UsageError(f"{said}: {path.name} holds pictures that are drawn already", "leave it out")
    if (path / MANIFEST).is_file():
        return open_sampled(path, size)
    if path.is_dir() and (made := generated(path)):
        return open_generated(path, made, size)
    return open_stored(config.Source(path=what), size, label)


def _is_model(what: str) -> bool:
    """Whether this is a model or a run, rather than pictures; what is on disk goes before a name."""
    path = Path(what)
    if path.exists():
        held = any((folder / "model_index.json").is_file() for folder in (path, path / "export"))
        return held or (path / "config.yaml").is_file()
    return what in NAMES or HUB_ID.fullmatch(what) is not None


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


def generated(folder: Path) -> tuple[Path, ...]:
    """The pictures in a folder whose own records say how they were drawn; none where none of the first has one."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in DRAWN]
    return tuple(filter(_has_recipe, found)) if any(map(_has_recipe, found[:FIRST])) else ()


def _has_recipe(path: Path) -> bool:
    try:
        return recipe.read(path).recipe is not None
    except T2IError:  # it is named when it is decoded
        return False


def open_generated(folder: Path, found: tuple[Path, ...], size: int) -> Sampled:
    """A folder that `t2i generate` filled."""
    name = folder.resolve().name
    heads = [open_image(path, path.name) for path in found[:PEEKED]]
    sides = tuple(sorted({min(head.size) for head in heads}))
    formats = tuple(sorted({str(head.format) for head in heads}))
    return Sampled(name, found, size, {"kind": "samples", "name": name}, sides, formats, True)


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


def class_indices(texts: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Which class each text is or names, -1 where it names none of them, or several: (B,) int64."""
    numbers = {name: k for k, name in enumerate(classes)}
    return torch.tensor([numbers.get(text, _named(text, tuple(classes))) for text in texts], dtype=torch.int64)


@lru_cache(maxsize=100_000)
def _named(text: str, classes: tuple[str, ...]) -> int:
    """The one class whose name stands in a text as a word, in the singular or with an s."""
    found = [k for k, name in enumerate(classes) if re.search(rf"\b{re.escape(name)}s?\b", text, re.IGNORECASE)]
    return found[0] if len(found) == 1 else -1
