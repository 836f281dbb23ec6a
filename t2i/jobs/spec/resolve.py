"""Options of one prompt: the options of the run, with the prompt's overrides applied.

options = effective(request.options, prompt.overrides)
model_key(options)      # which pipeline draws, on what device and in what precision
settings_of(options)    # the arguments of `TextToImage.settings`
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from t2i.config.options import INPUTS, OPTIONS, SETTINGS, GenerateOptions
from t2i.jobs.spec.tasks import PromptOverrides
from t2i.pipelines.adapters.specs import NO_ADAPTERS, Adapters
from t2i.pipelines.settings.edit import NO_IMAGE_INPUTS, ImageInputs

# Settings that are passed on even where nobody set them: since 0.1 the names of a batch's images are made from these.
# Later ones are passed on where they are set, so that the names of what does not use them stay as they were.
ALWAYS = ("negative_prompt", "steps", "guidance", "width", "height", "scheduler")


class ModelKey(NamedTuple):
    """The identity of a loaded pipeline: requests with equal keys share one."""

    model: str
    revision: str | None
    dtype: str | None
    device: str | None
    quantize: str | None = None
    tiling: bool | None = None
    deterministic: bool = False
    no_safety: bool = False
    cache: str | None = None
    adapters: Adapters = NO_ADAPTERS

    def base(self) -> ModelKey:
        """Return the key of the model alone, which stays loaded while adapters change."""
        return self._replace(adapters=NO_ADAPTERS)


@lru_cache(maxsize=4096)
def effective(options: GenerateOptions, overrides: PromptOverrides) -> GenerateOptions:
    """Return the options that hold for a prompt."""
    if not overrides:
        return options
    return options.override({name: value for name, value in overrides.items() if name not in ("seed", "output")})


@lru_cache(maxsize=4096)
def model_key(options: GenerateOptions) -> ModelKey:
    """Return which pipeline draws with these options.  Raises UsageError for an adapter that cannot be read."""
    return ModelKey(
        options.model,
        options.revision,
        options.dtype,
        options.device,
        options.quantize,
        options.tiling,
        options.deterministic,
        options.no_safety,
        None if options.cache == "none" else options.cache,
        Adapters.read(options.lora, options.embedding, options.ip_adapter),
    )


@lru_cache(maxsize=4096)
def image_inputs(options: GenerateOptions) -> ImageInputs:
    """Return the images that drawing starts from.  The options hold these inputs as they were read."""
    given = {name: getattr(options, name) for name in INPUTS if options.changed(name)}
    if not given:
        return NO_IMAGE_INPUTS
    return ImageInputs(**{"controls" if name == "control" else name: value for name, value in given.items()})


def settings_of(options: GenerateOptions) -> dict[str, Any]:
    """Return the arguments of `TextToImage.settings`."""
    said = {name: getattr(options, name) for name in ALWAYS}
    for name in SETTINGS:
        if name == "raw":
            said |= {"weights": False} if options.raw else {}
        elif name not in ALWAYS and getattr(options, name) != OPTIONS[name].default:
            said[name] = getattr(options, name)
    inputs = image_inputs(options)
    return said | ({"edit": inputs} if inputs else {})
