"""One run of `t2i generate`: from what was asked to files, telling on stderr what it does."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.distributed import is_alone
from t2i.errors import PartialFailure, T2IError, UsageError
from t2i.jobs.planning.plan import ModelGroup, plan, prepare
from t2i.jobs.spec.output_paths import Outputs
from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.resolve import ModelKey
from t2i.jobs.spec.tasks import Task

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i.metadata.recipe import Recipe
    from t2i.pipelines.text_to_image.pipeline import TextToImage
    from t2i.pipelines.text_to_image.preview import Preview
    from t2i.pipelines.text_to_image.results import Result

Say = Callable[[str], None]


def draw(request: GenerateRequest, say: Say, bar: bool = True) -> Iterator[tuple[Path, Recipe | None]]:
    """Draw and save all images; yields each path as soon as the file is there (the sheet of all has no recipe).

    say: takes a line for the user.  bar: show progress on stderr, if that is a terminal.
    Raises T2IError; PartialFailure where images had been written before.
    """
    if not is_alone():
        raise UsageError(
            "several processes share a batch: a file of prompts, and a folder", "--prompts FILE -o FOLDER/"
        )
    parts = plan(request)
    places = places_of(request)
    _check_names(parts, places, request.grid)
    paths: list[Path] = []
    images: list[Image] = []
    blanked: list[int] = []
    loaded: dict[ModelKey, TextToImage] = {}
    previews = _previews(request, places, say) if request.preview else nullcontext()
    with _progress(bar) as steps, previews as preview:
        try:
            for part in parts:
                for task, result in _draw_part(part, request, say, steps, loaded, preview):
                    if result.blanked:
                        blanked.append(result.recipe.seed)
                        continue
                    paths.append(_save(result, places[task.prompt.overrides.output]))
                    images += [result.image] if request.grid else []
                    steps.clear()  # the caller may print to the same terminal
                    _judge(task, result, say)
                    yield paths[-1], result.recipe
        except T2IError as e:
            if not paths:
                raise
            message = f"{e.message} ({len(paths)} of {len(request.tasks)} images are written)"
            raise PartialFailure(message, e.hint) from e
    if images:
        first = places[request.tasks[0].prompt.overrides.output]
        yield _save_grid(images, first.grid_path(paths[0]), request), None
    if blanked:
        message = f"the model's safety checker blanked seed {', '.join(map(str, blanked))}; no file was written for it"
        raise PartialFailure(message, "try another seed or prompt")


def places_of(request: GenerateRequest) -> dict[str | None, Outputs]:
    """Where images go, by the name that their row gives them: None: where --output says.

    Raises UsageError where a row names a file and --output is no folder.
    """
    places = {}
    for name, count in Counter(task.prompt.overrides.output for task in request.tasks).items():
        target = request.output
        if name is not None:
            folder = target or "outputs/"
            if not (folder.endswith(("/", os.sep)) or os.path.isdir(folder)):
                raise UsageError(f"--output {folder}: rows name their own files", "give a folder/, or leave it out")
            target = os.path.join(folder, name)
        places[name] = Outputs(target, format=request.format, overwrite=request.overwrite, count=count)
    return places


def _check_names(parts: Sequence[ModelGroup], places: Mapping[str | None, Outputs], grid: bool) -> None:
    """Raises UsageError, before anything is drawn, for names that are taken or cannot be."""
    named: dict[str | None, list[tuple[str, int, str]]] = {name: [] for name in places}
    for part in parts:
        for task in part.tasks:
            named[task.prompt.overrides.output].append((task.job.prompt, task.job.seed, part.files.model.name))
    for name, outputs in places.items():
        outputs.check(named[name], grid=grid)


def _draw_part(
    part: ModelGroup,
    request: GenerateRequest,
    say: Say,
    steps: _Steps,
    loaded: dict[ModelKey, TextToImage],
    preview: Preview | None,
) -> Iterator[tuple[Task, Result]]:
    """Draw with one model.  loaded: the last one, which is let go before the next is loaded."""
    if steps.total:
        steps.clear()  # for the words on the next model
    before = loaded.get(part.overrides.base())
    loaded.clear()  # before the next one needs its memory
    painter, groups = prepare(part, request, say, before)
    loaded[part.overrides.base()] = painter
    painter.runner.preview = preview
    steps.total += sum(group.steps for group in groups)
    for group in groups:
        first = steps.done
        drawn = painter.draw(
            group.jobs,
            group.settings,
            batch_size=group.batch_size or request.batch_size,
            progress=lambda done, _, first=first: steps.show(first + done),  # type: ignore[misc]
        )
        for result in drawn:
            if (task := group.wanted(result.index)) is not None:
                yield task, result
        steps.show(first + group.steps)


@contextmanager
def _previews(request: GenerateRequest, places: Mapping[str | None, Outputs], say: Say) -> Iterator[Preview]:
    """Pictures of what will be, in one file of this run that is replaced each time, and goes at the end."""
    from t2i.imaging.images import save
    from t2i.metadata.recipe import Mark
    from t2i.pipelines.text_to_image.preview import Preview

    assert request.preview is not None
    path = places[request.tasks[0].prompt.overrides.output].root / f"preview-{os.getpid()}.png"
    every = "step" if request.preview == 1 else f"{request.preview} steps"
    say(f"preview every {every}: {path}")
    try:
        yield Preview(request.preview, lambda image: save(image, path, recipe=Mark(), overwrite=True))
    finally:
        path.unlink(missing_ok=True)


def _judge(task: Task, result: Result, say: Say) -> None:
    """Say whether an image that was to be made again came out the same."""
    original = task.prompt.original
    if original is not None and task.job.seed in (None, original.recipe and original.recipe.seed):
        from t2i.jobs.replay.verify import verify

        if line := verify(original, result.recipe, result.image):
            say(line)


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


def _save_grid(images: Sequence[Image], path: Path, request: GenerateRequest) -> Path:
    """All images on one sheet: a row per prompt, or as square as can be where each prompt has one image."""
    from t2i.imaging.images import grid, save
    from t2i.metadata.recipe import Mark

    each = len(request.seeds) * request.count
    columns = request.columns or (each if each > 1 and len(request.prompts) > 1 else None)
    return save(grid(images, columns), path, recipe=Mark(), overwrite=request.overwrite)


class _Steps:
    """A progress bar on stderr, in denoising steps of single images."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.total = 0
        self.done = 0

    def show(self, done: int) -> None:
        """Move to `done` of all that are known of."""
        self.bar.total = self.total
        self.bar.update(done - self.done)
        self.done = done

    def clear(self) -> None:
        """Take the bar from the screen until it moves again."""
        self.bar.clear()


@contextmanager
def _progress(bar: bool) -> Iterator[_Steps]:
    """A bar where stderr is a terminal; nothing in a pipe or a log, where each path is a sign of life."""
    from tqdm import tqdm

    shown = None if bar else True
    # a delay: the bar comes with the first step, below the words on what will be done
    with tqdm(desc="drawing", unit="step", leave=False, file=sys.stderr, disable=shown, delay=1e-9) as steps:
        yield _Steps(steps)
