"""A diffusers pipeline with its scheduler, adapters, prompt encoder, step cache and passes; draws single batches.

Where memory runs out, a model is loaded again on another level: all of them then move to the new pipeline.
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
from t2i.pipelines.settings.schedulers import check_scheduler, describe, make_scheduler
from t2i.pipelines.settings.settings import Job, PipelineTraits, Settings, choose_settings, count_parameters
from t2i.pipelines.text_to_image.call import call, watch_steps
from t2i.pipelines.text_to_image.passes import ImagePasses, PassResult
from t2i.pipelines.text_to_image.preview import Preview
from t2i.pipelines.text_to_image.step_cache import Cache, StepCache


class PipelineRunner:
    """Draws one batch.

    pipe: the text-to-image pipeline.  dtype: in which its networks compute.  attached: its adapters.
    passes: the other tasks.  hooks: of the step cache.
    """

    prompt_encoder: PromptEncoder
    traits: PipelineTraits
    parameters: int  # numbers in all weights

    def __init__(
        self, name: str, defaults: Defaults, scheduler: str | None, cache: Cache | None = None, offline: bool = False
    ) -> None:
        """Set up a runner without a pipeline; see `adopt`.

        name: the model's, for messages.  scheduler: where settings name none; None: the model's own.
        """
        self.name = name
        self.defaults = defaults
        self.cache = cache
        self.pipe: Any = None
        self.dtype = "float32"
        self.attached = AttachedAdapters()
        self.passes = ImagePasses(None, offline)
        self.hooks: StepCache | None = None
        self._wanted_adapters = NO_ADAPTERS, Found()
        self._scheduler = scheduler
        self._own_scheduler: Any = None

    def adopt(self, pipe: Any, dtype: str) -> None:
        """Draw with this pipeline from now on; None: release the present one.

        Raises UsageError where the scheduler or the step cache does not work with it.
        """
        self._detach_adapters()
        self.pipe, self.dtype = pipe, dtype
        self.passes.adopt(pipe)
        self.hooks = None
        if pipe is None:
            self.prompt_encoder.release()
            return
        self._own_scheduler = pipe.scheduler
        self.traits = PipelineTraits.of(pipe)
        self.prompt_encoder = PromptEncoder(pipe)
        self.hooks = StepCache(pipe, self.cache) if self.cache else None
        pipe.set_progress_bar_config(disable=True)
        self.use_scheduler(None)  # a wrong one is reported now rather than at the first image
        self.attach_adapters(*self._wanted_adapters)

    def attach_adapters(self, adapters: Adapters, found: Found) -> None:
        """Attach these adapters in place of those before; after an error none is attached.  See `attach`."""
        self._detach_adapters()
        self._wanted_adapters = NO_ADAPTERS, Found()
        self.attached = attach(self.pipe, self.name, adapters, found)
        self.prompt_encoder.clear()  # the text encoders may give other embeddings now
        self._wanted_adapters = adapters, found
        self.parameters = count_parameters(self.pipe)

    def settings(self, **chosen: Any) -> Settings:
        """Complete settings with the model's defaults, and check them.  The pipeline is not touched.

        chosen: as `choose_settings` takes it; chunks may be None.
        Raises UsageError, also for a scheduler that does not work with this model; and as `ImagePasses.check` does.
        """
        chunks = self.prompt_encoder.chunker.chunked(chosen.get("weights", True), chosen.pop("chunks", None))
        settings = choose_settings(self.traits, self.defaults, chunks=chunks, **chosen)
        if settings.scheduler:
            check_scheduler(settings.scheduler, self._own_scheduler)
        self.passes.check(settings.edit, self.traits)
        return settings

    def scheduler(self, spelling: str | None) -> Any:
        """Make a fresh scheduler of that name; None: the one chosen for the model, else the model's own."""
        own, spelling = self._own_scheduler, spelling or self._scheduler
        return make_scheduler(spelling, own) if spelling else type(own).from_config(own.config)

    def use_scheduler(self, spelling: str | None) -> None:
        """Put a fresh scheduler of that name into the pipeline; None: as in `scheduler`."""
        scheduler = self.scheduler(spelling)
        self.pipe.scheduler = scheduler if self.dtype == "float32" else step_in_float32(scheduler)

    def scheduler_name(self, settings: Settings) -> str:
        """Return our name of the scheduler that these settings draw with."""
        return describe(self.scheduler(settings.scheduler))[0]

    def scheduler_config(self, settings: Settings) -> dict[str, Any]:
        """Return the config of the scheduler that these settings draw with, as a recipe records it."""
        return plain_config(self.scheduler(settings.scheduler).config)

    def uses_negative(self, guidance: float) -> bool:
        """Return whether a negative prompt has an effect."""
        known = self.traits.parameters
        another = "true_cfg_scale" in known and self.defaults.guidance_name != "true_cfg_scale"
        return guidance > 1 and "negative_prompt" in known and not another

    def draw(
        self,
        batch: list[Job],
        settings: Settings,
        report: Callable[[float], None],
        preview: Preview | None = None,
    ) -> PassResult:
        """Draw one batch: (B, 3, H, W) in [-1, 1], and which of them the safety checker has blanked.

        report: takes the part that is done.  preview: shows the images as they take shape.
        Raises NonFinite, and ModelError for what the pipeline refuses.
        """
        options, one_pass = self._options(batch, settings), partial(self._call, settings, preview)
        if settings.edit:
            return self.passes.draw(one_pass, options, settings, report, self.suggestion())
        watch = watch_steps(report, self.suggestion())
        return one_pass(self.pipe, (settings.width, settings.height), options | {"callback_on_step_end": watch})

    def suggestion(self) -> str:
        """Return what to try where an image is non-finite."""
        if self.dtype != "float32":
            return "try `dtype=float32`"
        return "try another `scheduler` or a lower `guidance`; if that does not help, the model's weights are damaged"

    def _detach_adapters(self) -> None:
        """Detach all adapters; `_wanted_adapters` keeps them for the next pipeline."""
        if self.pipe is not None:
            detach(self.pipe, self.attached)
        self.attached = AttachedAdapters()

    def _call(
        self,
        settings: Settings,
        preview: Preview | None,
        pipe: Any,
        size: tuple[int, int],
        options: Mapping[str, Any],
    ) -> PassResult:
        """Draw one pass, by this pipeline or another one with its networks.  size: (width, height)."""
        self.use_scheduler(settings.scheduler)  # a fresh one: observers of a pass wrap its `step`
        pipe.scheduler = self.pipe.scheduler
        if preview is not None:
            preview.watch(pipe, *size)
        with self.hooks.drawing() if self.hooks else nullcontext():
            return call(pipe, self.name, options)

    def _options(self, batch: list[Job], settings: Settings) -> dict[str, Any]:
        """Return the arguments of the pipeline for one batch."""
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
