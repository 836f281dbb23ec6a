"""Sampling into a folder, by any number of processes; resumable: the same command again draws only missing images.

sampling.json      the settings and the model's hash, the same for all images of a folder
000000.png ...     image k has seed + k and, unless labels are given, class k in turn

Work is divided into groups of `batch_size` by position. A group is always drawn whole, so that an image drawn after a
kill, or by another number of processes, is the same bit for bit on the same hardware.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i import atomic
from t2i.distributed import processes
from t2i.errors import ModelError, UsageError
from t2i.imaging import images
from t2i.metadata.recipe import Recipe
from t2i.model_files.locate import locate
from t2i.model_files.registry import read_json
from t2i.pipelines.class_conditional.dcgan import DCGAN
from t2i.pipelines.class_conditional.ddpm import DDPM, KINDS
from t2i.pipelines.class_conditional.protocol import ImageModel
from t2i.pipelines.class_conditional.vae import VAE
from t2i.pipelines.environment import versions
from t2i.pipelines.settings import limits

if TYPE_CHECKING:
    from PIL.Image import Image

MANIFEST = "sampling.json"
MODELS: dict[str, Any] = dict.fromkeys(KINDS, DDPM) | {"DCGAN": DCGAN, "VAE": VAE}  # by the pipeline class of a folder


def load_model(
    model: str, *, device: str | None = None, revision: str | None = None, offline: bool = False
) -> ImageModel:
    """Load a run, a folder, or a Hub id of any family that draws without a prompt.

    Raises UsageError, ModelUnavailable, ModelError.
    """
    found = locate(model, revision=revision, offline=offline)
    if found.kind not in MODELS:
        allowed = ", ".join(MODELS)
        raise ModelError(f"{found.model.name} is a {found.kind}, allowed are {allowed}", "t2i generate draws from text")
    return MODELS[found.kind].from_files(found, device)


@dataclass(frozen=True)
class SampleRequest:
    """A request for samples.  count: may grow from call to call; all else is fixed for the folder."""

    count: int
    labels: tuple[str, ...] = ()  # none: all classes in turn
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check what can be checked without the model.  Raises UsageError."""
        limits.check_image_count(self.count)
        limits.check_seeds((self.seed, self.seed + self.count - 1))
        limits.check_batch_size(self.batch_size)


def sample_folder(model: ImageModel, request: SampleRequest, folder: Path, **given: Any) -> Iterator[list[Path]]:
    """Draw this process's share of the missing groups of a folder; yields each group's paths, old and new.

    given: settings of the model, such as `steps`; its defaults for the others.
    Raises UsageError: the folder belongs to another model or other settings; NonFinite.
    """
    settings = model.settings(**given)
    numbers = model.label_numbers(request.count, request.labels or None)
    state = processes()
    if state.is_main_process:
        drawn_with = {"model": model.hash, "labels": request.labels, "seed": request.seed}
        _claim(folder, drawn_with | settings | {"batch_size": request.batch_size})
    state.wait_for_everyone()
    begins = range(0, request.count, request.batch_size)
    for begin in begins[state.process_index :: state.num_processes]:
        # The whole group even where `count` ends within it: the batch size shows in the last bits of an image.
        group = range(begin, begin + request.batch_size)
        wanted = {k: folder / f"{k:06d}.png" for k in group if k < request.count}
        missing = {k: path for k, path in wanted.items() if not path.exists()}
        if missing:
            labels = model.label_numbers(group.stop, request.labels or None)
            some = None if labels is None else labels[group.start :]
            drawn = model.draw([request.seed + k for k in group], some, **settings)
            for k, path in missing.items():
                label = "" if numbers is None else model.classes[int(numbers[k])]
                recipe = _recipe(model, model.record(settings), drawn[k - begin], request.seed + k, label)
                images.save(drawn[k - begin], path, recipe=recipe, overwrite=True)
        yield list(wanted.values())


def _claim(folder: Path, settings: dict[str, object]) -> None:
    """Write the manifest, or check that the folder has the same one.  Raises UsageError."""
    settings = json.loads(json.dumps(settings))
    path = folder / MANIFEST
    if path.exists():
        found = read_json(path)
        changes = [f"{k} was {found.get(k)!r}, now {v!r}" for k, v in settings.items() if found.get(k) != v]
        if changes:
            raise UsageError(
                f"{folder} holds images of other settings: {'; '.join(changes)}", "choose another `output`"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty, and not a folder of samples", "choose another `output`")
    else:
        atomic.write(json.dumps(settings, indent=1).encode(), path)


def _recipe(model: ImageModel, drawn_with: dict[str, Any], image: Image, seed: int, label: str) -> Recipe:
    return Recipe(
        prompt=label,
        seed=seed,
        width=image.width,
        height=image.height,
        model=model.name,
        weights_hash=model.hash,
        versions=versions(),
        image_hash=images.pixel_hash(image),
        **drawn_with,
    )
