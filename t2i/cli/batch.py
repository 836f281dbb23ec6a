"""A long batch: `t2i generate --prompts FILE -o FOLDER/`, by any number of processes, killed and run again at will.

Every process walks the same list and draws the groups that are neither there nor claimed by another; the main one then
walks it once more, waits for what others still draw, takes over what a dead one has left, and writes the manifest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.cli.ledger import Ledger, Line
from t2i.cli.listing import Group, Item, Listing, make_listing, options_of
from t2i.cli.planning import ModelWish, Part, model_wish, prepare
from t2i.cli.progress import Progress
from t2i.cli.request import Request
from t2i.cli.tasks import Task
from t2i.errors import ModelError, NonFinite, OutOfMemory, PartialFailure, T2IError, UsageError
from t2i.pipelines.settings import default_batch_size
from t2i.processes import processes

if TYPE_CHECKING:
    from t2i.pipelines.text_to_image import Result, TextToImage
    from t2i.recipe import Recipe

Say = Callable[[str], None]
FIRST = 1000  # prompts that are looked at before anything is drawn
POLL_SECONDS = 0.5
HOPELESS = 8  # groups that fail one after another, when none has ever been drawn
LISTED = 10


def is_batch(file: str, output: str | None, grid: bool) -> bool:
    """Whether a file of prompts makes a long batch: a real file that goes into a folder, or a pattern with {job}."""
    if grid or not Path(file).is_file():
        return False
    return output is None or output.endswith(("/", os.sep)) or os.path.isdir(output) or "{job}" in output


def draw_batch(file: Path, request: Request, chosen: bool, say: Say, bar: bool) -> Iterator[tuple[Path, Recipe]]:
    """Draw what is missing of the batch; yields what this process draws, as it is saved.

    request: without prompts.  chosen: the user named its seeds.  say: takes a line for the user.
    Raises UsageError: a row that is wrong, another batch's folder; PartialFailure, listing what could not be drawn.
    """
    if request.overwrite:
        raise UsageError("--overwrite: a batch makes what is missing", "delete what is to be made again")
    if request.preview:
        raise UsageError("--preview: a batch shows whole pictures, one after another", "leave it out")
    state = processes()
    if state.num_processes > 1 and request.device is None:
        device = "cpu" if state.device.type == "cpu" else str(state.device)  # Accelerate numbers CPUs too
        request = replace(request, device=device)
    say = say if state.is_main_process else _silence
    listing = make_listing(file, request, chosen)
    ledger = Ledger(listing.folder, state.process_index)
    run = _Run(listing, ledger, say, Progress(bar and state.is_main_process, ledger))
    if state.is_main_process:
        listing.request = replace(request, seeds=request.seeds if chosen else ledger.seeds() or request.seeds)
        run.begin(chosen)
    state.wait_for_everyone()
    listing.request = replace(request, seeds=ledger.join())
    with run.progress:
        yield from run.draw()
        if state.is_main_process:
            yield from run.finish()


def _silence(_: str) -> None:
    """The main process speaks for all."""


class _Run:
    """One process's share.  It holds one model, the last that was needed."""

    def __init__(self, listing: Listing, ledger: Ledger, say: Say, progress: Progress) -> None:
        self.listing = listing
        self.ledger = ledger
        self.say = say
        self.progress = progress
        self.drawn = 0
        self._loaded: tuple[ModelWish, TextToImage] | None = None
        self._sizes: dict[tuple[Any, ...], int] = {}
        self._failures: list[Exception] = []  # one after another, and nothing drawn before

    def begin(self, chosen: bool) -> None:
        """Judge the whole list, load the first model, and make the folder ours.  chosen: the user named the seeds.

        Raises UsageError where a row is wrong, ModelUnavailable and so on: before anything is written.
        """
        file, request = self.listing.file, self.listing.request
        first: list[Task] = []
        models: set[ModelWish] = set()
        total = 0
        for total, task in enumerate(self.listing.tasks(), 1):
            models.add(model_wish(request, task.prompt.wish))
            if total <= FIRST:
                first.append(task)
        if not total:
            raise UsageError(f"--prompts {file}: no prompt", "one per line, or rows with options")
        for model in models:
            self.listing.locate(model)
        self._load(first)
        seeds = self.ledger.open(options_of(file, request), tuple(request.seeds), chosen=chosen)
        self.say(f"{total} images into {self.ledger.folder}, seed {', '.join(map(str, seeds))}")
        self.progress.begin(total)

    def draw(self) -> Iterator[tuple[Path, Recipe]]:
        """Draw the groups that are neither there nor claimed by another process."""
        for group in self.listing.groups(self._size):
            if self.ledger.look(group)[1]:
                if self.ledger.is_earlier(group):
                    self.progress.found(len(group.items))
                continue
            with self.ledger.claim(group) as ours:
                if ours:
                    yield from self._draw(group)

    def finish(self) -> Iterator[tuple[Path, Recipe]]:
        """See that every group is there, whoever was to draw it, and write the manifest.

        Raises PartialFailure where images failed, or their own error where all did.
        """
        failed: list[Line] = []
        counts = {"done": 0, "failed": 0, "blanked": 0}
        with self.ledger.manifest() as write:
            for group in self.listing.groups(self._size):
                while not (looked := self.ledger.look(group))[1]:
                    with self.ledger.claim(group) as ours:
                        if ours:
                            yield from self._draw(group)
                            continue
                    self.progress.show()
                    time.sleep(POLL_SECONDS)
                for line in looked[0].values():
                    write(line)
                    counts[line["status"]] += 1
                    if line["status"] != "done" and len(failed) < LISTED:
                        failed.append(line)
        total, drawn = sum(counts.values()), self.ledger.drawn()
        self.progress.close()
        self.say(f"{drawn} images drawn, {counts['done'] - drawn} were there: {self.ledger.folder / 'manifest.jsonl'}")
        if failed:
            self._fail(failed, counts, total)

    def _fail(self, failed: list[Line], counts: dict[str, int], total: int) -> None:
        if not counts["done"] and self._failures:
            raise self._failures[0]
        for line in failed:
            self.say(f"failed: {line['file']}: {line.get('error') or 'blanked by the safety checker'}")
        bad = total - counts["done"]
        if bad > len(failed):
            self.say(f"and {bad - len(failed)} more, in manifest.jsonl")
        raise PartialFailure(f"{bad} of {total} images could not be drawn", "the same command tries them again")

    def _draw(self, group: Group) -> Iterator[tuple[Path, Recipe]]:
        """Draw a group that is ours, whole, and save what is missing of it."""
        from t2i.images import save

        lines, settled = self.ledger.look(group)
        if settled:
            return  # another has drawn it between our look and our claim
        missing = [item for item in group.items if item.index not in lines]
        for item, result in self._results(group, missing, lines):
            if result.blanked:
                lines[item.index] = self.ledger.line(item, "blanked")
                continue
            # what is there in its place is no whole image: `look` has seen to that
            save(result.image, item.path, recipe=result.recipe, overwrite=True)
            lines[item.index] = self.ledger.line(item, "done", result.recipe.image_hash)
            self.drawn += 1
            self._failures.clear()
            self.progress.clear()  # the caller may print to the same terminal
            yield item.path, result.recipe
        self.ledger.finish(group, lines)
        self.ledger.count(self.drawn)
        self.progress.show()
        if len(self._failures) >= HOPELESS and not self.ledger.drawn():
            raise self._failures[0]

    def _results(self, group: Group, missing: list[Item], lines: dict[int, Line]) -> Iterator[tuple[Item, Result]]:
        """Draw all of a group, if something of it is missing; what fails gets its line, and the others go on."""
        if not missing:
            return
        try:
            tasks = [item.task for item in group.items]
            painter = self._painter(group.items[0].model, tasks)
            settings = painter.settings(**dict(group.items[0].settings))
            for result in painter.draw([task.job for task in tasks], settings, batch_size=len(tasks)):
                item = group.items[result.recipe.batch_index]
                if item in missing:
                    yield item, result
        except (ModelError, NonFinite, OutOfMemory, UsageError, MemoryError, RuntimeError) as e:
            self._note(e, group, missing, lines)

    def _note(self, e: Exception, group: Group, missing: list[Item], lines: dict[int, Line]) -> None:
        """Write down that what is still missing of a group has failed, and go on with the others."""
        if isinstance(e, RuntimeError) and "memory" not in str(e):
            raise e
        self._failures.append(e)
        said = e.message if isinstance(e, T2IError) else f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
        where = group.items[0].task.prompt.where
        said = f"{where}: {said}" if where and isinstance(e, UsageError) else said
        for item in missing:
            if item.index not in lines:
                lines[item.index] = self.ledger.line(item, "failed", error=said)

    def _painter(self, model: ModelWish, tasks: list[Task]) -> TextToImage:
        """The model, loaded, in place of the one before."""
        if self._loaded is None or self._loaded[0] != model:
            self._load(tasks)
        assert self._loaded is not None
        return self._loaded[1]

    def _load(self, tasks: list[Task]) -> None:
        """Load the model of the first of these tasks, judging those that follow with the same."""
        self._loaded = None  # before the next one needs its memory
        request = self.listing.request
        wish = model_wish(request, tasks[0].prompt.wish)
        tasks = [task for task in tasks if model_wish(request, task.prompt.wish) == wish]
        painter, _ = prepare(Part(self.listing.locate(wish), wish, tasks), request, self.say)
        self._loaded = wish, painter

    def _size(self, item: Item) -> int:
        """How many images are drawn at once: what the user says, else what the model's default is."""
        if self.listing.request.batch_size is not None:
            return self.listing.request.batch_size
        settings = dict(item.settings)
        key = item.model, settings["width"], settings["height"]
        if key not in self._sizes:
            painter = self._painter(item.model, [item.task])
            try:
                chosen = painter.settings(width=settings["width"], height=settings["height"])
            except UsageError:  # said when it is to be drawn
                return 1
            self._sizes[key] = default_batch_size(painter.pipe, chosen.width, chosen.height)
        return self._sizes[key]
