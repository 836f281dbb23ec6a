"""What is known of an image, a run or a model folder, as plain data; without torch and without diffusers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from t2i.errors import ImageError, ModelError, UsageError
from t2i.imaging import images
from t2i.metadata import recipe
from t2i.model_files.registry import MINI

MAX_INDEX_BYTES = 1_000_000


def describe(path: Path) -> dict[str, Any]:
    """What is known about a file or folder, as plain JSON data.

    Raises ImageError for no image, and for an image without any record; ModelError for another sort of folder;
    UsageError where there is nothing.
    """
    if str(path) == "mini" and not path.exists():
        path = MINI
    if path.is_dir():
        return _describe_run(path) if (path / "config.yaml").is_file() else _describe_model(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    return _describe_image(path)


def _describe_image(path: Path) -> dict[str, Any]:
    record = recipe.read(path)
    if not (record.recipe or record.parameters or record.generated):
        damage = "".join(f"; {problem}" for problem in record.problems)
        hint = "tools that save an image again often drop what was written into it"
        raise ImageError(f"{path}: the image does not say how it was made{damage}", hint)
    return {
        "path": str(path),
        "kind": "image",
        "recipe": json.loads(record.recipe.to_json()) if record.recipe else None,
        "parameters": record.parameters,
        "settings": recipe.parse_parameters(record.parameters) if record.parameters else None,
        "generated": record.generated,
        "pixels": _compare_pixels(path, record.recipe),
        "problems": list(record.problems),
    }


def _compare_pixels(path: Path, made: recipe.Recipe | None) -> str | None:
    """Whether the pixels are those the recipe tells of; None where that cannot be known (JPEG and WebP lose some)."""
    if made is None or made.image_hash is None or path.suffix.lower() != ".png":
        return None
    try:
        same = images.pixel_hash(images.decode(path)) == made.image_hash
    except ImageError as e:
        return f"damaged: {e.message}"
    return "as drawn" if same else "changed since they were drawn"


def _describe_run(folder: Path) -> dict[str, Any]:
    """How far a training run is, how it does, its config, and the model that it has exported."""
    from t2i.report import summary_rows
    from t2i.report.runs import read_run

    run = read_run(folder)
    rows = [*summary_rows.summary_rows([run]), *summary_rows.metric_rows([run])]
    return {
        "path": str(folder),
        "kind": "run",
        "family": run.family,
        "images_seen": run.images_seen,
        "images": run.total or None,
        "summary": {name: value for name, (value,) in rows if value != summary_rows.NONE},
        "config": summary_rows.shareable(run.config),
        "model": _describe_model(folder / "export") if (folder / "export" / "model_index.json").is_file() else None,
    }


def _describe_model(folder: Path) -> dict[str, Any]:
    """The pipeline class, its components and their sizes in bytes, from model_index.json and the files beside it."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{folder}: neither a model (model_index.json) nor a run (config.yaml)", "give images, or such a folder"
        )
    try:
        with index.open("rb") as file:
            data = json.loads(file.read(MAX_INDEX_BYTES))
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(f"{index}: not valid JSON: {str(e)[:200]}") from None
    if not isinstance(data, dict) or not isinstance(data.get("_class_name"), str):
        raise ModelError(f"{index}: names no pipeline class (`_class_name`)")
    components = {}
    for name, value in data.items():
        # The name becomes a path: a plain word, so that it stays inside the folder.
        if re.fullmatch(r"[A-Za-z]\w*", name) and isinstance(value, list) and len(value) == 2 and value[1]:
            components[name] = {"class": str(value[1]), "bytes": _size(folder / name)}
    version = data.get("_diffusers_version")
    return {
        "path": str(folder),
        "kind": "model",
        "pipeline": data["_class_name"],
        "diffusers": version if isinstance(version, str) else None,
        "components": components,
        "bytes": sum(component["bytes"] for component in components.values()),
    }


def _size(folder: Path) -> int:
    """Bytes of the files right inside a component's folder; components are flat, and a link may lead anywhere."""
    files = (path for path in folder.glob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)
