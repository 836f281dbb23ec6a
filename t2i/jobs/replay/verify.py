"""Verify that a replayed image is identical to the original, and if not, say what differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.errors import ImageError
from t2i.jobs.spec.tasks import Original
from t2i.metadata.recipe import Recipe
from t2i.pipelines.settings.edit import comparable

if TYPE_CHECKING:
    from PIL.Image import Image

# What a user asks for, by the fields of Recipe: where all of it is as recorded, the same image is expected.
ASKED = {
    "prompt": "prompt",
    "negative_prompt": "negative prompt",
    "reading": "reading of its prompt",
    "model": "model",
    "seed": "seed",
    "steps": "number of steps",
    "guidance": "guidance",
    "width": "width",
    "height": "height",
    "scheduler": "scheduler",
    "dtype": "dtype",
    "adapters": "set of adapters",
    "edit": "input image, strength or ControlNet",
}


def verify(original: Original, made: Recipe, image: Image) -> str | None:
    """Say on one line whether the new image is the recorded one; None for another tool's record, without a hash."""
    record = original.recipe
    if record is None:
        return None
    changed = [
        words for name, words in ASKED.items() if comparable(getattr(record, name)) != comparable(getattr(made, name))
    ]
    if not made.machine.get("retries"):  # else memory decided, not the user
        changed += [name for name in ("quantize", "tiling") if record.machine.get(name) != made.machine.get(name)]
    names = dict.fromkeys((*record.options, *made.options))
    changed += [name for name in names if record.options.get(name) != made.options.get(name)]
    changed += ["step cache"] if record.machine.get("cache") != made.machine.get("cache") else []
    if changed:
        return f"{original.path}: drawn anew, with another {', '.join(changed)}"
    if record.image_hash is None:
        return f"{original.path}: its record holds no hash to compare with"
    if record.image_hash == made.image_hash:
        return f"{original.path}: identical (the new image has the recorded hash)"
    then, now = _environments(record, made)
    why = f"made with {then}; here {now}" if then or now else "though all that is recorded is the same"
    return f"{original.path}: differs, {why}; {_distance(original.path, record, image)}"


def check_weights(original: Original, name: str, weights_hash: str | None) -> str | None:
    """Return a warning where the model of the recorded name has other weights than the record says; else None."""
    record = original.recipe
    if record is None or record.weights_hash in (None, weights_hash) or weights_hash is None or record.model != name:
        return None
    return (
        f"warning: {original.path} was made with weights {str(record.weights_hash)[:10]},"
        f" {name} here has weights {weights_hash[:10]}: expect another image"
    )


def _environments(record: Recipe, made: Recipe) -> tuple[str, str]:
    """Return how the two computations differ beyond what was asked for: (then, now)."""

    def facts(recipe: Recipe) -> dict[str, str]:
        threads = f"{recipe.threads} thread{'s' if recipe.threads != 1 else ''}" if recipe.threads else ""
        return {
            **{name: f"{name} {version}" for name, version in recipe.versions.items()},
            "device": recipe.device,
            "machine": machine_words(recipe.machine) or "none of that",
            "hardware": recipe.hardware,
            "threads": threads,
            "batch": f"{recipe.batch_size} at once",
            "weights": f"weights {(recipe.weights_hash or '')[:10] or 'not hashed'}",
            "revision": f"revision {recipe.revision or 'not recorded'}",
            "scheduler": "" if recipe.scheduler_config == record.scheduler_config else "other scheduler settings",
        }

    then, now = facts(record), facts(made)
    differing = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    return tuple(", ".join(filter(None, (side.get(key) for key in differing))) for side in (then, now))  # type: ignore[return-value]


def machine_words(machine: Mapping[str, Any]) -> str:
    """Return a record's entries about the machine in words, without those at their default."""
    said = {
        f"{machine.get('quantize')}-bit weights": machine.get("quantize"),
        "tiled decoding": machine.get("tiling"),
        "a compiled network": machine.get("compiled"),
        f"{machine.get('retries')} retries": machine.get("retries"),
        "deterministic": machine.get("deterministic"),
        f"cache {machine.get('cache')}": machine.get("cache"),
        f"offload {machine.get('offload')}": machine.get("offload"),
    }
    return ", ".join(words for words, is_so in said.items() if is_so)


def _distance(path: Path, record: Recipe, image: Image) -> str:
    """Return how far the new image is from the file's, where the file still holds the pixels that were drawn."""
    import numpy as np

    from t2i.imaging import images

    try:
        old = images.decode(path)
    except ImageError:
        return "by how much is not known"
    if old.size != image.size or images.pixel_hash(old) != record.image_hash:
        return "by how much is not known (the file no longer holds the pixels as they were drawn)"
    gap = np.abs(np.asarray(old, np.int16) - np.asarray(image, np.int16))
    return f"at most {gap.max()} of 255 in a pixel, {gap.mean():.3f} in the mean"
