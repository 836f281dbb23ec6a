"""One process of a long batch: it claims free groups, draws each completely and records it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.errors import ModelError, NonFinite, OutOfMemory, PartialFailure, T2IError, UsageError, one_line
from t2i.jobs.batch.batch_models import BatchModels
from t2i.jobs.batch.job_list import Item, JobGroup, JobList, identity_of
from t2i.jobs.batch.ledger import Ledger
from t2i.jobs.batch.progress import Progress
from t2i.jobs.batch.shard_index import Line
from t2i.jobs.batch.shard_packer import pack
from t2i.jobs.events import Blanked, Done, Drawn, Emit, Failed, Planned, messages
from t2i.jobs.planning.model_slot import ModelSlot

if TYPE_CHECKING:
    from t2i.pipelines.text_to_image.results import Result

POLL_SECONDS = 0.5
HOPELESS = 8  # the run ends when so many groups fail in a row and none has ever been drawn
LISTED = 10
FOLDERS = 1000  # most that are cleaned of temporary files: a pattern may make one per prompt


class Worker:
    """The share of this process in the batch.

    emit: takes events of this process.  emit_once: takes events about the whole batch, in the main process alone.
    """

    def __init__(self, jobs: JobList, ledger: Ledger, slot: ModelSlot, emit: Emit, emit_once: Emit) -> None:
        self.jobs = jobs
        self.ledger = ledger
        self.emit = emit
        self.emit_once = emit_once
        self.say = messages(emit_once)
        self.progress = Progress(emit is emit_once, ledger, emit)
        self.drawn = 0
        self._models = BatchModels(jobs, slot, emit_once)
        self._failures: list[Exception] = []  # one after another, and nothing drawn before

    def begin(self) -> None:
        """Check the whole list, load the first model, and open the folder.

        Raises UsageError for an invalid row, ModelUnavailable and so on: before anything is written.
        """
        jobs, ledger = self.jobs, self.ledger
        request = jobs.request
        chosen = request.seeds_given
        jobs.request = replace(request, seeds=request.seeds if chosen else ledger.seeds() or request.seeds)
        total = self._models.check()
        if jobs.shards is not None:
            jobs.shards.check(range(jobs.shards.number(total - 1) + 1))
        seeds = ledger.open(identity_of(request), tuple(jobs.request.seeds), chosen=chosen)
        self.emit_once(Planned(total, folder=ledger.folder))
        self.say(f"{total} images into {ledger.folder}, seed {', '.join(map(str, seeds))}")
        self.progress.begin(total)

    def join(self) -> None:
        """Take the seeds that the folder has, now that the main process has begun."""
        self.jobs.request = replace(self.jobs.request, seeds=self.ledger.join())

    def draw(self) -> None:
        """Draw the groups that are neither there nor claimed by another process."""
        for groups in self.jobs.shares(self._models.size):
            for group in groups:
                if self.ledger.lines_of(group)[1]:
                    if self.ledger.is_earlier(group):
                        self.progress.found(len(group.items))
                    continue
                with self.ledger.claim(group) as ours:
                    if ours:
                        self._draw(group)
            pack(self.ledger, groups, self.emit)

    def finish(self) -> None:
        """Make sure that every group is settled, whoever claimed it, and write the manifest.

        Raises PartialFailure where images failed, or the first error where all did.
        """
        failed: list[Line] = []
        counts = {"done": 0, "failed": 0, "blanked": 0}
        folders: set[Path] = set()
        with self.ledger.manifest() as write:
            for groups in self.jobs.shares(self._models.size):
                if len(folders) < FOLDERS:
                    folders.update(item.path.parent for group in groups for item in group.items)
                for line in self._settle(groups):
                    write(line)
                    counts[line["status"]] += 1
                    if line["status"] != "done" and len(failed) < LISTED:
                        failed.append(line)
        self.ledger.sweep(folders)
        total, drawn = sum(counts.values()), self.ledger.drawn()
        self.progress.show()
        for path in self.jobs.shards.leftover(total) if self.jobs.shards else ():
            self.say(f"note: {path} belongs to an earlier, longer list; delete it, or training will read it")
        self.say(f"{drawn} images drawn, {counts['done'] - drawn} were there: {self.ledger.folder / 'manifest.jsonl'}")
        if failed:
            self._fail(failed, counts, total)
        self.emit_once(Done(self.drawn, self.ledger.folder))

    def _settle(self, groups: list[JobGroup]) -> list[Line]:
        """Wait for these groups and their shard, drawing those that no other process draws; return all their lines."""
        lines: list[Line] = []
        for group in groups:
            while not (found := self.ledger.lines_of(group))[1]:
                with self.ledger.claim(group) as ours:
                    if ours:
                        self._draw(group)
                        continue
                self._wait()
            lines += found[0].values()
        while not pack(self.ledger, groups, self.emit):
            self._wait()
        return lines

    def _wait(self) -> None:
        self.progress.show()
        time.sleep(POLL_SECONDS)

    def _fail(self, failed: list[Line], counts: dict[str, int], total: int) -> None:
        if not counts["done"] and self._failures:
            raise self._failures[0]
        for line in failed:
            name = str(line.get("key", line["file"]))
            self.emit_once(Failed(name, line.get("error") or "blanked by the safety checker"))
        bad = total - counts["done"]
        if bad > len(failed):
            self.say(f"and {bad - len(failed)} more, in manifest.jsonl")
        raise PartialFailure(f"{bad} of {total} images could not be drawn", "run the same command again to retry them")

    def _draw(self, group: JobGroup) -> None:
        """Draw a claimed group completely, and save its missing images.

        All of it, since the batch size may change an image's last bits.
        """
        from t2i.imaging.images import save

        lines, settled = self.ledger.lines_of(group)
        if settled:
            return  # another process has drawn it before our claim
        missing = [item for item in group.items if item.index not in lines]
        for item, result in self._results(group, missing, lines):
            if result.blanked:
                lines[item.index] = self.ledger.line(item, "blanked")
                self.emit(Blanked(result.recipe, result.image))
                continue
            # Overwriting is safe: `lines_of` has found no complete image at this path.
            save(result.image, item.path, recipe=result.recipe, overwrite=True)
            lines[item.index] = self.ledger.line(item, "done", result.recipe.image_hash)
            self.drawn += 1
            self._failures.clear()
            if self.jobs.shards is None:
                self.emit(Drawn(item.path, result.recipe, result.image))
        self.ledger.finish(group, lines)
        self.ledger.count(self.drawn)
        self.progress.show()
        if len(self._failures) >= HOPELESS and not self.ledger.drawn():
            raise self._failures[0]

    def _results(self, group: JobGroup, missing: list[Item], lines: dict[int, Line]) -> Iterator[tuple[Item, Result]]:
        """Draw all of a group, if an image of it is missing; an error is recorded, and the batch goes on."""
        if not missing:
            return
        try:
            tasks = [item.task for item in group.items]
            model = self._models.get(group.items[0].model, tasks)
            settings = model.settings(**dict(group.items[0].settings))
            for result in model.draw([task.job for task in tasks], settings, batch_size=len(tasks)):
                item = group.items[result.index]
                if item in missing:
                    yield item, result
        except (ModelError, NonFinite, OutOfMemory, UsageError, MemoryError, RuntimeError) as e:
            self._note(e, group, missing, lines)

    def _note(self, e: Exception, group: JobGroup, missing: list[Item], lines: dict[int, Line]) -> None:
        """Record that the missing images of a group have failed.  Raises errors that are not about this group."""
        if isinstance(e, RuntimeError) and "memory" not in str(e):
            raise e
        self._failures.append(e)
        text = e.message if isinstance(e, T2IError) else f"{type(e).__name__}: {one_line(e)}"
        where = group.items[0].task.prompt.where
        text = f"{text}; {e.hint}" if isinstance(e, OutOfMemory) and e.hint else text  # which option helps
        text = f"{where}: {text}" if where and isinstance(e, UsageError) else text
        for item in missing:
            if item.index not in lines:
                lines[item.index] = self.ledger.line(item, "failed", error=text)
