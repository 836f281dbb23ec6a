"""The models of a long batch: all settings are checked at the start, and one model is loaded at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from t2i.errors import UsageError
from t2i.jobs.batch.job_list import Item, JobList
from t2i.jobs.events import Emit
from t2i.jobs.planning.assets import find_adapters, find_controls
from t2i.jobs.planning.model_slot import ModelSlot
from t2i.jobs.planning.plan import ModelGroup
from t2i.jobs.spec.resolve import ModelKey, image_inputs, model_key, settings_of
from t2i.jobs.spec.tasks import Task
from t2i.pipelines.settings.edit import NO_IMAGE_INPUTS, ImageInputs

if TYPE_CHECKING:
    from t2i.pipelines.text_to_image.pipeline import TextToImage

FIRST = 1000  # prompts that are tokenized to warn about truncation, before anything is drawn
KINDS = 10_000  # distinct settings that are checked before anything is drawn: memory stays constant


class BatchModels:
    """The model that was used last, and the batch sizes of all."""

    def __init__(self, jobs: JobList, slot: ModelSlot, emit: Emit) -> None:
        self.jobs = jobs
        self.emit = emit
        self._slot = slot
        self._sizes: dict[tuple[Any, ...], int] = {}

    def check(self) -> int:
        """Read the whole list, find its models, load the first; return the number of images.

        Settings that the first model cannot take are found wherever they stand; those of another, when it is loaded.
        Raises UsageError where a row is wrong, ModelUnavailable and so on.
        """
        request, options = self.jobs.request, self.jobs.request.options
        first: list[Task] = []
        kinds: dict[tuple[Any, ...], Task] = {}  # of each model and settings the first image that asks for them
        models: dict[ModelKey, Task] = {}
        total = 0
        for total, task in enumerate(self.jobs.tasks(), 1):
            own = request.options_of(task.prompt)
            key = model_key(own)
            models.setdefault(key, task)
            if total <= FIRST:
                first.append(task)
            if len(kinds) < KINDS:
                kinds.setdefault((key, *settings_of(own).values()), task)
            if self.jobs.shards and "output" in task.prompt.overrides:
                message = f"{task.prompt.where}: names its own file, but `shards` packs images"
                raise UsageError(message, "leave `output` out of the rows")
        if not total:
            raise UsageError(f"`prompt_file={self.jobs.file}`: no prompt", "one per line, or rows with options")
        inputs: dict[ModelKey, list[tuple[Task, ImageInputs]]] = {}
        for (key, *_), task in kinds.items():
            inputs.setdefault(key, []).append((task, image_inputs(request.options_of(task.prompt))))
        for key, task in models.items():
            files = self.jobs.locate(key)
            find_adapters(key.adapters, task, options.offline or files.offline)
            find_controls(files, inputs.get(key, ()), options.offline or files.offline)
        model = self._load(first)
        self._check_settings(model, [task for (key, *_), task in kinds.items() if key == self._key(first[0])])
        return total

    def get(self, key: ModelKey, tasks: list[Task]) -> TextToImage:
        """Return the model, loaded in place of the one before."""
        if self._slot.model is None or self._slot.key != key:
            return self._load(tasks)
        return self._slot.model

    def size(self, item: Item) -> int:
        """Return how many images are drawn at once: the option, or the model's default."""
        if self.jobs.request.options.batch_size is not None:
            return self.jobs.request.options.batch_size
        settings = dict(item.settings)
        edit = settings.get("edit", NO_IMAGE_INPUTS)
        sized = ImageInputs(image=edit.image, upscale=edit.upscale)  # what decides how large an image becomes
        key = item.model.base(), settings["width"], settings["height"], edit.image and edit.image.size, edit.upscale
        if key not in self._sizes:
            model = self.get(item.model, [item.task])
            wanted = {name: settings[name] for name in ("width", "height", "steps")}
            try:
                chosen = model.settings(**wanted, edit=sized)
            except UsageError:  # reported when it is drawn
                return 1
            self._sizes[key] = model.default_batch_size(chosen)
        return self._sizes[key]

    def _load(self, tasks: list[Task]) -> TextToImage:
        """Load the model of the first of these tasks, checking the prompts of all that share it."""
        key = self._key(tasks[0])
        group = ModelGroup(self.jobs.locate(key), key, [task for task in tasks if self._key(task) == key])
        return self._slot.load(group, self.jobs.request, self.emit, steady=True)[0]

    def _check_settings(self, model: TextToImage, tasks: list[Task]) -> None:
        """Raise UsageError where the model cannot take the settings of one of these."""
        for task in tasks:
            try:
                model.settings(**settings_of(self.jobs.request.options_of(task.prompt)))
            except UsageError as e:
                where = f"{task.prompt.where}: " if task.prompt.where else ""
                raise UsageError(f"{where}{e.message}", e.hint) from None

    def _key(self, task: Task) -> ModelKey:
        return model_key(self.jobs.request.options_of(task.prompt))
