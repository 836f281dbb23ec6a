"""Find the input images of a replayed image: by name near it, and verified by the hash of their pixels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from t2i.errors import ImageError, UsageError
from t2i.jobs.replay.search_paths import last_part, places
from t2i.pipelines.settings.edit import Control, Upscale
from t2i.pipelines.settings.image_input import ImageInput


def restore_image_inputs(record: Mapping[str, Any], path: Path, given: Collection[str]) -> dict[str, Any]:
    """Return what a recipe's `edit` says as options, its images found near the image.

    path: the image that is replayed.  given: options that the user sets, which are not restored.
    Raises UsageError for an image that is not there, naming it and its hash; ImageError for a damaged record.
    """
    try:
        values: dict[str, Any] = {
            name: _find(record[name], path, f"`{name}=FILE`")
            for name in ("image", "mask")
            if name in record
            if name not in given
        }
        if "strength" in record and "strength" not in given:
            values["strength"] = float(record["strength"])
        if "controls" in record and "control" not in given:
            values["control"] = tuple(
                Control(str(one["net"]), _find(one, path, f"`control={one['net']}:FILE`"), float(one["scale"]))
                for one in record["controls"]
            )
        if "upscale" in record and "upscale" not in given:
            second = record["upscale"]
            values["upscale"] = Upscale(float(second["factor"]), float(second["strength"]))
        return values
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ImageError(f"`replay={path}`: the record of its input images is damaged") from None


def first_size(record: Mapping[str, Any], otherwise: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of the first pass.  otherwise: where the record does not say."""
    size = record.get("size")
    if isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size):
        return size[0], size[1]
    return otherwise


def edit_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a recipe's `edit` as rows for a human."""
    controls = record.get("controls")
    inputs = [("from", record.get("image")), ("mask", record.get("mask"))]
    inputs += [("guided by", one) for one in (controls if isinstance(controls, list) else [])]
    rows = [(title, _describe(about)) for title, about in inputs if isinstance(about, Mapping)]
    if "strength" in record:
        rows.append(("strength", str(record["strength"])))
    if isinstance(second := record.get("upscale"), Mapping):
        rows.append(("second pass", f"{second.get('factor')} times, strength {second.get('strength')}"))
    return rows


def _describe(about: Mapping[str, Any]) -> str:
    net = f"{about['net']} x {about.get('scale')}: " if "net" in about else ""
    return f"{net}{about.get('name') or 'an image without a name'} (pixels {str(about.get('hash'))[:10]})"


def _find(about: Mapping[str, str], path: Path, option: str) -> ImageInput:
    """Return the image with this name and hash near the replayed one.  option: that gives it, for the hint."""
    name, hash = last_part(about["name"]), about["hash"]
    other = ""
    for candidate in places(path, name):
        try:
            found = ImageInput.of(candidate)
        except ImageError:
            continue
        if found.hash == hash:
            return found
        other = f"; the {name} there is another image (pixels {found.hash[:16]})"
    raise UsageError(
        f"`replay={path}`: it was drawn from {name or 'an image without a name'} (pixels {hash[:16]}), which is neither"
        f" next to it nor here{other}",
        f"give its place: {option}",
    )
