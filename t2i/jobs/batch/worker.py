"""One of the processes that draw a long batch: it claims what is free, draws it whole and writes it down."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.errors import ModelError, NonFinite, OutOfMemory, PartialFailure, T2IError, UsageError, one_line
from t2i.jobs.batch.job_list import Item, JobGroup, JobList, options_of
from t2i.jobs.batch.ledger import Ledger
from t2i.jobs.batch.model_slot import ModelSlot
from t2i.jobs.batch.progress import Progress
from t2i.jobs.batch.shard_index import Line
from t2i.jobs.batch.shard_packer import Packed, pack
from t2i.metadata.recipe import Recipe

if TYPE_CHECKING:
    from t2i.pipelines.text_to_image.results import Result

Say = Callable[[str], None]
SavedItem = tuple[Path, Recipe | Packed]
POLL_SECONDS = 0.5
HOPELESS = 8  # groups that fail one after another, when none has ever been drawn
LISTED = 10
FOLDERS = 1000  # that are swept at the end: a pattern may make one per prompt


class Worker:
    """What this process does of the batch.  say: takes a line for the user.  bar: show progress."""

    def __init__(self, listing: JobList, ledger: Ledger, say: Say, bar: bool) -> None:
        self.listing = listing
        self.ledger = ledger
        self.say = say
        self.progress = Progress(bar, ledger)
        self.drawn = 0
        self._model = ModelSlot(listing, say)
        self._failures: list[Exception] = []  # one after another, and nothing drawn before

    def begin(self, chosen: bool) -> None:
        """Judge the whole list, load the first model, and make the folder ours.  chosen: the user named the seeds.

        Raises UsageError where a row is wrong, ModelUnavailable and so on: before anything is written.
        """
        listing, ledger = self.listing, self.ledger
        request = listing.request
        listing.request = replace(request, seeds=request.seeds if chosen else ledger.seeds() or request.seeds)
        total = self._model.judge()
        if listing.shards is not None:
            listing.shards.check(range(listing.shards.number(total - 1) + 1))
        seeds = ledger.open(options_of(listing.file, request), tuple(listing.request.seeds), chosen=chosen)
        self.say(f"{total} images into {ledger.folder}, seed {', '.join(map(str, seeds))}")
        self.progress.begin(total)

    def join(self) -> None:
        """Take the seeds that the folder has, now that the main process has begun."""
        self.listing.request = replace(self.listing.request, seeds=self.ledger.join())

    def draw(self) -> Iterator[SavedItem]:
        """Draw the groups that are neither there nor claimed by another process."""
        for groups in self.listing.shares(self._model.size):
            for group in groups:
                if self.ledger.look(group)[1]:
                    if self.ledger.is_earlier(group):
                        self.progress.found(len(group.items))
                    continue
                with self.ledger.claim(group) as ours:
                    if ours:
                        yield from self._draw(group)
            yield from pack(self.ledger, groups)

    def finish(self) -> Iterator[SavedItem]:
        """See that every group is there, whoever was to draw it, and write the manifest.

        Raises PartialFailure where images failed, or their own error where all did.
        """
        failed: list[Line] = []
        counts = {"done": 0, "failed": 0, "blanked": 0}
        folders: set[Path] = set()
        with self.ledger.manifest() as write:
            for groups in self.listing.shares(self._model.size):
                if len(folders) < FOLDERS:
                    folders.update(item.path.parent for group in groups for item in group.items)
                for line in (yield from self._see(groups)):
                    write(line)
                    counts[line["status"]] += 1
                    if line["status"] != "done" and len(failed) < LISTED:
                        failed.append(line)
        self.ledger.sweep(folders)
        total, drawn = sum(counts.values()), self.ledger.drawn()
        self.progress.close()
        for path in self.listing.shards.beyond(total) if self.listing.shards else ():
            self.say(f"note: {path} is of an earlier, longer list; delete it, or it is trained on too")
        self.say(f"{drawn} images drawn, {counts['done'] - drawn} were there: {self.ledger.folder / 'manifest.jsonl'}")
        if failed:
            self._fail(failed, counts, total)

    def _see(self, groups: list[JobGroup]) -> Generator[SavedItem, None, list[Line]]:
        """Wait for these groups, and their shard, drawing what no other process draws; returns all lines of them."""
        lines: list[Line] = []
        for group in groups:
            while not (looked := self.ledger.look(group))[1]:
                with self.ledger.claim(group) as ours:
                    if ours:
                        yield from self._draw(group)
                        continue
                self._wait()
            lines += looked[0].values()
        while not (yield from pack(self.ledger, groups)):
            self._wait()
        return lines

    def _wait(self) -> None:
        self.progress.show()
        time.sleep(POLL_SECONDS)

    def _fail(self, failed: list[Line], counts: dict[str, int], total: int) -> None:
        if not counts["done"] and self._failures:
            raise self._failures[0]
        for line in failed:
            self.say(f"failed: {line.get('key', line['file'])}: {line.get('error') or 'blanked by the safety checker'}")
        bad = total - counts["done"]
        if bad > len(failed):
            self.say(f"and {bad - len(failed)} more, in manifest.jsonl")
        raise PartialFailure(f"{bad} of {total} images could not be drawn", "the same command tries them again")

    def _draw(self, group: JobGroup) -> Iterator[SavedItem]:
        """Draw a group that is ours, whole, and save what is missing of it."""
        from t2i.imaging.images import save

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
            if self.listing.shards is None:
                yield item.path, result.recipe
        self.ledger.finish(group, lines)
        self.ledger.count(self.drawn)
        self.progress.show()
        if len(self._failures) >= HOPELESS and not self.ledger.drawn():
            raise self._failures[0]

    def _results(self, group: JobGroup, missing: list[Item], lines: dict[int, Line]) -> Iterator[tuple[Item, Result]]:
        """Draw all of a group, if something of it is missing; what fails gets its line, and the others go on."""
        if not missing:
            return
        try:
            tasks = [item.task for item in group.items]
            painter = self._model.painter(group.items[0].model, tasks)
            settings = painter.settings(**dict(group.items[0].settings))
            for result in painter.draw([task.job for task in tasks], settings, batch_size=len(tasks)):
                item = group.items[result.index]
                if item in missing:
                    yield item, result
        except (ModelError, NonFinite, OutOfMemory, UsageError, MemoryError, RuntimeError) as e:
            self._note(e, group, missing, lines)

    def _note(self, e: Exception, group: JobGroup, missing: list[Item], lines: dict[int, Line]) -> None:
        """Write down that what is still missing of a group has failed, and go on with the others."""
        if isinstance(e, RuntimeError) and "memory" not in str(e):
            raise e
        self._failures.append(e)
        said = e.message if isinstance(e, T2IError) else f"{type(e).__name__}: {one_line(e)}"
        where = group.items[0].task.prompt.where
        said = f"{said}; {e.hint}" if isinstance(e, OutOfMemory) and e.hint else said  # which option helps
        said = f"{where}: {said}" if where and isinstance(e, UsageError) else said
        for item in missing:
            if item.index not in lines:
                lines[item.index] = self.ledger.line(item, "failed", error=said)
