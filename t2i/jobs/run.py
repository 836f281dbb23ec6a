"""Run a request: draw its images and save them, reporting progress as events.

In two ways:

    for event in run(request): ...          # from Python, a notebook or a server
    execute(request, show)                  # the same work in this thread, each event handed to a function

Either raises the T2IError that ended the job.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.distributed import is_alone
from t2i.errors import PartialFailure, T2IError, UsageError
from t2i.jobs.events import Blanked, Done, Drawn, Emit, Event, Planned, Previewed, SheetSaved, StepDone, messages
from t2i.jobs.planning.model_slot import ModelSlot
from t2i.jobs.planning.plan import ModelGroup, places_of, plan
from t2i.jobs.spec.output_paths import Outputs
from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.tasks import Task

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i.pipelines.text_to_image.preview import Preview
    from t2i.pipelines.text_to_image.results import Result


class Cancelled(Exception):
    """Raised inside a job whose events are no longer read; it ends the job."""


def run(request: GenerateRequest, slot: ModelSlot | None = None, *, save: bool = True) -> Iterator[Event]:
    """Run a request in a thread of its own and yield its events as they happen.

    Leaving the iterator cancels the job at its next event: what is saved stays.
    slot: a loaded model to reuse; it holds the last model afterwards.  save: whether images become files.
    Raises as `execute` does, after the events before it.
    """
    events: queue.Queue[Event | BaseException | None] = queue.Queue()
    left = threading.Event()

    def emit(event: Event) -> None:
        if left.is_set():
            raise Cancelled
        events.put(event)

    def work() -> None:
        try:
            execute(request, emit, slot, save=save)
            events.put(None)
        except BaseException as e:  # raised again in the caller's thread, Ctrl-C included
            events.put(e)

    worker = threading.Thread(target=work, name="t2i job", daemon=True)
    worker.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        left.set()
        worker.join()


def execute(request: GenerateRequest, emit: Emit, slot: ModelSlot | None = None, *, save: bool = True) -> None:
    """Draw all images of a request, and save them.

    emit: takes each event, in this thread.  slot, save: as of `run`; runs that share a slot come one after the other.
    Raises T2IError; PartialFailure where images had been written before.
    """
    if request.batch is not None:
        from t2i.jobs.batch.runner import execute_batch

        if not save:
            raise UsageError(
                "a batch saves its images: that is how it resumes", "give `prompt`s instead of `prompt_file`"
            )
        slot = slot or ModelSlot()
        with slot.lock:
            execute_batch(request, emit, slot)
        return
    if not is_alone():
        raise UsageError(
            "several processes can share only a batch: a prompt file and a folder",
            "`prompt_file=FILE` `output=FOLDER/`",
        )
    slot = slot or ModelSlot()
    with slot.lock:
        _Run(request, emit, slot, save).execute()


class _Run:
    """One run of a request.  It draws model by model, in the order of the request."""

    def __init__(self, request: GenerateRequest, emit: Emit, slot: ModelSlot, save: bool) -> None:
        self.request = request
        self.options = request.options
        self.emit = emit
        self.slot = slot
        self.places = places_of(request) if save else None
        self.paths: list[Path] = []
        self.images: list[Image] = []  # for the sheet
        self.blanked: list[int] = []
        self.drawn = 0
        self.total = 0  # steps of the models so far

    def execute(self) -> None:
        """Draw and save.  Raises as `execute` of this module does."""
        groups = plan(self.request, self.slot.files)
        if self.places is not None:
            _check_names(groups, self.places, self.options.grid)
        names = dict.fromkeys(group.files.model.name for group in groups)
        self.emit(Planned(len(self.request.tasks), tuple(names)))
        try:
            with self._previews() as preview:
                for group in groups:
                    self._draw(group, preview)
        except T2IError as e:
            if not self.paths:
                raise
            message = f"{e.message} ({len(self.paths)} of {len(self.request.tasks)} images are written)"
            raise PartialFailure(message, e.hint) from e
        if self.images and self.places is not None:
            self._save_sheet(self.places[self.request.tasks[0].prompt.overrides.get("output")])
        if self.blanked and self.places is not None:
            seeds = ", ".join(map(str, self.blanked))
            message = f"the model's safety checker blanked seed {seeds}; no file was written for it"
            raise PartialFailure(message, "try another seed or prompt")
        self.emit(Done(self.drawn))

    def _draw(self, group: ModelGroup, preview: Preview | None) -> None:
        """Draw with one model."""
        model, draws = self.slot.load(group, self.request, self.emit)
        done = self.total
        self.total += sum(draw.steps for draw in draws)
        for draw in draws:
            drawn = model.draw(
                draw.jobs,
                draw.settings,
                batch_size=draw.batch_size or self.options.batch_size,
                progress=lambda steps, _, before=done: self._show(before + steps),  # type: ignore[misc]
                preview=preview,
            )
            for result in drawn:
                if (task := draw.wanted(result.index)) is not None:
                    self._keep(task, result)
            done += draw.steps
            self._show(done)

    def _keep(self, task: Task, result: Result) -> None:
        """Save one image and emit its event."""
        self.drawn += 1
        if result.blanked:
            self.blanked.append(result.recipe.seed)
            self.emit(Blanked(result.recipe, result.image))
            return
        path = None
        if self.places is not None:
            path = _save(result, self.places[task.prompt.overrides.get("output")])
            self.paths.append(path)
            self.images += [result.image] if self.options.grid else []
        self.emit(Drawn(path, result.recipe, result.image, _verify(task, result)))

    def _show(self, done: int) -> None:
        self.emit(StepDone(done, self.total))

    @contextmanager
    def _previews(self) -> Iterator[Preview | None]:
        """Yield previews, in one file that is replaced each time and removed at the end; None: not asked for."""
        every = self.options.preview
        if every is None or self.places is None:
            with nullcontext():
                yield None
            return
        from t2i.imaging.images import save
        from t2i.metadata.recipe import Mark
        from t2i.pipelines.text_to_image.preview import Preview

        first = self.places[self.request.tasks[0].prompt.overrides.get("output")]
        path = first.root / f"preview-{os.getpid()}.png"
        messages(self.emit)(f"preview every {'step' if every == 1 else f'{every} steps'}: {path}")

        def show(image: Image) -> None:
            save(image, path, recipe=Mark(), overwrite=True)
            self.emit(Previewed(path))

        try:
            yield Preview(every, show)
        finally:
            path.unlink(missing_ok=True)

    def _save_sheet(self, outputs: Outputs) -> None:
        """Save all images on one sheet: a row per prompt, or nearly square where each prompt has one image."""
        from t2i.imaging.images import grid, save
        from t2i.metadata.recipe import Mark

        each = len(self.request.seeds) * self.options.num_images
        columns = self.options.columns or (each if each > 1 and len(self.request.prompts) > 1 else None)
        path = outputs.grid_path(self.paths[0])
        save(grid(self.images, columns), path, recipe=Mark(), overwrite=self.options.overwrite)
        self.emit(SheetSaved(path))


def _check_names(groups: Sequence[ModelGroup], places: Mapping[str | None, Outputs], grid: bool) -> None:
    """Raise UsageError, before anything is drawn, for names that are taken or impossible."""
    named: dict[str | None, list[tuple[str, int, str]]] = {name: [] for name in places}
    for group in groups:
        for task in group.tasks:
            image = task.job.prompt, task.job.seed, group.files.model.name
            named[task.prompt.overrides.get("output")].append(image)
    for name, outputs in places.items():
        outputs.check(named[name], grid=grid)


def _verify(task: Task, result: Result) -> str | None:
    """Return whether a replayed image is identical to its original, in words; None: it is not expected to be."""
    original = task.prompt.original
    if original is None or task.job.seed not in (None, original.recipe and original.recipe.seed):
        return None
    from t2i.jobs.replay.verify import verify

    return verify(original, result.recipe, result.image)


def _save(result: Result, outputs: Outputs) -> Path:
    """Save under the first name that is free; another run may take names at the same moment."""
    from t2i.imaging.images import save

    candidates = outputs.candidates(result.recipe.prompt, result.recipe.seed, result.recipe.model)
    for path in candidates:
        try:
            return save(result.image, path, recipe=result.recipe, overwrite=outputs.overwrite and not outputs.counted)
        except UsageError:
            if not (outputs.counted and os.path.lexists(path)):
                raise
    raise AssertionError("a pattern always has a candidate")
