"""What is named on the command line, as pictures to judge: a run or model, a folder, parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2i import config
from t2i.data.rows import Row
from t2i.data.sources import open_source
from t2i.data.tables import load_table
from t2i.errors import DataError, T2IError, UsageError
from t2i.evaluation.image_sets import GeneratedSet, ImageSet, Sampled, Stored
from t2i.evaluation.prompted_samples import open_prompted
from t2i.imaging.decoding import open_image
from t2i.metadata import recipe
from t2i.metadata.jsonable import public_name
from t2i.model_files.locate import locate
from t2i.model_files.registry import HUB_ID, NAMES, read_json
from t2i.pipelines.class_conditional.protocol import ImageModel
from t2i.pipelines.class_conditional.sample_folder import MANIFEST, MODELS, load_model

DRAWN = (".png", ".jpg", ".jpeg", ".webp")  # what `t2i generate` writes
FIRST = 10  # pictures of a folder, that show whether it is full of our own
PEEKED = 100  # pictures whose format and own size are looked at, from the beginning


def open_pictures(
    what: str,
    size: int,
    *,
    count: int | None = None,
    seed: int = 0,
    label: str | None = None,
    prompts: Sequence[str] = (),
    **given: Any,
) -> ImageSet:
    """A run or model, a folder of pictures, or parquet files, at this size.

    count: how many a model draws.  prompts: of a text-to-image model, in turn.
    given: how it draws (`device`, `offline`, and its settings).
    Raises UsageError, DataError, ModelError, ModelUnavailable.
    """
    device, offline = given.pop("device", None), given.pop("offline", False)
    settings = {key: value for key, value in given.items() if value is not None}
    path = Path(what)
    if _is_model(what):
        if draws_from_text(what, offline):
            return open_prompted(what, size, count or 0, seed, prompts, device=device, offline=offline, **settings)
        if prompts:
            raise UsageError(f"prompts: {path.name} is a model that draws without them", "leave them out")
        return drawn(load_model(what, device=device, offline=offline), size, count or 0, seed, **settings)
    if settings or prompts:
        said = ", ".join([*settings, *(["prompts"] if prompts else [])])
        raise UsageError(f"{said}: {path.name} holds pictures that are drawn already", "leave it out")
    if (path / MANIFEST).is_file():
        return open_sampled(path, size)
    if path.is_dir() and (made := generated(path)):
        return open_generated(path, made, size)
    return open_stored(config.Source(path=what), size, label)


def draws_from_text(what: str, offline: bool = False) -> bool:
    """Whether this is a text-to-image model, which needs prompts.  Raises ModelUnavailable, ModelError."""
    return _is_model(what) and locate(what, offline=offline).kind not in MODELS


def _is_model(what: str) -> bool:
    """Whether this is a model or a run, rather than pictures; what is on disk goes before a name."""
    path = Path(what)
    if path.exists():
        held = any((folder / "model_index.json").is_file() for folder in (path, path / "export"))
        return held or (path / "config.yaml").is_file()
    return what in NAMES or HUB_ID.fullmatch(what) is not None


def drawn(model: ImageModel, size: int, count: int, seed: int = 0, **given: Any) -> GeneratedSet:
    """What a model draws with these settings.  Raises UsageError: settings it has no use for."""
    settings = model.settings(**given)
    (one,) = model.draw([seed], model.label_numbers(1, None), **settings)
    return GeneratedSet(model, count, size, seed, settings, (min(one.size),))


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
    return Stored(public_name(source.path), table, label, formats, sides)


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
