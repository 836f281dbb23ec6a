"""A diffusers pipeline and all that hangs on it: scheduler, adapters, prompts, step cache, previews, other tasks.

Where memory runs out, a model is loaded anew on another rung: then all of it moves to the new pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

from t2i.metadata.jsonable import plain_config
from t2i.model_files.registry import Defaults
from t2i.pipelines.adapters.attach import AttachedAdapters, attach, detach
from t2i.pipelines.adapters.files import Found
from t2i.pipelines.adapters.specs import NO_ADAPTERS, Adapters
from t2i.pipelines.noise import first_noise, make_generators, step_in_float32
from t2i.pipelines.prompts.encoder import PromptEncoder
from t2i.pipelines.settings.schedulers import describe, make_scheduler
from t2i.pipelines.settings.settings import Job, Settings, call_parameters
from t2i.pipelines.text_to_image.call import call, watch_steps
from t2i.pipelines.text_to_image.passes import ImagePasses, PassResult
from t2i.pipelines.text_to_image.preview import Preview
from t2i.pipelines.text_to_image.step_cache import Cache, StepCache


class PipelineRunner:
    """Draws one batch.

    pipe: the text-to-image pipeline.  dtype: what its networks compute in.  fitted: the adapters it wears.
    conditioner: how it reads prompts.  editor: the other tasks.  hooks: of the step cache.
    preview: what is shown while it draws; None: nothing.
    """

    prompt_encoder: PromptEncoder

    def __init__(
        self, name: str, defaults: Defaults, scheduler: str | None, cache: Cache | None = None, offline: bool = False
    ) -> None:
        """name: the model's, for messages.  scheduler: where settings name none; None: the model's own."""
        self.name = name
        self.defaults = defaults
        self.cache = cache
        self.pipe: Any = None
        self.dtype = "float32"
        self.attached = AttachedAdapters()
        self.passes = ImagePasses(None, offline)
        self.hooks: StepCache | None = None
        self.preview: Preview | None = None
        self._wanted_adapters = NO_ADAPTERS, Found()
        self._scheduler = scheduler
        self._own_scheduler: Any = None
        self._parameters: Mapping[str, Any] = {}

    def adopt(self, pipe: Any, dtype: str) -> None:
        """Draw with this pipeline from now on; None: let the present one go.

        Raises UsageError where it cannot take the scheduler or the step cache.
        """
        self._detach_adapters()
        self.pipe, self.dtype = pipe, dtype
        self._own_scheduler = pipe and pipe.scheduler
        self.passes.adopt(pipe)
        if pipe is None:
            return
        self._parameters = call_parameters(pipe)
        self.prompt_encoder = PromptEncoder(pipe)
        self.hooks = StepCache(pipe, self.cache) if self.cache else None
        pipe.set_progress_bar_config(disable=True)
        self.use_scheduler(None)  # an unknown one fails now rather than at the first image
        self.attach_adapters(*self._wanted_adapters)

    def attach_adapters(self, adapters: Adapters, found: Found) -> None:
        """Put these adapters on, in place of those before; where one cannot be put on, none is.  See `attach`."""
        self._detach_adapters()
        self._wanted_adapters = NO_ADAPTERS, Found()
        self.attached = attach(self.pipe, self.name, adapters, found)
        self.prompt_encoder.clear()  # the text encoders may read otherwise now
        self._wanted_adapters = adapters, found

    def use_scheduler(self, spelling: str | None) -> None:
        """Put the scheduler of that name (None: what was chosen, else the model's own), fresh, into the pipeline."""
        own, spelling = self._own_scheduler, spelling or self._scheduler
        scheduler = make_scheduler(spelling, own) if spelling else type(own).from_config(own.config)
        self.pipe.scheduler = scheduler if self.dtype == "float32" else step_in_float32(scheduler)

    def scheduler_name(self, settings: Settings) -> str:
        """Our name of the scheduler these settings draw with."""
        self.use_scheduler(settings.scheduler)
        return describe(self.pipe.scheduler)[0]

    def scheduler_config(self, settings: Settings) -> dict[str, Any]:
        """Its config, as a recipe records it."""
        self.use_scheduler(settings.scheduler)
        return plain_config(self.pipe.scheduler.config)

    def uses_negative(self, guidance: float) -> bool:
        """Whether a negative prompt does anything."""
        another = "true_cfg_scale" in self._parameters and self.defaults.guidance_name != "true_cfg_scale"
        return guidance > 1 and "negative_prompt" in self._parameters and not another

    def draw(self, batch: list[Job], settings: Settings, report: Callable[[float], None]) -> PassResult:
        """Draw one batch: (B, 3, H, W) in [-1, 1], and which of them the safety checker has blanked.

        report: takes the part that is done.  Raises NonFinite, and ModelError for what the pipeline refuses.
        """
        options, one_pass = self._options(batch, settings), partial(self._call, settings)
        if settings.edit:
            return self.passes.draw(one_pass, options, settings, report, self.suggestion())
        watch = watch_steps(report, self.suggestion())
        return one_pass(self.pipe, (settings.width, settings.height), options | {"callback_on_step_end": watch})

    def suggestion(self) -> str:
        """What to try where numbers leave their range."""
        if self.dtype != "float32":
            return "try --dtype float32"
        return "try another --scheduler or a lower --guidance; if that does not help, the model's weights are damaged"

    def _detach_adapters(self) -> None:
        """Take all adapters off the pipeline, if there is one; `_wanted_adapters` remembers them for the next one."""
        if self.pipe is not None:
            detach(self.pipe, self.attached)
        self.attached = AttachedAdapters()

    def _call(self, settings: Settings, pipe: Any, size: tuple[int, int], options: Mapping[str, Any]) -> PassResult:
        """One pass, by this pipeline or another one with its networks.  size: (width, height)."""
        self.use_scheduler(settings.scheduler)  # a fresh one: what watches a pass hangs on it
        pipe.scheduler = self.pipe.scheduler
        if self.preview is not None:
            self.preview.watch(pipe, *size)
        with self.hooks.drawing() if self.hooks else nullcontext():
            return call(pipe, self.name, options)

    def _options(self, batch: list[Job], settings: Settings) -> dict[str, Any]:
        """What to tell the pipeline of one batch."""
        generators = make_generators([job.seed for job in batch])
        options: dict[str, Any] = {
            "width": settings.width,
            "height": settings.height,
            "num_inference_steps": settings.steps,
            self.defaults.guidance_name: settings.guidance,
            "generator": generators,
            **self.attached.options,
        }
        options |= self.prompt_encoder.options(batch, settings, self.uses_negative(settings.guidance))
        if hasattr(self.pipe, "unet") and self.dtype != "float32":
            options["latents"] = first_noise(self.pipe, generators, settings)
        return options
