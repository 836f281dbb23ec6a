"""A request: which images to draw, and how, checked as far as is possible without the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from t2i.config.options import INPUTS, OPTIONS, GenerateOptions
from t2i.errors import ImageError, UsageError
from t2i.jobs.spec.lora_tags import extract_lora_tags
from t2i.jobs.spec.resolve import effective, image_inputs, model_key
from t2i.jobs.spec.tasks import Prompt, Task, make_tasks
from t2i.pipelines.adapters.specs import read_embedding, read_ip_adapter, read_lora
from t2i.pipelines.settings import limits
from t2i.pipelines.settings.edit import check_image_inputs, check_strength, make_image_inputs


@dataclass(frozen=True)
class GenerateRequest:
    """Images to draw.

    options: those of the run; a prompt may override some.
    prompts: what to draw; empty for a long batch, which reads them from `batch`.
    seeds: chosen, none of them -1.  seeds_given: whether the user named them all.
    batch: the prompt file of a long batch.
    """

    options: GenerateOptions
    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    batch: Path | None = None
    seeds_given: bool = False
    tasks: list[Task] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check everything that does not need the model, and make the tasks.  Raises UsageError."""
        options = self.options
        limits.check_prompt(options.negative_prompt, "negative prompt")
        if options.columns is not None and not options.grid:
            raise UsageError(f"`columns={options.columns}` without a sheet to put them on", "add `grid`")
        options = options.override(_check_cache(options))
        object.__setattr__(self, "options", options)
        if options.scheduler is not None:
            check("scheduler", options.scheduler)
        for overrides in dict.fromkeys(prompt.overrides for prompt in self.prompts):
            check_image_inputs(image_inputs(effective(options, overrides)))
        model_key(options)
        prompts = [self.prepare(prompt) for prompt in self.prompts]
        tasks = make_tasks(prompts, self.seeds, options.num_images, options.wildcards, self.negative_template)
        object.__setattr__(self, "tasks", tasks)

    def options_of(self, prompt: Prompt) -> GenerateOptions:
        """Return the options that hold for one prompt."""
        return effective(self.options, prompt.overrides)

    def prepare(self, prompt: Prompt) -> Prompt:
        """Return a prompt with its `<lora:...>` tags taken out, before choices are made.  Raises UsageError."""
        if self.options.raw:
            return replace(prompt, literal=True)
        return extract_lora_tags(prompt, self.options.lora_folder, self.options.lora)

    @property
    def negative_template(self) -> str:
        """Return the template of each image's negative prompt; empty where prompts are taken literally."""
        return "" if self.options.raw else self.options.negative_prompt


def parse(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Check values of options as a user gives them, and open the images that drawing starts from.

    values: by the names of `GenerateOptions`, converted to their types.  where: the row, for messages.
    Returns them with images, masks, ControlNets and second passes as objects.
    Raises UsageError, ImageError: naming the row.
    """
    try:
        for name, value in values.items():
            check(name, value)
        given = {name: value for name, value in values.items() if name in INPUTS}
        inputs = make_image_inputs(**given) if given else None
    except (UsageError, ImageError) as e:
        raise (type(e)(f"{where}: {e.message}", e.hint) if where else e) from None
    names = {name: "controls" if name == "control" else name for name in given}
    return {**values, **{name: getattr(inputs, attribute) for name, attribute in names.items()}}


def check(name: str, value: Any) -> None:
    """Raise UsageError for a value that its type and range alone do not rule out."""
    if name in CHECKS:
        for one in value if OPTIONS[name].option.many else (value,):
            CHECKS[name](one)


def _scheduler(name: str) -> None:
    from t2i.pipelines.settings.schedulers import scheduler_name

    scheduler_name(name)


def _cache(text: str) -> None:
    from t2i.pipelines.text_to_image.step_cache import parse_cache

    parse_cache(text)


def _dtype(text: str) -> None:
    from t2i.pipelines.loading.load import DTYPES

    if text.lower() not in DTYPES:
        raise UsageError(f"dtype: got {text[:40]!r}, allowed {', '.join(DTYPES)}")


# Options whose values are not fully described by a type and a range.
CHECKS: dict[str, Callable[[Any], object]] = {
    "prompt": limits.check_prompt,
    "negative_prompt": partial(limits.check_prompt, name="negative prompt"),
    "scheduler": _scheduler,
    "dtype": _dtype,
    "lora": read_lora,
    "embedding": read_embedding,
    "ip_adapter": read_ip_adapter,
    "cache": _cache,
    "strength": partial(check_strength, "strength"),
}


def _check_cache(options: GenerateOptions) -> dict[str, Any]:
    """Return the options that a cache changes: itself in canonical spelling, since it enters job ids, and
    one image at a time where the method needs that.
    """
    if options.cache is None:
        return {}
    from t2i.pipelines.text_to_image.step_cache import parse_cache

    cache = parse_cache(options.cache)
    changes: dict[str, Any] = {"cache": str(cache or "none")}
    if cache and cache.alone:
        if options.batch_size not in (None, 1):
            raise UsageError(f"`cache={cache}` with `batch_size={options.batch_size}`", "it draws one at a time")
        changes["batch_size"] = 1
    return changes
