"""`--from IMAGE`: from what an image says of itself to a prompt with settings; and whether the new picture is the same.

Our own record restores everything. Another tool's text restores what has an equal here, and the rest is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i import recipe as records
from t2i.cli.foreign import CHECKPOINT_NAMES, CHECKPOINTS, Foreign, understand
from t2i.cli.recorded import find_recorded
from t2i.cli.restoring import first_size, restore_edit
from t2i.cli.tasks import Original, Prompt, Wish
from t2i.errors import ImageError, ModelError, ModelUnavailable, T2IError, UsageError
from t2i.pipelines.editing import essence
from t2i.pipelines.schedulers import scheduler_name
from t2i.pipelines.weighting import speaks
from t2i.recipe import Recipe
from t2i.zoo import NAMES, resolve

if TYPE_CHECKING:
    from PIL.Image import Image

# What a user asks for, by the names of Recipe; where all of it is as recorded, the same picture is due.
ASKED = {
    "prompt": "prompt",
    "negative_prompt": "negative prompt",
    "reading": "reading of its prompt",
    "model": "model",
    "seed": "seed",
    "steps": "steps",
    "guidance": "guidance",
    "width": "width",
    "height": "height",
    "scheduler": "scheduler",
    "dtype": "dtype",
    "adapters": "set of adapters",
    "edit": "picture, strength or ControlNet to start from",
}
_NAMES = tuple(field.name for field in fields(Wish) if field.name != "edit")
MOST_COPIES = 64  # a record that claims more was not made by a batch that anyone draws


def read_originals(
    paths: Sequence[Path], prompts: Sequence[Prompt], given: Collection[str], default: str, say: Callable[[str], None]
) -> list[Prompt]:
    """A prompt with all its settings for each image; with `prompts`, each of them with each image's settings.

    given: the fields of `Wish` that the command line sets, which then hold.  default: the model where none is named.
    say: takes a line for the user: what could not be restored.
    Raises UsageError (no such file), ImageError (no image, no record, a damaged one), ModelUnavailable.
    """
    found = []
    unsaid = {name: None for name in given if name in _NAMES}
    for path in paths:
        restored = _restore(path, given, default, say)
        kept = replace(restored.wish, **unsaid)  # type: ignore[arg-type]  # fields that may be None
        copies = restored.copies if "batch_size" not in given else (1, 0)
        free = replace(kept, raw=None, chunks=None)  # how the old prompt was read says nothing of a new one
        new = [replace(prompt, wish=free, original=restored.original) for prompt in prompts]
        found += new or [replace(restored, wish=kept, copies=copies)]
    return found


def verdict(original: Original, made: Recipe, image: Image) -> str | None:
    """Whether the new picture is the one of the record, on one line; None for another tool's, which holds no hash."""
    told = original.recipe
    if told is None:
        return None
    changed = [words for name, words in ASKED.items() if essence(getattr(told, name)) != essence(getattr(made, name))]
    if not made.machine.get("retries"):  # else memory decided, not the user
        changed += [name for name in ("quantize", "tiling") if told.machine.get(name) != made.machine.get(name)]
    changed += ["step cache"] if told.machine.get("cache") != made.machine.get("cache") else []
    if changed:
        return f"{original.path}: drawn anew, with another {', '.join(changed)}"
    if told.image_hash is None:
        return f"{original.path}: its record holds no hash to compare with"
    if told.image_hash == made.image_hash:
        return f"{original.path}: identical (the hash in its record is the new picture's)"
    then, now = _circumstances(told, made)
    why = f"made with {then}; here {now}" if then or now else "though all that is recorded is the same"
    return f"{original.path}: differs, {why}; {_distance(original.path, told, image)}"


def check_weights(original: Original, name: str, weights_hash: str | None) -> str | None:
    """A warning where a model of the recorded name has other weights than the record says."""
    told = original.recipe
    if told is None or told.weights_hash in (None, weights_hash) or weights_hash is None or told.model != name:
        return None
    return (
        f"warning: {original.path} was made with weights {str(told.weights_hash)[:10]},"
        f" {name} here has weights {weights_hash[:10]}: another picture will come out"
    )


def _restore(path: Path, given: Collection[str], default: str, say: Callable[[str], None]) -> Prompt:
    if not path.exists():
        raise UsageError(f"--from {path}: no such file")
    record = records.read(path)
    damage = "".join(f"; {problem}" for problem in record.problems)
    if record.recipe is not None:
        return _from_ours(path, record.recipe, given, default)
    if record.parameters is None:
        hint = "tools that save an image again often drop what was written into it; say it with options instead"
        raise ImageError(f"--from {path}: the image does not say how it was made{damage}", hint)
    settings = records.parse_parameters(record.parameters)
    if len(settings) < 3:  # the prompts alone: the text is not A1111's
        raise ImageError(f"--from {path}: its text names no settings that can be read{damage}", "t2i info shows it")
    text = understand(settings, from_picture="image" in given)
    text.lost += [f"our own record ({problem})" for problem in record.problems]
    wish = Wish(**text.values)
    if "model" not in given:
        wish = replace(wish, model=_find_foreign(text, default))
    known = {"negative": "negative prompt", "seed": "seed"}
    missing = [known.get(name, name) for name in ("steps", "guidance", "seed", "width", "height", "scheduler")]
    missing = [name for name in missing if text.values.get(name) is None and name not in given]
    if missing:
        text.lost.append(f"{', '.join(missing)}: not said, so the default")
    for line in text.lost:
        say(f"note: {path}: not restored: {line}")
    return Prompt(text.prompt, wish=wish, original=Original(path, None), literal=True, where=f"--from {path}")


