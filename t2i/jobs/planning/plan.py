"""From what is asked of each image to what is drawn at once: models, settings, groups; and what is said before.

Images that follow one another with the same model and settings are drawn together. The order is never changed.
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

SettingsByOverride = dict[
    PromptOverrides, dict[str, Any]
]  # what `TextToImage.settings` is told, by what a prompt overrides


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
        """What is drawn."""
        return [task.job for task in self.tasks] if self.batch_size is None else [self.tasks[0].job] * self.batch_size

    @property
    def steps(self) -> int:
        """Denoising steps of all images together."""
        return self.settings.steps * (self.batch_size or len(self.tasks))

    def wanted(self, k: int) -> Task | None:
        """The task that image k of `jobs` belongs to; None for a copy."""
        if self.batch_size is None:
            return self.tasks[k]
        return self.tasks[0] if k == self.index else None


def plan(request: GenerateRequest, found: dict[tuple[str, str | None], ModelFiles] | None = None) -> list[ModelGroup]:
    """Group the images of a request by model, and find the models (downloading them where that is needed).

    found: models that were found before; new ones are added.  Raises as `locate` does.
    """
    found = {} if found is None else found
    parts = []
    offline, config = request.options.offline, request.options.config
    for key, tasks in groupby(request.tasks, lambda task: model_key(request.options_of(task.prompt))):
        name = key.model, key.revision
        if name not in found:
            found[name] = locate(key.model, revision=key.revision, offline=offline, config=config)
        parts.append(ModelGroup(found[name], key, list(tasks)))
    for part in parts:  # all of them, before the first one is drawn
        inputs = [(task, image_inputs(request.options_of(task.prompt))) for task in part.tasks]
        find_controls(part.files, inputs, offline or part.files.offline)
        find_adapters(part.key.adapters, part.tasks[0], offline or part.files.offline)
    return parts


def places_of(request: GenerateRequest) -> dict[str | None, Outputs]:
    """Return where images go, by the name that their row gives them: None: where the output of the run says.

    Raises UsageError where a row names a file and the output is no folder.
    """
    options, places = request.options, {}
    for name, count in Counter(task.prompt.overrides.get("output") for task in request.tasks).items():
        target = options.output
        if name is not None:
            folder = target or "outputs/"
            if not (folder.endswith(("/", os.sep)) or os.path.isdir(folder)):
                raise UsageError(f"--output {folder}: rows name their own files", "give a folder/, or leave it out")
            target = os.path.join(folder, name)
        places[name] = Outputs(target, format=options.format, overwrite=options.overwrite, count=count)
    return places


def prepare(
    part: ModelGroup,
    request: GenerateRequest,
    say: Callable[[str], None],
    model: TextToImage | None = None,
    steady: bool = False,
) -> tuple[TextToImage, list[DrawGroup]]:
    """Warn of what will be cut from the prompts, then load the weights and say what will be done.

    model: the same base model, loaded before; it then wears the adapters of this part.
    steady: as `make_plan` has it.
    Raises UsageError for settings that the model cannot take, naming the row they stand in.
    """
    from t2i.jobs.planning.adapter_swap import load_or_set_adapters, read_words
    from t2i.pipelines.adapters.textual_inversion import with_words
    from t2i.pipelines.prompts.tokenizers import load_tokenizers

    words = read_words(part.key.adapters, request.options.offline)
    tokenizers = load_tokenizers(part.files)
    told = {task.prompt.overrides: settings_of(request.options_of(task.prompt)) for task in part.tasks}
    _check_prompts(
        part, told, PromptChunker.of(part.files.kind, with_words(list(tokenizers.values()), words)), words, say
    )
    images = max(len(part.tasks), *(task.prompt.copies[0] for task in part.tasks))
    model = load_or_set_adapters(
        model,
        part.files,
        part.key.adapters,
        offline=request.options.offline,
        scheduler=request.options.scheduler,
        components=tokenizers,
        plan=lambda: machine_plan(part.files, part.key, request, list(told.values()), images, steady),
        say=say,
        cache=part.key.cache,
    )
    for line in (*model.attached.lines, *model.attached.warnings):
        say(line)
    groups = list(_groups(part, model, told))
    _announce(model, groups, say)
    return model, groups


def _groups(part: ModelGroup, model: TextToImage, told: SettingsByOverride) -> Iterator[DrawGroup]:
    def together(task: Task) -> tuple[Any, ...]:
        settings = told[task.prompt.overrides]
        alone = task if task.prompt.original and task.job.seed == task.prompt.overrides.get("seed") else None
        return tuple(settings.values()), alone and (alone.prompt.original, alone.prompt.copies)

    for (_, alone), run in groupby(part.tasks, together):
        tasks = list(run)
        prompt = tasks[0].prompt
        try:
            settings = model.settings(**told[prompt.overrides])
        except UsageError as e:
            if not prompt.where:
                raise
            raise UsageError(f"{prompt.where}: {e.message}", e.hint) from None
        if alone is None:
            yield DrawGroup(tasks, settings)
            continue
        settings = _same_scheduler(model, settings, tasks[0])
        yield from (DrawGroup([task], settings, *prompt.copies) for task in tasks)


def _same_scheduler(model: TextToImage, settings: Settings, task: Task) -> Settings:
    """The model's own scheduler where the record shows that one: a name stands for what is usual with it."""
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
    part: ModelGroup,
    told: SettingsByOverride,
    chunker: PromptChunker,
    words: Sequence[Word],
    say: Callable[[str], None],
) -> None:
    """Say what is likely not as it was meant, as far as it is seen without the weights.  words: of the embeddings."""
    from t2i.jobs.planning.adapter_swap import hints

    warn_of_prompts(part.files.model.name, chunker, [(task, told[task.prompt.overrides]) for task in part.tasks], say)
    if any(not task.job.prompt.strip() for task in part.tasks):
        say("note: an empty prompt: drawing unconditionally")
    negatives = [settings["negative_prompt"] for settings in told.values()]
    for hint in hints(words, [*(task.job.prompt for task in part.tasks), *negatives]):
        say(hint)
    _check_originals(part, say)
    say_safety(part.files, part.key, say)


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


def _check_originals(part: ModelGroup, say: Callable[[str], None]) -> None:
    """Warn where the model of a record is here with other weights."""
    originals = {task.prompt.original.path: task.prompt.original for task in part.tasks if task.prompt.original}
    if originals:
        from t2i.jobs.replay.verify import check_weights

        for original in originals.values():
            if warning := check_weights(original, part.files.model.name, part.files.hash()):
                say(warning)


def _scaled(settings: Settings) -> str | None:
    """What is said of a picture that is not drawn from at its own size."""
    image, size = settings.edit.image, (settings.width, settings.height)
    if image is None or image.size == size:
        return None
    return f"note: {image.name} is {image.size[0]}x{image.size[1]}: scaled and cut to {size[0]}x{size[1]}"


def _headline(model: TextToImage, groups: Sequence[DrawGroup]) -> str:
    """One line that says what is done and with what, so that nothing was chosen in silence."""
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
