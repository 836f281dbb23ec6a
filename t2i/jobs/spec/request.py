"""What a user asks of `t2i generate`, judged as far as it can be without the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from t2i.errors import UsageError
from t2i.jobs.spec.lora_tags import extract_lora_tags
from t2i.jobs.spec.tasks import Prompt, Task, make_tasks
from t2i.pipelines.adapters.specs import Adapters
from t2i.pipelines.settings import limits
from t2i.pipelines.settings.edit import NO_IMAGE_INPUTS, ImageInputs, check_image_inputs


@dataclass(frozen=True)
class GenerateRequest:
    """What the user asks for; None: the model's default.  seeds: chosen, none of them -1."""

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    count: int = 1
    negative: str = ""
    model: str = "mini"
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    edit: ImageInputs = NO_IMAGE_INPUTS
    batch_size: int | None = None
    output: str | None = None
    format: str | None = None
    overwrite: bool = False
    grid: bool = False
    columns: int | None = None
    shards: str | None = None  # of a long batch
    shard_size: int | None = None
    device: str | None = None
    dtype: str | None = None
    cache: str | None = None
    preview: int | None = None
    revision: str | None = None
    config: str | None = None
    offline: bool = False
    raw: bool = False
    chunks: bool | None = None
    wildcards: Path | None = None
    loras: tuple[str, ...] = ()
    lora_folder: Path | None = None
    embeddings: tuple[str, ...] = ()
    ip_adapters: tuple[str, ...] = ()
    offload: str = "auto"
    quantize: str | None = None
    tiling: bool | None = None
    compile: bool = False
    auto_retry: bool = False
    deterministic: bool = False
    no_safety: bool = False
    tasks: list[Task] = field(init=False)

    def __post_init__(self) -> None:
        """Raises UsageError for everything that can be judged without the model."""
        limits.check_image_count(self.count)
        if self.steps is not None:
            limits.check_steps(self.steps)
        if self.guidance is not None:
            limits.check_guidance(self.guidance)
        if self.batch_size is not None:
            limits.check_batch_size(self.batch_size)
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None:
                limits.check_side(name, side)
        limits.check_prompt(self.negative, "negative prompt")
        if self.columns is not None and not self.grid:
            raise UsageError(f"--columns {self.columns} without a sheet to put them on", "add --grid")
        if self.cache is not None:
            self._check_cache()
        if self.scheduler is not None:
            from t2i.pipelines.settings.schedulers import scheduler_name

            scheduler_name(self.scheduler)
        for edit in dict.fromkeys(prompt.overrides.edit.over(self.edit) for prompt in self.prompts):
            check_image_inputs(edit)
        Adapters.read(self.loras, self.embeddings, self.ip_adapters)
        prompts = [self.understand(prompt) for prompt in self.prompts]
        object.__setattr__(self, "tasks", make_tasks(prompts, self.seeds, self.count, self.wildcards, self.template))

    def understand(self, prompt: Prompt) -> Prompt:
        """A prompt as the language of prompts reads it, before anything is chosen.  Raises UsageError."""
        if self.raw:
            return replace(prompt, literal=True)
        return extract_lora_tags(prompt, self.lora_folder, self.loras)

    @property
    def template(self) -> str:
        """What the negative prompt of each image is chosen from; empty: nothing is to be chosen."""
        return "" if self.raw else self.negative

    def _check_cache(self) -> None:
        """One way of writing it, since it names jobs; and one picture at a time where the method needs that."""
        from t2i.pipelines.text_to_image.step_cache import parse_cache

        cache = parse_cache(self.cache or "none")
        object.__setattr__(self, "cache", str(cache or "none"))
        if cache and cache.alone:
            if self.batch_size not in (None, 1):
                raise UsageError(f"--cache {cache} with --batch-size {self.batch_size}", "it draws one at a time")
            object.__setattr__(self, "batch_size", 1)
