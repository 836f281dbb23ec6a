"""Settings of a drawing: the user's choice, else the model's default, else the default of its pipeline."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from t2i.errors import UsageError
from t2i.model_files.registry import Defaults
from t2i.pipelines.settings import limits
from t2i.pipelines.settings.edit import NO_IMAGE_INPUTS, ImageInputs, check_image_inputs, enlarged
from t2i.pipelines.settings.image_input import drawn_size

SMALL_PARAMETERS = 200_000_000


@dataclass(frozen=True)
class Settings:
    """Complete and checked settings of a drawing.

    width, height: of the first pass.  final: (width, height) of the finished image, of a second pass if there is one.
    scheduler: our name; None: the model's own.
    weights: `(word:1.2)` in a prompt is a weight.  chunks: long prompts are read in chunks, not truncated.
    clip_skip: which layer of a CLIP text encoder is read, counted from its end; None: the model's own.
    """

    steps: int
    guidance: float
    width: int
    height: int
    final: tuple[int, int]
    scheduler: str | None = None
    negative_prompt: str = ""
    edit: ImageInputs = NO_IMAGE_INPUTS
    weights: bool = True
    chunks: bool = False
    clip_skip: int | None = None

    def negative_of(self, job: Job) -> str:
        """Return the negative prompt of one image."""
        return self.negative_prompt if job.negative_prompt is None else job.negative_prompt


@dataclass(frozen=True)
class Job:
    """One image to draw.  negative_prompt: its own; None: that of the settings.

    template, negative_template: from which a prompt was resolved; empty: it was written as it is.
    """

    prompt: str
    seed: int
    template: str = ""
    negative_prompt: str | None = None
    negative_template: str = ""


@dataclass(frozen=True)
class PipelineTraits:
    """The facts about a pipeline by which settings are chosen.  It refers to none of the weights.

    kind: the pipeline's class by name.  parameters: the arguments of its call.
    multiple: width and height must be multiples of this.  native_size: (width, height) it was trained at.
    network: the config of the network that denoises.
    """

    kind: str
    parameters: Mapping[str, inspect.Parameter]
    multiple: int
    native_size: tuple[int, int]
    network: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any) -> PipelineTraits:
        """Read them from a loaded pipeline, or from its skeleton."""
        network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        config = getattr(network, "config", None) or {}
        config = dict(config) if isinstance(config, Mapping) else vars(config)
        return cls(type(pipe).__name__, call_parameters(pipe), size_multiple(pipe), native_size(pipe), config)


def choose_settings(
    traits: PipelineTraits,
    defaults: Defaults,
    *,
    negative_prompt: str = "",
    steps: int | None = None,
    guidance: float | None = None,
    width: int | None = None,
    height: int | None = None,
    scheduler: str | None = None,
    edit: ImageInputs = NO_IMAGE_INPUTS,
    weights: bool = True,
    chunks: bool = False,
    clip_skip: int | None = None,
) -> Settings:
    """Complete settings with defaults, and check them.

    With one side given the image is square, or has the aspect ratio of the input image.

    traits: of the pipeline that will draw.  Raises UsageError.
    """
    own, multiple = traits.parameters, traits.multiple
    default_width, default_height = defaults.size or traits.native_size
    if clip_skip is not None and "clip_skip" not in own:
        raise UsageError(f"`clip_skip={clip_skip}`: {traits.kind} does not skip layers", "leave it out")
    if steps is None:
        steps = defaults.steps or own["num_inference_steps"].default
    if guidance is None:
        guidance = defaults.guidance
    if guidance is None:
        guidance = own[defaults.guidance_name].default if defaults.guidance_name in own else 1.0
    for name, side in (("width", width), ("height", height)):
        if side is not None:
            limits.check_multiple(name, limits.check_side(name, side), multiple)
    if edit.image is not None:
        width, height = drawn_size(edit.image.size, default_width * default_height, multiple, width, height)
        for name, side in (("width", width), ("height", height)):
            limits.check_side(name, side)
    size = width or height or default_width, height or width or default_height
    return Settings(
        steps=limits.check_steps(steps),
        guidance=limits.check_guidance(float(guidance)),
        width=size[0],
        height=size[1],
        final=enlarged(size, edit, multiple),
        scheduler=scheduler,
        negative_prompt=limits.check_prompt(negative_prompt, "negative prompt"),
        edit=check_image_inputs(edit, steps),
        weights=weights,
        chunks=chunks,
        clip_skip=clip_skip,
    )


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of a pipeline's call."""
    kind: Any = type(pipe)
    return parameters_of(kind)


@lru_cache(maxsize=64)
def parameters_of(kind: Any) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of the call of a class of pipelines; cached, since every row of a list needs them."""
    return inspect.signature(kind.__call__).parameters


def size_multiple(pipe: Any) -> int:
    """Return the number of which width and height must be multiples."""
    patches = 2 if getattr(pipe, "transformer", None) is not None else 1
    return math.lcm(8, int(getattr(pipe, "vae_scale_factor", 8)) * patches)


def native_size(pipe: Any) -> tuple[int, int]:
    """Return the (width, height) of training by the network's config; 512 where it does not say."""
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    config = getattr(network, "config", None)
    size = getattr(config, "sample_size", None) or getattr(pipe, "default_sample_size", None)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    return (int(width) * scale, int(height) * scale) if width and height else (512, 512)


def count_parameters(pipe: Any) -> int:
    """Return how many numbers the weights of a loaded pipeline hold."""
    parts = [part for part in pipe.components.values() if hasattr(part, "parameters")]
    return sum(weight.numel() for part in parts for weight in part.parameters())


def batch_size_for(parameters: int, width: int, height: int) -> int:
    """Return a default batch size: a safe one rather than the fastest.

    It never depends on the free memory, since the batch size shows in how images round.

    Up to 200M parameters: as many as make half a million pixels, at most 8 (8 of 256x256, 2 of 512x512). Larger: 1.
    """
    return 1 if parameters > SMALL_PARAMETERS else max(1, min(8, 8 * 256 * 256 // (width * height)))
