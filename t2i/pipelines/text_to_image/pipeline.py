"""Text-to-image with any diffusers text-to-image pipeline.

An image is a function of the model, the settings, the prompt and its own seed: it has one float32 CPU generator, from
which its first noise and all later noise come, so that it is the same alone and in a batch, to rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2i.errors import UsageError
from t2i.model_files.locate import ModelFiles, locate
from t2i.model_files.registry import Defaults
from t2i.model_files.weight_files import SAFETY
from t2i.pipelines.adapters.attach import AttachedAdapters
from t2i.pipelines.adapters.files import Found, find_all
from t2i.pipelines.adapters.specs import NO_ADAPTERS, Adapters
from t2i.pipelines.environment import device_name, thread_count
from t2i.pipelines.loading.plan import DeviceOptions, ImageBatch, MemoryPlan
from t2i.pipelines.loading.retry import RetryingLoader, make_plan
from t2i.pipelines.prompts.encoder import PromptEncoder
from t2i.pipelines.settings import limits
from t2i.pipelines.settings.edit import NO_IMAGE_INPUTS, ImageInputs
from t2i.pipelines.settings.schedulers import describe
from t2i.pipelines.settings.settings import Job, Settings, batch_size_for
from t2i.pipelines.text_to_image.passes import PassResult
from t2i.pipelines.text_to_image.preview import Preview
from t2i.pipelines.text_to_image.results import Result, make_results
from t2i.pipelines.text_to_image.runner import PipelineRunner
from t2i.pipelines.text_to_image.step_cache import Cache, check_compiled, parse_cache
from t2i.threads import FifoLock

Progress = Callable[[int, int], None]  # (denoising steps done, of all), summed over the images


class TextToImage:
    """Draws images from text.

        model = TextToImage.load("mini")
        for result in model("a horse in Van Gogh style", seeds=range(8)):
            result.image.save(f"{result.recipe.seed}.png")

    Several threads may draw with one model. It draws one batch at a time, in the order in which they ask, and each
    image is the one that it is alone.
    runner: the diffusers pipeline underneath, and all that belongs to it.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        name: str,
        defaults: Defaults,
        scheduler: str | None = None,
        loaded: RetryingLoader | None = None,
        cache: Cache | None = None,
    ) -> None:
        """Use `load` for a saved model and `wrap` for a pipeline in memory."""
        files = loaded.files if loaded else None
        self._loaded = loaded
        self.name = name
        self.defaults = defaults
        self.revision = files.revision if files else None
        self.weights_hash = files.hash() if files else None
        self._offline = bool(files and files.offline)
        self._adapters = NO_ADAPTERS, Found()
        self._turn = FifoLock(f"model {name}")
        self.runner = PipelineRunner(name, defaults, scheduler or defaults.scheduler, cache, self._offline)
        self._adopt(pipe)

    @classmethod
    def load(
        cls,
        model: str | Path | ModelFiles = "mini",
        *,
        device: str | None = None,
        dtype: str | None = None,
        offline: bool = False,
        revision: str | None = None,
        scheduler: str | None = None,
        components: dict[str, Any] | None = None,
        adapters: Adapters = NO_ADAPTERS,
        options: DeviceOptions | None = None,
        plan: MemoryPlan | None = None,
        cache: str | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> TextToImage:
        """Load a model: a registered name, a pipeline folder, a Hub id, a .safetensors file, or located files.

        device, dtype: default: see `choose_device` and `choose_dtype`.
        components: loaded already.  adapters: LoRAs and so on; see `attached`.
        cache: of steps: "reuse:2"; see `parse_cache`.
        options: of the device.  plan: of `make_plan`, in place of device, dtype and options.
        say: takes a line for the user where memory runs out and the next level is taken.
        Raises UsageError, ModelUnavailable, ModelError, OutOfMemory.
        """
        files = model if isinstance(model, ModelFiles) else locate(str(model), revision=revision, offline=offline)
        caching = parse_cache(cache) if cache else None
        found = find_all(adapters, offline or files.offline)  # a missing one is reported before minutes of loading
        plan = plan or make_plan(files, device=device, options=replace(options or DeviceOptions(), dtype=dtype))
        check_compiled(caching, plan.options.compile)
        loaded = RetryingLoader(files, plan, components, say)
        name, defaults = files.model.name, files.defaults
        drawer = cls(loaded.pipe, name=name, defaults=defaults, scheduler=scheduler, loaded=loaded, cache=caching)
        drawer._attach(adapters, found)
        drawer._adapters = adapters, found
        return drawer

    def set_adapters(self, adapters: Adapters, offline: bool = False) -> None:
        """Draw with these adapters from now on, in place of those before; the base model stays loaded.

        A drawing that has begun goes on with its own.  Several threads that draw with different ones name them in
        each call of `draw`.  Raises as `find_all` and `attach` do.
        """
        found = self._adapters[1] if adapters == self._adapters[0] else find_all(adapters, offline or self._offline)
        with self._turn:
            self._attach(adapters, found)
        self._adapters = adapters, found

    @classmethod
    def wrap(cls, pipe: Any, name: str = "model", defaults: Defaults | None = None) -> TextToImage:
        """Draw with a diffusers pipeline that is in memory already; its progress bar is disabled."""
        return cls(pipe, name=name, defaults=defaults or Defaults())

    @property
    def pipe(self) -> Any:
        """Return the diffusers pipeline underneath."""
        return self.runner.pipe

    @property
    def attached(self) -> AttachedAdapters:
        """Return the adapters that are attached now: those of the last drawing, or of `set_adapters`."""
        return self.runner.attached

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """Return the encoder of prompts."""
        return self.runner.prompt_encoder

    @property
    def device(self) -> str:
        """Return the device: "cpu", "cuda:0", ..."""
        return self._loaded.plan.device if self._loaded else str(self.pipe.device)

    @property
    def dtype(self) -> str:
        """Return the dtype: "float32", ..."""
        return self.runner.dtype

    @property
    def plan(self) -> MemoryPlan | None:
        """Return the memory plan; None for a pipeline that was in memory already."""
        return self._loaded.plan if self._loaded else None

    @property
    def safety(self) -> str:
        """Return the state of the model's own safety checker: "checked", "off" (not wanted), "none here"."""
        if getattr(self.pipe, SAFETY, None) is not None:
            return "checked"
        off = self._loaded and self._loaded.files.safety == "there"
        return "off" if off else "none here"

    @property
    def scheduler(self) -> str:
        """Return our name of the scheduler that draws where settings name none."""
        return describe(self.runner.scheduler(None))[0]

    def __call__(
        self,
        prompts: Sequence[str] | str,
        *,
        seeds: Sequence[int],
        negative_prompt: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        width: int | None = None,
        height: int | None = None,
        scheduler: str | None = None,
        edit: ImageInputs = NO_IMAGE_INPUTS,
        adapters: Adapters | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Result]:
        """Draw every prompt with every seed, seed by seed within a prompt.

        Arguments are checked at once; images come batch by batch, as they are drawn.
        Raises UsageError: out of range; NonFinite: instead of a black image.
        """
        jobs = [Job(prompt, seed) for prompt in ([prompts] if isinstance(prompts, str) else prompts) for seed in seeds]
        settings = self.settings(
            negative_prompt=negative_prompt,
            steps=steps,
            guidance=guidance,
            width=width,
            height=height,
            scheduler=scheduler,
            edit=edit,
        )
        return self.draw(jobs, settings, adapters=adapters, batch_size=batch_size, progress=progress)

    def settings(self, **chosen: Any) -> Settings:
        """Return complete settings: what is not chosen is filled in from the model, and all of it is checked.

        chosen: as `choose_settings` takes it.  Raises UsageError, ModelUnavailable, ModelError, before anything is
        loaded or drawn.
        """
        return self.runner.settings(**chosen)

    def default_batch_size(self, settings: Settings) -> int:
        """Return how many images are drawn at once unless the caller says: see `batch_size_for`."""
        return batch_size_for(self.runner.parameters, *settings.final)

    def draw(
        self,
        jobs: Sequence[Job],
        settings: Settings,
        *,
        adapters: Adapters | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Iterator[Result]:
        """Draw these jobs, batch by batch; see `__call__`.  Arguments are checked at once.

        adapters: for these images; None: those of `set_adapters`.  preview: shows images as they take shape.
        """
        limits.check_seeds([job.seed for job in jobs])
        for job in jobs:
            limits.check_prompt(job.prompt)
        alone = self.runner.cache is not None and self.runner.cache.alone
        if batch_size is None:
            batch_size = 1 if alone else self.default_batch_size(settings)
        if alone and batch_size != 1:
            raise UsageError(f"cache {self.runner.cache} with {batch_size} images at once", "it draws one at a time")
        size = limits.check_batch_size(batch_size)
        parts = deque(list(jobs[start : start + size]) for start in range(0, len(jobs), size))
        chosen = self._adapters if adapters is None else (adapters, find_all(adapters, self._offline))
        return self._batches(parts, settings, chosen, progress, preview)

    def _batches(
        self,
        parts: deque[list[Job]],
        settings: Settings,
        adapters: tuple[Adapters, Found],
        progress: Progress | None,
        preview: Preview | None,
    ) -> Iterator[Result]:
        """Draw part by part, with one turn for each batch: between two of them other threads draw theirs."""
        first, total = 0, sum(map(len, parts)) * settings.steps
        guided = self.runner.uses_negative(settings.guidance)
        batches: list[list[Job]] = []  # of the part at hand
        while parts or batches:
            with self._turn:
                self._attach(*adapters)
                batches = batches or list(self.prompt_encoder.runs(parts.popleft(), settings, guided))
                batch = batches.pop(0)

                def report(fraction: float, done: int = first, count: int = len(batch)) -> None:
                    if progress is not None:
                        progress(round((done + fraction * count) * settings.steps), total)

                drawn = self._draw_whole(batch, settings, report, preview)
                report(1.0)
                # Finished within the turn: records name the scheduler and the adapters that are in place now.
                results, failure = make_results(self.runner, batch, settings, drawn, first, self._known())
            yield from results
            if failure is not None:
                raise failure
            first += len(batch)

    def _attach(self, adapters: Adapters, found: Found) -> None:
        """Attach these adapters unless they are attached already.  The caller has the turn."""
        if self.runner.pipe is None and self._loaded is not None:  # an earlier drawing ran out of memory while loading
            self._adopt(self._loaded.reload())
        if adapters != self.attached.adapters:
            self.runner.attach_adapters(adapters, found)

    def _known(self) -> dict[str, Any]:
        """Return the fields of a recipe that all images of a batch share."""
        machine = self.plan.record() if self.plan else {}
        return {
            "model": self.name,
            "revision": self.revision,
            "weights_hash": self.weights_hash,
            "dtype": self.dtype,
            "device": self.device,
            "hardware": device_name(self.device),
            "threads": thread_count(),
            "adapters": [dict(record) for record in self.attached.records],
            "machine": machine | ({"cache": str(self.runner.cache)} if self.runner.cache else {}),
            "safety": self.safety,
        }

    def _draw_whole(
        self, batch: list[Job], settings: Settings, report: Callable[[float], None], preview: Preview | None
    ) -> PassResult:
        """Draw one batch, on the next memory level where memory runs out and that is wanted; never a smaller batch."""

        def draw() -> PassResult:
            return self.runner.draw(batch, settings, report, preview)

        if self._loaded is None:
            return draw()
        return self._loaded.draw(ImageBatch(*settings.final, len(batch)), self._adopt, draw)

    def _adopt(self, pipe: Any) -> None:
        """Draw with this pipeline; None: release the present one."""
        dtype = self._loaded.plan.level.dtype if self._loaded else str(pipe.dtype).removeprefix("torch.")
        self.runner.adopt(pipe, dtype)