def _from_ours(path: Path, made: Recipe, given: Collection[str], default: str) -> Prompt:
    width, height = first_size(made.edit, (made.width, made.height))
    wish = Wish(
        negative=made.negative_prompt,
        steps=made.steps,
        guidance=made.guidance,
        width=width,
        height=height,
        scheduler=_scheduler(made.scheduler),
        dtype=made.dtype,
        cache=str(made.machine.get("cache", "none")),
        device=made.device,
        seed=made.seed,
        edit=restore_edit(made.edit, path, given),
        quantize=str(bits) if (bits := made.machine.get("quantize")) in (4, 8) else "none" if made.safety else None,
        tiling=bool(made.machine.get("tiling")) if made.safety else None,
        deterministic=True if made.machine.get("deterministic") else None,
        no_safety=True if made.safety == "off" else None,
        raw=_raw(made),
        chunks="chunks" in made.reading,
    )
    wish = replace(wish, **find_recorded(path, made.adapters, given))  # type: ignore[arg-type]
    if "model" not in given:
        model = _find_ours(path, made, default)
        wish = replace(wish, model=model, revision=made.revision if resolve(model).kind == "hub" else None)
    exact = 0 <= made.batch_index < made.batch_size <= MOST_COPIES
    return Prompt(
        made.prompt,
        template=made.template,
        wish=wish,
        original=Original(path, made),
        copies=(made.batch_size, made.batch_index) if exact else (1, 0),
        literal=True,
        where=f"--from {path}",
    )


def _scheduler(name: str) -> str | None:
    """What to say to --scheduler; None: the model's own, which stands in a record by its class where it has no name."""
    try:
        return scheduler_name(name)
    except UsageError:
        return None


def _raw(made: Recipe) -> bool | None:
    """Whether the prompts of a record were read without weights; None: they hold none, so that new ones may."""
    if "weights" in made.reading:
        return False
    return any(map(speaks, (made.prompt, made.negative_prompt))) or None


def _find_ours(path: Path, made: Recipe, default: str) -> str:
    """What to say to `-m` for the model of a record, which names a folder by its last part only."""
    run = f"runs/{made.model}"
    candidates = [made.model, *([run] if Path(run).is_dir() else [])]
    if made.model not in NAMES and _name(default) == made.model:
        candidates.insert(0, default)
    for candidate in candidates:
        if _name(candidate) is not None:
            return candidate
    weights = f" (weights {made.weights_hash[:10]})" if made.weights_hash else ""
    message = f"--from {path}: its model {made.model!r}{weights} is not here"
    raise ModelUnavailable(message, "say where it is: -m FOLDER; another model draws another picture")


def _find_foreign(text: Foreign, default: str) -> str | None:
    """What to say to `-m` for the checkpoint that another tool names; None: the default, and that is said."""
    named = CHECKPOINTS.get(text.model_hash) or CHECKPOINT_NAMES.get(text.model.removesuffix(".safetensors"))
    if named:
        return named
    candidates = [text.model, f"{text.model}.safetensors"] if text.model else []
    for candidate in candidates:
        # Elsewhere a name with a slash is a file in a folder: nothing is asked of the Hub for it.
        if _name(candidate) is not None and (text.ours or candidate in NAMES or resolve(candidate).kind != "hub"):
            return candidate
    for candidate in dict.fromkeys((default, "mini")):
        if len(text.model_hash) >= 8 and (_weights(candidate) or "").startswith(text.model_hash):
            return candidate
    about = f"{text.model or 'unnamed'}, hash {text.model_hash or 'not said'}"
    text.lost.append(f"the model ({about}): drawn with {_name(default) or default}; -m names another")
    return None


def _name(model: str) -> str | None:
    """The name under which a model is recorded; None where there is no such model."""
    try:
        return resolve(model).name
    except (ModelUnavailable, ModelError):
        return None


def _weights(model: str) -> str | None:
    from t2i.pipelines.loading import locate

    try:
        return locate(model, offline=True).hash()
    except T2IError:
        return None


def _circumstances(told: Recipe, made: Recipe) -> tuple[str, str]:
    """What differs of the two computations, beyond what was asked for: (then, now)."""

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
            "revision": f"revision {recipe.revision or 'not said'}",
            "scheduler": "" if recipe.scheduler_config == told.scheduler_config else "other scheduler settings",
        }

    then, now = facts(told), facts(made)
    differing = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    return tuple(", ".join(filter(None, (side.get(key) for key in differing))) for side in (then, now))  # type: ignore[return-value]


def machine_words(machine: Mapping[str, Any]) -> str:
    """What a record says of the machine beyond the usual, in words."""
    bits, retries = machine.get("quantize"), machine.get("retries")
    said = [f"{bits}-bit weights"] * bool(bits) + ["tiled decoding"] * bool(machine.get("tiling"))
    said += ["a compiled network"] * bool(machine.get("compiled")) + [f"{retries} retries"] * bool(retries)
    said += ["deterministic"] * bool(machine.get("deterministic"))
    said += [f"cache {cache}"] if (cache := machine.get("cache")) else []
    said += [f"offload {offload}"] if (offload := machine.get("offload")) else []
    return ", ".join(said)


def _distance(path: Path, told: Recipe, image: Image) -> str:
    """How far the new picture is from the file's, where the file still holds the pixels that were drawn."""
    import numpy as np

    from t2i import images

    try:
        old = images.decode(path)
    except ImageError:
        return "by how much is not known"
    if old.size != image.size or images.pixel_hash(old) != told.image_hash:
        return "by how much is not known (the file no longer holds the pixels as they were drawn)"
    gap = np.abs(np.asarray(old, np.int16) - np.asarray(image, np.int16))
    return f"at most {gap.max()} of 255 in a pixel, {gap.mean():.3f} in the mean"
