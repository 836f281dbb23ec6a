"""The one model that a long batch holds at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from t2i.errors import UsageError
from t2i.jobs.batch.job_list import Item, JobList
from t2i.jobs.planning.assets import find_adapters, find_controls
from t2i.jobs.planning.plan import ModelGroup, prepare
from t2i.jobs.spec.resolve import ModelKey, complete, model_key
from t2i.jobs.spec.tasks import Task
from t2i.pipelines.settings.edit import NO_IMAGE_INPUTS, ImageInputs
from t2i.pipelines.settings.settings import default_batch_size

if TYPE_CHECKING:
    from t2i.pipelines.text_to_image.pipeline import TextToImage

FIRST = 1000  # prompts that are looked at, for words that will be cut off, before anything is drawn
KINDS = 10_000  # settings that are judged before anything is drawn: more would not be constant memory


class ModelSlot:
    """The model that was needed last.  say: takes a line for the user."""

    def __init__(self, listing: JobList, say: Callable[[str], None]) -> None:
        self.listing = listing
        self.say = say
        self._held: tuple[ModelKey, TextToImage] | None = None
        self._sizes: dict[tuple[Any, ...], int] = {}

    def judge(self) -> int:
        """Read the whole list, find its models, load the first; returns how many images there are.

        What the first model cannot take is found wherever it stands; what another cannot, when its turn comes.
        Raises UsageError where a row is wrong, ModelUnavailable and so on.
        """
        file, request = self.listing.file, self.listing.request
        first: list[Task] = []
        wishes: dict[tuple[Any, ...], Task] = {}  # of each model and settings the first image that asks for them
        models: dict[ModelKey, Task] = {}
        total = 0
        for total, task in enumerate(self.listing.tasks(), 1):
            model = model_key(request, task.prompt.overrides)
            models.setdefault(model, task)
            if total <= FIRST:
                first.append(task)
            if len(wishes) < KINDS:
                wishes.setdefault((model, *complete(request, task.prompt.overrides).values()), task)
            if self.listing.shards and task.prompt.overrides.output is not None:
                message = f"{task.prompt.where}: names its own file, and --shards packs images"
                raise UsageError(message, "leave `output` out of the rows")
        if not total:
            raise UsageError(f"--prompts {file}: no prompt", "one per line, or rows with options")
        edits: dict[ModelKey, list[tuple[Task, ImageInputs]]] = {}
        for (model, *_), task in wishes.items():
            edits.setdefault(model, []).append((task, task.prompt.overrides.edit.over(request.edit)))
        for model, task in models.items():
            files = self.listing.locate(model)
            find_adapters(model.adapters, task, request.offline or files.offline)
            find_controls(files, edits.get(model, ()), request.offline or files.offline)
        self._load(first)
        self._judge([task for (model, *_), task in wishes.items() if model == self._wish(first[0])])
        return total

    def painter(self, model: ModelKey, tasks: list[Task]) -> TextToImage:
        """The model, loaded, in place of the one before."""
        if self._held is None or self._held[0] != model:
            self._load(tasks)
        assert self._held is not None
        return self._held[1]

    def size(self, item: Item) -> int:
        """How many images are drawn at once: what the user says, else what the model's default is."""
        if self.listing.request.batch_size is not None:
            return self.listing.request.batch_size
        settings = dict(item.settings)
        edit = settings.get("edit", NO_IMAGE_INPUTS)
        sized = ImageInputs(image=edit.image, upscale=edit.upscale)  # what decides how large a picture becomes
        key = item.model.base(), settings["width"], settings["height"], edit.image and edit.image.size, edit.upscale
        if key not in self._sizes:
            painter = self.painter(item.model, [item.task])
            wanted = {name: settings[name] for name in ("width", "height", "steps")}
            try:
                chosen = painter.settings(**wanted, edit=sized)
            except UsageError:  # said when it is to be drawn
                return 1
            self._sizes[key] = default_batch_size(painter.pipe, *chosen.final)
        return self._sizes[key]

    def _load(self, tasks: list[Task]) -> None:
        """Load the model of the first of these tasks, judging those that follow with the same."""
        overrides = self._wish(tasks[0])
        before = self._held[1] if self._held and self._held[0].base() == overrides.base() else None
        self._held = None  # before the next one needs its memory
        tasks = [task for task in tasks if self._wish(task) == overrides]
        part = ModelGroup(self.listing.locate(overrides), overrides, tasks)
        painter, _ = prepare(part, self.listing.request, self.say, before, steady=True)
        self._held = overrides, painter

    def _judge(self, tasks: list[Task]) -> None:
        """Raises UsageError where the model that is loaded cannot take the settings of one of these."""
        assert self._held is not None
        for task in tasks:
            try:
                self._held[1].settings(**complete(self.listing.request, task.prompt.overrides))
            except UsageError as e:
                where = f"{task.prompt.where}: " if task.prompt.where else ""
                raise UsageError(f"{where}{e.message}", e.hint) from None

    def _wish(self, task: Task) -> ModelKey:
        return model_key(self.listing.request, task.prompt.overrides)
