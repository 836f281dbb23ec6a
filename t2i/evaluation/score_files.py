"""A score as files: score.json, a sheet of the pictures, and those nearest to real ones above their neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL.Image import Image

from t2i import atomic, config
from t2i.errors import DataError
from t2i.evaluation.image_sets import ImageSet, Stored
from t2i.evaluation.image_sources import open_stored
from t2i.evaluation.reference import Reference
from t2i.imaging import images
from t2i.metadata.recipe import Mark

SHOWN = 40  # pictures of the sheet
COLUMNS = 10
WIDE = 64  # pixels that a small picture is enlarged to, at least


def save_score(
    result: dict[str, Any],
    pictures: ImageSet,
    reference: Reference,
    data: str | None,
    folder: Path,
    overwrite: bool = False,
) -> list[Path]:
    """Write score.json, grid.png, and closest.png where the reference's data are given, by path.

    Raises UsageError: files that are there; DataError: other data than the reference's.
    """
    below = None if data is None else neighbours(result, reference, data)
    atomic.write(json.dumps(result, indent=1).encode(), folder / "score.json", overwrite=overwrite)
    images.save(
        images.grid(_pictures(pictures, shown(pictures)), columns=COLUMNS),
        folder / "grid.png",
        recipe=Mark(),
        overwrite=overwrite,
    )
    written = [folder / "score.json", folder / "grid.png"]
    if below is not None:
        above = _pictures(pictures, [pair["picture"] for pair in result["closest"]])
        distances = [f"{pair['distance']:.3g}" for pair in result["closest"]]
        sheet = images.grid([*above, *below], len(above), ["judged", "real"], distances)
        images.save(sheet, folder / "closest.png", recipe=Mark(), overwrite=overwrite)
        written.append(folder / "closest.png")
    return written


def shown(pictures: ImageSet) -> list[int]:
    """The pictures of the sheet: the first, whose classes come in turn; of a data set, which may be sorted, evenly."""
    count = min(SHOWN, pictures.count)
    return [k * pictures.count // count for k in range(count)] if isinstance(pictures, Stored) else list(range(count))


def neighbours(result: dict[str, Any], reference: Reference, path: str) -> list[Image]:
    """The real pictures that the closest pairs name.  Raises DataError: these are other data than the reference's."""
    data = open_stored(config.Source(path=path), reference.facts.size)
    if data.table.hash != reference.facts.data_hash:
        raise DataError(
            f"{data.name} is not the data of the reference: {data.table.hash[:12]}, it has "
            f"{reference.facts.data_hash[:12]} ({reference.facts.data})"
        )
    return _pictures(data, [pair["row"] for pair in result["closest"]])


def _pictures(pictures: ImageSet, which: list[int]) -> list[Image]:
    found = images.from_tensor(images.from_uint8(pictures.pixels(which)))
    return [images.enlarge(image, WIDE) for image in found]
