"""Open the subject of an evaluation as an image set: a run or model, a folder of images, parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2i import config
from t2i.data.rows import Row
from t2i.data.sources import open_source
from t2i.data.tables import load_table
from t2i.errors import DataError, T2IError, UsageError
from t2i.evaluation.image_sets import GeneratedSet, ImageSet, SampledSet, StoredSet
from t2i.evaluation.prompted_samples import open_prompted
from t2i.imaging.decoding import open_image
from t2i.metadata import recipe
from t2i.metadata.jsonable import public_name
from t2i.model_files.locate import locate
from t2i.model_files.registry import HUB_ID, NAMES, read_json
from t2i.pipelines.class_conditional.protocol import ImageModel
from t2i.pipelines.class_conditional.sample_folder import MANIFEST, MODELS, load_model

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # what `t2i generate` writes
FIRST = 10  # images of a folder that are checked for a record of ours
INSPECTED = 100  # images at the beginning whose format and original size are read


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
    """Open a run or model, a folder of images, or parquet files, at this size.

    count: images to generate with a model.  prompts: of a text-to-image model, in turn.
    given: `device`, `offline`, and the model's settings.
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
        return generated_set(load_model(what, device=device, offline=offline), size, count or 0, seed, **settings)
    if settings or prompts:
        names = ", ".join([*settings, *(["prompts"] if prompts else [])])
        raise UsageError(f"{names}: {path.name} holds pictures that are drawn already", "leave it out")
    if (path / MANIFEST).is_file():
        return open_sample_folder(path, size)
    if path.is_dir() and (made := generated_files(path)):
        return open_generated_folder(path, made, size)
    return open_stored(config.Source(path=what), size, label)


def draws_from_text(what: str, offline: bool = False) -> bool:
    """Return whether this is a text-to-image model, which needs prompts.  Raises ModelUnavailable, ModelError."""
    return _is_model(what) and locate(what, offline=offline).kind not in MODELS


def _is_model(what: str) -> bool:
    """Return whether this is a model or a run, rather than images; a path on disk takes precedence over a name."""
    path = Path(what)
    if path.exists():
        held = any((folder / "model_index.json").is_file() for folder in (path, path / "export"))
        return held or (path / "config.yaml").is_file()
    return what in NAMES or HUB_ID.fullmatch(what) is not None


def generated_set(model: ImageModel, size: int, count: int, seed: int = 0, **given: Any) -> GeneratedSet:
    """Prepare images by a model with these settings.  Raises UsageError: settings that it does not take."""
    settings = model.settings(**given)
    # one image, to learn the size before resampling
    (one,) = model.draw([seed], model.label_numbers(1, None), **settings)
    return GeneratedSet(model, count, size, seed, settings, (min(one.size),))


def open_sample_folder(folder: Path, size: int) -> SampledSet:
    """Open the numbered images of a folder of samples, leaving out the sheet beside them.  Raises DataError."""
    found = tuple(sorted(path for path in folder.glob("*.png") if path.stem.isdigit()))
    if not found:
        raise DataError(f"{folder} holds no samples yet", "t2i sample writes them: 000000.png ...")
    drawn_with = dict(read_json(folder / MANIFEST))
    facts = {"kind": "samples", "name": folder.resolve().name, "hash": drawn_with.pop("model", None)}
    sides = {min(open_image(path, path.name).size) for path in found[:INSPECTED]}
    return SampledSet(folder.resolve().name, found, size, facts | {"settings": drawn_with}, tuple(sorted(sides)))


def generated_files(folder: Path) -> tuple[Path, ...]:
    """Return the images in a folder that have a record of ours; none where none of the first FIRST has one."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    return tuple(filter(_has_recipe, found)) if any(map(_has_recipe, found[:FIRST])) else ()


def _has_recipe(path: Path) -> bool:
    try:
        return recipe.read(path).recipe is not None
    except T2IError:  # the error is raised, with the file's name, when the image is decoded
        return False


def open_generated_folder(folder: Path, found: tuple[Path, ...], size: int) -> SampledSet:
    """Open a folder written by `t2i generate`."""
    name = folder.resolve().name
    heads = [open_image(path, path.name) for path in found[:INSPECTED]]
    sides = tuple(sorted({min(head.size) for head in heads}))
    formats = tuple(sorted({str(head.format) for head in heads}))
    return SampledSet(name, found, size, {"kind": "samples", "name": name}, sides, formats, True)


def open_stored(source: config.Source, size: int, label: str | None = None, progress: bool = False) -> StoredSet:
    """Open a data set.  size: 0 takes that of its first image.  label: the column of classes; none: the only one.

    Raises DataError: no such data or column, an image that cannot be read.
    """
    formats, sides = inspect_formats(source)
    size = size or sides[0]
    table = load_table(config.Data(sources=(source,), size=size), progress)
    if label is not None and label not in table.classes:
        known = ", ".join(map(repr, table.classes)) or "none"
        raise DataError(f"label: no column {label!r} of classes; the data has {known}")
    if label is None and len(table.classes) == 1:
        (label,) = table.classes
    return StoredSet(public_name(source.path), table, label, formats, sides)


def inspect_formats(source: config.Source) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the formats and short sides of the first images, which show how they were stored and resampled before.

    Raises DataError: none of them can be read.
    """
    formats, sides = set(), set()
    for number, row in enumerate(open_source(source).rows):
        if number == INSPECTED:
            break
        if (head := _head(row)) is not None:
            formats.add(head[0])
            sides.add(head[1])
    if not sides:
        raise DataError(f"{source.path}: none of the first {INSPECTED} images can be read")
    return tuple(sorted(formats)), tuple(sorted(sides))


def _head(row: Row) -> tuple[str, int] | None:
    if row.image is None:
        return None
    try:
        image = open_image(row.image, row.where)
    except T2IError:  # the error is raised, with the row, when the image is decoded
        return None
    return str(image.format), min(image.size)
