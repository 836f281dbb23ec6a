"""Build the recipe of an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL.Image import Image

from t2i.config.options import OPTIONS, SETTINGS
from t2i.imaging.images import pixel_hash
from t2i.metadata.recipe import Recipe
from t2i.pipelines.environment import compel_version, versions
from t2i.pipelines.settings.schedulers import describe
from t2i.pipelines.settings.settings import Job, Settings


def make_recipe(job: Job, settings: Settings, image: Image, scheduler: Any, known: Mapping[str, Any]) -> Recipe:
    """Make the recipe of an image.

    scheduler: the diffusers object it was drawn with.  known: fields about the model and the machine.
    """
    name, sampler, schedule_type = describe(scheduler)
    return Recipe(
        prompt=job.prompt,
        template=job.template,
        negative_prompt=settings.negative_of(job),
        negative_template=job.negative_template,
        steps=settings.steps,
        sampler=sampler,
        schedule_type=schedule_type,
        scheduler=name,
        scheduler_config=dict(scheduler.config),
        guidance=settings.guidance,
        seed=job.seed,
        width=image.width,
        height=image.height,
        versions=versions() | (compel_version() if known.get("reading") else {}),
        image_hash=pixel_hash(image),
        edit=settings.edit.record((settings.width, settings.height)),
        options=recorded_options(settings),
        **known,
    )


def recorded_options(settings: Settings) -> dict[str, Any]:
    """Return the options that a record keeps by name, where they are set."""
    names = [name for name in SETTINGS if OPTIONS[name].option.recorded]
    return {name: value for name in names if (value := getattr(settings, name)) != OPTIONS[name].default}
