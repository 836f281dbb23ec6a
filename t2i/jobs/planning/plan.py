"""Group the images of a request by model and settings, check them, and load the models.

Consecutive images with the same model and settings are drawn together. The order is never changed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from t2i.errors import UsageError
from t2i.jobs.planning.assets import find_adapters, find_controls
from t2i.jobs.planning.device_plan import machine_plan, say_safety
from t2i.jobs.planning.prompt_checks import warn_of_prompts
from t2i.jobs.spec.output_paths import Outputs
from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.resolve import ModelKey, image_inputs, model_key, settings_of
from t2i.jobs.spec.tasks import PromptOverrides, Task
from t2i.model_files.locate import ModelFiles, locate
from t2i.pipelines.prompts.chunking import PromptChunker
from t2i.pipelines.settings.settings import Job, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from t2i.pipelines.adapters.textual_inversion import Word
    from t2i.pipelines.text_to_image.pipeline import TextToImage

# Arguments of `TextToImage.settings`, by what a prompt overrides: a million equal rows share one entry.
SettingsByOverride = dict[PromptOverrides, dict[str, Any]]


@dataclass(frozen=True)
class ModelGroup:
    """Images that one loaded model draws."""

    files: ModelFiles
    key: ModelKey
    tasks: Sequence[Task]


@dataclass(frozen=True)
class DrawGroup:
    """Images that are drawn with the same settings.

    batch_size: how many at once, where that is not free.  Then the one task is image `index` of so many copies.
    """

    tasks: Sequence[Task]
    settings: Settings
    batch_size: int | None = None
    index: int = 0

    @property
    def jobs(self) -> list[Job]:
        """Return the jobs that are drawn at once, copies included."""
        return [task.job for task in self.tasks] if self.batch_size is None else [self.tasks[0].job] * self.batch_size

    @property
    def steps(self) -> int:
        """Return the denoising steps of all images together."""
        return self.settings.steps * (self.batch_size or len(self.tasks))

    def wanted(self, k: int) -> Task | None:
        """Return the task that image k of `jobs` belongs to; None for a copy."""
        if self.batch_size is None:
            return self.tasks[k]
        return self.tasks[0] if k == self.index else None


def plan(request: GenerateRequest, found: dict[tuple[str, str | None], ModelFiles] | None = None) -> list[ModelGroup]:
    """Group the images of a request by model, and find the models (downloading them where that is needed).

    found: models that were found before; new ones are added.  Raises as `locate` does.
    """
    found = {} if found is None else found
    groups = []
    offline, config = request.options.offline, request.options.config
    for key, tasks in groupby(request.tasks, lambda task: model_key(request.options_of(task.prompt))):
        name = key.model, key.revision
        if name not in found:
            found[name] = locate(key.model, revision=key.revision, offline=offline, config=config)
        groups.append(ModelGroup(found[name], key, list(tasks)))
    for group in groups:  # all of them before the first is drawn: a missing file should not end the run halfway
        inputs = [(task, image_inputs(request.options_of(task.prompt))) for task in group.tasks]
        find_controls(group.files, inputs, offline or group.files.offline)
        find_adapters(group.key.adapters, group.tasks[0], offline or group.files.offline)
    return groups


def places_of(request: GenerateRequest) -> dict[str | None, Outputs]:
    """Return where images go, by the file name that a row gives; None: the output of the run.

    Raises UsageError where a row names a file and the output is no folder.
    """
    options, places = request.options, {}
    for name, count in Counter(task.prompt.overrides.get("output") for task in request.tasks).items():
        target = options.output
        if name is not None:
            folder = target or "outputs/"
            if not (folder.endswith(("/", os.sep)) or os.path.isdir(folder)):
                raise UsageError(f"`output={folder}`: rows name their own files", "give a folder/, or leave it out")
            target = os.path.join(folder, name)
        places[name] = Outputs(target, format=options.format, overwrite=options.overwrite, count=count)
    return places


def prepare(
    group: ModelGroup,
    request: GenerateRequest,
    say: Callable[[str], None],
    model: TextToImage | None = None,
    steady: bool = False,
) -> tuple[TextToImage, list[DrawGroup]]:
    """Warn about truncated prompts, then load the weights and say what will be done.

    model: the same base model, loaded before, whose adapters are exchanged for those of this group.
    steady: see `make_plan`.
    Raises UsageError for settings that the model cannot take, naming the row they stand in.
    """
    from t2i.jobs.planning.adapter_swap import load_or_set_adapters, read_embedding_words
    from t2i.pipelines.adapters.textual_inversion import with_words
    from t2i.pipelines.prompts.tokenizers import load_tokenizers

    words = read_embedding_words(group.key.adapters, request.options.offline)
    tokenizers = load_tokenizers(group.files)  # small: prompts are checked before the weights are loaded
    settings = {task.prompt.overrides: settings_of(request.options_of(task.prompt)) for task in group.tasks}
    chunker = PromptChunker.of(group.files.kind, with_words(list(tokenizers.values()), words))
    _check_prompts(group, settings, chunker, words, say)
    images = max(len(group.tasks), *(task.prompt.copies[0] for task in group.tasks))
    model = load_or_set_adapters(
        model,
        group.files,
        group.key.adapters,
        offline=request.options.offline,
        scheduler=request.options.scheduler,
        components=tokenizers,
        plan=lambda: machine_plan(group.files, group.key, request, list(settings.values()), images, steady),
        say=say,
        cache=group.key.cache,
    )
    for line in (*model.attached.lines, *model.attached.warnings):
        say(line)
    draws = list(_draw_groups(group, model, settings))
    _announce(model, draws, say)
    return model, draws


def _draw_groups(group: ModelGroup, model: TextToImage, settings: SettingsByOverride) -> Iterator[DrawGroup]:
    def together(task: Task) -> tuple[Any, ...]:
        # A replayed image is drawn among as many copies as its record says: batch size changes the rounding.
        alone = task if task.prompt.original and task.job.seed == task.prompt.overrides.get("seed") else None
        return tuple(settings[task.prompt.overrides].values()), alone and (alone.prompt.original, alone.prompt.copies)

    for (_, alone), run in groupby(group.tasks, together):
        tasks = list(run)
        prompt = tasks[0].prompt
        try:
            chosen = model.settings(**settings[prompt.overrides])
        except UsageError as e:
            if not prompt.where:
                raise
            raise UsageError(f"{prompt.where}: {e.message}", e.hint) from None
        if alone is None:
            yield DrawGroup(tasks, chosen)
            continue
        chosen = _same_scheduler(model, chosen, tasks[0])
        yield from (DrawGroup([task], chosen, *prompt.copies) for task in tasks)


def _same_scheduler(model: TextToImage, settings: Settings, task: Task) -> Settings:
    """Return the settings with the model's own scheduler, where its configuration is the one in the record.

    A scheduler's name stands for its usual configuration, which need not be that of the model.
    """
    record = task.prompt.original and task.prompt.original.recipe
    if (
        not record
        or settings.scheduler != record.scheduler
        or model.runner.scheduler_config(settings) == record.scheduler_config
    ):
        return settings
    own = replace(settings, scheduler=None)
    return own if model.runner.scheduler_config(own) == record.scheduler_config else settings


def _check_prompts(
    group: ModelGroup,
    settings: SettingsByOverride,
    chunker: PromptChunker,
    words: Sequence[Word],
    say: Callable[[str], None],
) -> None:
    """Say what is probably a mistake, as far as it shows without the weights.  words: of the embeddings."""
    from t2i.jobs.planning.adapter_swap import adapter_hints

    tasks = [(task, settings[task.prompt.overrides]) for task in group.tasks]
    warn_of_prompts(group.files.model.name, chunker, tasks, say)
    if any(not task.job.prompt.strip() for task in group.tasks):
        say("note: an empty prompt: drawing unconditionally")
    negatives = [one["negative_prompt"] for one in settings.values()]
    for hint in adapter_hints(words, [*(task.job.prompt for task in group.tasks), *negatives]):
        say(hint)
    _check_originals(group, say)
    say_safety(group.files, group.key, say)


def _announce(model: TextToImage, groups: Sequence[DrawGroup], say: Callable[[str], None]) -> None:
    """Say what will be drawn and how."""
    idle = [
        group
        for group in groups
        if group.settings.negative_prompt and not model.runner.uses_negative(group.settings.guidance)
    ]
    if idle:
        guidance = idle[0].settings.guidance
        say(f"warning: the negative prompt does nothing (guidance {guidance:g} of {model.name})")
    for line in dict.fromkeys(filter(None, (_scaled(group.settings) for group in groups))):
        say(line)
    say(_headline(model, groups))
    if model.plan and (chosen := model.plan.summary()):
        say(f"machine: {chosen}")


def _check_originals(group: ModelGroup, say: Callable[[str], None]) -> None:
    """Warn where a model has other weights than the record of a replayed image says."""
    originals = {task.prompt.original.path: task.prompt.original for task in group.tasks if task.prompt.original}
    if originals:
        from t2i.jobs.replay.verify import check_weights

        for original in originals.values():
            if warning := check_weights(original, group.files.model.name, group.files.hash()):
                say(warning)


def _scaled(settings: Settings) -> str | None:
    """Return a note on an input image that is scaled; None where it has the size that is drawn."""
    image, size = settings.edit.image, (settings.width, settings.height)
    if image is None or image.size == size:
        return None
    return f"note: {image.name} is {image.size[0]}x{image.size[1]}: scaled and cropped to {size[0]}x{size[1]}"


def _headline(model: TextToImage, groups: Sequence[DrawGroup]) -> str:
    """Return one line that names every choice made for the user: device, dtype, size, steps, scheduler, seeds."""
    seeds = list(dict.fromkeys(task.job.seed for group in groups for task in group.tasks))
    runs = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    shown = f"{seeds[0]} to {seeds[-1]}" if runs and len(seeds) > 2 else ", ".join(map(str, seeds[:4]))
    parts = [
        model.name,
        model.device,
        model.dtype,
        *([f"cache {model.runner.cache}"] if model.runner.cache else []),
    ]
    for several, words in (
        ("sizes", lambda s: f"{s.width}x{s.height}"),
        ("numbers of steps", lambda s: f"{s.steps} steps of {model.runner.scheduler_name(s)}"),
        ("ways to start", lambda s: s.edit.words(s.steps)),
        ("values of guidance", lambda s: f"guidance {s.guidance:g}" + (" (off)" if s.guidance <= 1 else "")),
    ):
        values = dict.fromkeys(words(group.settings) for group in groups)
        if any(values):
            parts.append(next(iter(values)) if len(values) == 1 else f"{len(values)} {several}")
    return " · ".join([*parts, f"seed {shown}" + (", ..." if not runs and len(seeds) > 4 else "")])
