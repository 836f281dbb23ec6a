"""Replay: from the record in an image to a prompt with settings that reproduce it.

Our own record restores everything. Another tool's text restores what has an equivalent here; the rest is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2i.config.options import OPTIONS, GenerateOptions
from t2i.errors import ImageError, ModelError, ModelUnavailable, T2IError, UsageError
from t2i.jobs.replay.a1111_import import CHECKPOINT_NAMES, CHECKPOINTS, ImportedSettings, import_settings
from t2i.jobs.replay.find_adapters import find_adapters_of_record
from t2i.jobs.replay.find_images import first_size, restore_image_inputs
from t2i.jobs.spec.tasks import Original, Prompt, PromptOverrides
from t2i.metadata import recipe as records
from t2i.metadata.recipe import Recipe
from t2i.model_files.registry import NAMES, resolve
from t2i.pipelines.prompts.attention_weights import has_weights
from t2i.pipelines.settings.schedulers import scheduler_name

MOST_COPIES = 64  # a record that claims more was not made by a batch that anyone draws


def read_replayed(
    paths: Sequence[Path],
    prompts: Sequence[Prompt],
    given: Collection[str],
    options: GenerateOptions,
    say: Callable[[str], None],
) -> list[Prompt]:
    """Return a prompt with all its settings for each image; with `prompts`, each of them with each image's settings.

    given: names of options that the user sets for this run, which override the record.  options: of the run.
    say: takes a line for the user: what was not restored.
    Raises UsageError (no such file), ImageError (no image, no record, a damaged one), ModelUnavailable.
    """
    found = []
    for path in paths:
        restored = _read_prompt(path, given, options.model, say)
        kept = restored.overrides.without(given)
        copies = restored.copies if "batch_size" not in given else (1, 0)
        free = kept.without(("raw", "chunks"))  # these belong to the recorded prompt, not to a new one
        new = [replace(prompt, overrides=free, original=restored.original) for prompt in prompts]
        found += new or [replace(restored, overrides=kept, copies=copies)]
    return found


def _read_prompt(path: Path, given: Collection[str], default: str, say: Callable[[str], None]) -> Prompt:
    if not path.exists():
        raise UsageError(f"`replay={path}`: no such file")
    record = records.read(path)
    damage = "".join(f"; {problem}" for problem in record.problems)
    if record.recipe is not None:
        return _from_ours(path, record.recipe, given, default)
    if record.parameters is None:
        hint = "tools that save an image again often drop its metadata; give the settings as options instead"
        raise ImageError(f"`replay={path}`: the image does not say how it was made{damage}", hint)
    settings = records.parse_parameters(record.parameters)
    if len(settings) < 3:  # the prompts alone: the text is not A1111's
        raise ImageError(f"`replay={path}`: its text holds no settings that can be read{damage}", "`t2i info` shows it")
    text = import_settings(settings, from_picture="image" in given)
    text.lost += [f"our own record ({problem})" for problem in record.problems]
    overrides = PromptOverrides(text.values)
    if "model" not in given and (model := _find_imported_model(text, default)):
        overrides = overrides.with_(model=model)
    known = {"negative_prompt": "negative prompt", "seed": "seed"}
    missing = [known.get(name, name) for name in ("steps", "guidance", "seed", "width", "height", "scheduler")]
    missing = [name for name in missing if text.values.get(name) is None and name not in given]
    if missing:
        text.lost.append(f"{', '.join(missing)}: not in the text, the default is used")
    for line in text.lost:
        say(f"note: {path}: not restored: {line}")
    return Prompt(
        text.prompt, overrides=overrides, original=Original(path, None), literal=True, where=f"`replay={path}`"
    )


def _from_ours(path: Path, made: Recipe, given: Collection[str], default: str) -> Prompt:
    width, height = first_size(made.edit, (made.width, made.height))
    values: dict[str, Any] = {
        "negative_prompt": made.negative_prompt,
        "steps": made.steps,
        "guidance": made.guidance,
        "width": width,
        "height": height,
        "scheduler": _scheduler(made.scheduler),
        "dtype": made.dtype,
        "cache": str(made.machine.get("cache", "none")),
        "device": made.device,
        "seed": made.seed,
        "raw": _raw(made),
        "chunks": "chunks" in made.reading,
        **_machine(made),
        **recorded_options(made, path),
        **restore_image_inputs(made.edit, path, given),
        **find_adapters_of_record(path, made.adapters, given),
    }
    if "model" not in given:
        model = _find_ours(path, made, default)
        values |= {"model": model, "revision": made.revision if resolve(model).kind == "hub" else None}
    exact = 0 <= made.batch_index < made.batch_size <= MOST_COPIES
    return Prompt(
        made.prompt,
        template=made.template,
        overrides=PromptOverrides({name: value for name, value in values.items() if value is not None}),
        original=Original(path, made),
        copies=(made.batch_size, made.batch_index) if exact else (1, 0),
        literal=True,
        where=f"`replay={path}`",
    )


def _machine(made: Recipe) -> dict[str, Any]:
    """Return the options of the machine.

    Records from before these options existed hold no `safety`: theirs are left open.
    """
    bits = made.machine.get("quantize")
    said: dict[str, Any] = {"quantize": str(bits) if bits in (4, 8) else "none" if made.safety else None}
    said["tiling"] = bool(made.machine.get("tiling")) if made.safety else None
    said["deterministic"] = True if made.machine.get("deterministic") else None
    said["no_safety"] = True if made.safety == "off" else None
    return said


def recorded_options(made: Recipe, path: Path) -> dict[str, Any]:
    """Return the options that a record keeps under their own names.  Raises ImageError for an unknown one."""
    found: dict[str, Any] = {}
    for name, value in made.options.items():
        if name not in OPTIONS:
            raise ImageError(
                f"`replay={path}`: its record sets {name[:40]!r}, which this t2i does not know", "pip install -U t2i"
            )
        try:
            found[name] = OPTIONS[name].convert(value)
        except UsageError as e:
            raise ImageError(f"`replay={path}`: its record is damaged: {e.message}") from None
    return found


def _scheduler(name: str) -> str | None:
    """Return the value of `scheduler`; None: the model's own.

    A record holds the class of the model's own scheduler where we have no name for it.
    """
    try:
        return scheduler_name(name)
    except UsageError:
        return None


def _raw(made: Recipe) -> bool | None:
    """Return whether the prompts of a record were read without weights; None: they hold none, so new ones may."""
    if "weights" in made.reading:
        return False
    return any(map(has_weights, (made.prompt, made.negative_prompt))) or None


def _find_ours(path: Path, made: Recipe, default: str) -> str:
    """Return the value of `model` for a record, which names a folder by its last part only."""
    run = f"runs/{made.model}"
    candidates = [made.model, *([run] if Path(run).is_dir() else [])]
    if made.model not in NAMES and _name(default) == made.model:
        candidates.insert(0, default)
    for candidate in candidates:
        if _name(candidate) is not None:
            return candidate
    weights = f" (weights {made.weights_hash[:10]})" if made.weights_hash else ""
    message = f"`replay={path}`: its model {made.model!r}{weights} is not here"
    raise ModelUnavailable(message, "give its place: `model=FOLDER`; another model draws another image")


def _find_imported_model(text: ImportedSettings, default: str) -> str | None:
    """Return the value of `model` for the checkpoint that another tool names; None: the default, which is noted."""
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
    about = f"{text.model or 'unnamed'}, hash {text.model_hash or 'unknown'}"
    text.lost.append(f"the model ({about}): drawn with {_name(default) or default}; `model` sets another")
    return None


def _name(model: str) -> str | None:
    """Return the name under which a model is recorded; None where there is no such model."""
    try:
        return resolve(model).name
    except (ModelUnavailable, ModelError):
        return None


def _weights(model: str) -> str | None:
    from t2i.model_files.locate import locate

    try:
        return locate(model, offline=True).hash()
    except T2IError:
        return None
