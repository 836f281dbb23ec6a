"""The state of a long batch, in `.t2i-batch` among its images, and its manifest.

batch.json            the options and the seeds; a folder holds one batch
groups/000000008.jsonl    one line per image of a finished group, written whole when its images are there
claims/, progress/    who draws which group now, and how many images each process has drawn
spool/, shards/    where images go into shards: see `shard_index.py`; records of groups that a shard holds are removed

manifest.jsonl, among the images, is all groups' lines in the order of the list, written at the end.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from t2i import atomic
from t2i.errors import ImageError, UsageError
from t2i.imaging.decoding import decode
from t2i.jobs.batch.file_locks import claim
from t2i.jobs.batch.job_list import Item, JobGroup
from t2i.jobs.batch.shard_index import Line, Shards
from t2i.metadata import recipe
from t2i.model_files.registry import read_json


class Ledger:
    """The records of one batch folder.  shards: that its images are packed into; None: they are files."""

    def __init__(self, folder: Path, rank: int = 0, shards: Shards | None = None) -> None:
        self.folder = folder
        self.shards = shards
        self.state = folder / ".t2i-batch"
        self.rank = rank
        self._begun = 0

    def seeds(self) -> tuple[int, ...]:
        """Return the seeds that the folder began with; none where it has not begun."""
        path = self.state / "batch.json"
        return tuple(read_json(path).get("seeds", ())) if path.exists() else ()

    def open(self, options: dict[str, Any], seeds: tuple[int, ...], *, chosen: bool) -> tuple[int, ...]:
        """Begin a batch or resume it, as its main process; return its seeds.

        chosen: the user named the seeds; else those that the folder began with hold.
        Raises UsageError where the folder holds another batch.
        """
        path = self.state / "batch.json"
        options = json.loads(json.dumps(options))
        if not path.exists():
            with suppress(UsageError):  # another run on this folder was first: then it is read
                atomic.write(json.dumps({"seeds": seeds, "options": options}, indent=1).encode(), path)
        found = read_json(path)
        recorded, began = found.get("options", {}), self.seeds()
        changes = [
            f"{name} was {recorded.get(name)!r}, now {value!r}"
            for name, value in options.items()
            if recorded.get(name) != value
        ]
        if chosen and began != seeds:
            changes.append(f"seed was {_list(began)}, now {_list(seeds)}")
        if changes:
            raise UsageError(f"{self.folder} holds another batch: {'; '.join(changes)}", "choose another `output`")
        for name in ("groups", "claims", "progress", *(["shards", "spool"] if self.shards else [])):
            (self.state / name).mkdir(exist_ok=True)
        for old in (self.state / "progress").iterdir():
            old.unlink(missing_ok=True)
        atomic.write(secrets.token_hex(8).encode(), self.state / "begun", overwrite=True)
        return began

    def join(self) -> tuple[int, ...]:
        """Take over when this run began; return the seeds of the batch."""
        self._begun = (self.state / "begun").stat().st_mtime_ns
        return self.seeds()

    def claim(self, group: JobGroup) -> AbstractContextManager[bool]:
        """Hold a group, so that no other process draws it; yield whether it is ours."""
        return claim(self.state / "claims" / group.name)

    def claim_shard(self, number: int) -> AbstractContextManager[bool]:
        """Hold a shard, so that no other process packs it; yield whether it is ours."""
        return claim(self.state / "claims" / f"shard-{number:06d}")

    def lines_of(self, group: JobGroup) -> tuple[dict[int, Line], bool]:
        """Return the lines of a group's images by index, and whether the group is settled: its record equals them.

        Missing and incomplete images are left out, as are those that an earlier run failed to draw.
        """
        known, fresh = self._read(group)
        lines: dict[int, Line] = {}
        for item in group.items:
            line = known.get(item.index)
            if line and line["status"] == "failed" and not fresh:
                line = None
            if line and line["status"] == "done" and _size(item.path) != line["bytes"] and not self.in_shard(item):
                line = None
            line = line or self._inspect(item)
            if line:
                lines[item.index] = line
        return lines, list(lines.values()) == list(known.values()) and len(lines) == len(group.items)

    def in_shard(self, item: Item) -> bool:
        """Return whether an image is in its shard, by the shard's record alone."""
        state = self.shards and self.shards.state(self.shards.number(item.index))
        held = state.line(item.index) if state else None
        return held is not None and held["status"] == "done" and held["job"] == item.job

    def is_earlier(self, group: JobGroup) -> bool:
        """Return whether a group was finished before this run began."""
        return not self._read(group)[1]

    def line(self, item: Item, status: str, image_hash: str | None = None, error: str | None = None) -> Line:
        """Return the manifest's line of one image."""
        shards = self.shards
        file = shards.path(shards.number(item.index)) if shards else item.path
        line = {
            "index": item.index,
            "job": item.job,
            "file": file.relative_to(self.folder).as_posix(),
            **({"key": item.path.stem} if shards else {}),
            "prompt": item.task.job.prompt,
            "seed": item.task.job.seed,
            "hash": image_hash,
            "bytes": _size(item.path),
            "status": status,
        }
        return line if error is None else line | {"error": error}

    def finish(self, group: JobGroup, lines: dict[int, Line]) -> None:
        """Write the record of a group."""
        text = "".join(json.dumps(lines[item.index]) + "\n" for item in group.items if item.index in lines)
        atomic.write(text.encode(), self._path(group), overwrite=True)

    def is_finished(self, group: JobGroup) -> bool:
        """Return whether a group has a record of its own: with shards, only until its shard holds it."""
        return self._path(group).exists()

    def clear(self, group: JobGroup) -> None:
        """Remove the spooled images and the record of a group that its shard holds."""
        for item in group.items:
            item.path.unlink(missing_ok=True)
        self._path(group).unlink(
            missing_ok=True
        )  # last: after a kill the record still tells which images are left to remove

    def count(self, drawn: int) -> None:
        """Publish how many images this process has drawn, for the other processes."""
        (self.state / "progress" / str(self.rank)).write_text(str(drawn))

    def drawn(self) -> int:
        """Return how many images all processes of this run have drawn."""
        total = 0
        for path in (self.state / "progress").iterdir():
            with suppress(OSError, ValueError):  # being written at this moment: counted next time
                total += int(path.read_text())
        return total

    def sweep(self, folders: Iterable[Path]) -> None:
        """Remove temporary files of killed runs, in these folders and our own.  All groups must be settled.

        Before that another process may be writing; files younger than this run may belong to another one.
        """
        own = (self.state / name for name in ("groups", "shards", "spool"))
        for folder in {self.folder, self.state, *own, *folders}:
            for path in folder.glob(".t2i-*.tmp"):
                with suppress(OSError):
                    if path.stat().st_mtime_ns < self._begun:
                        path.unlink()

    @contextmanager
    def manifest(self) -> Iterator[Callable[[Line], None]]:
        """Yield a function that takes the manifest's lines; the file appears, complete, when the context ends."""
        temporary = self.folder / f".t2i-{secrets.token_hex(8)}.tmp"
        try:
            with temporary.open("x", encoding="utf-8") as file:
                yield lambda line: _write_line(file, line)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / "manifest.jsonl")
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, group: JobGroup) -> Path:
        return self.state / "groups" / f"{group.name}.jsonl"

    def _read(self, group: JobGroup) -> tuple[dict[int, Line], bool]:
        """Return the recorded lines of these images, and whether they were written in this run."""
        try:
            path = self._path(group)
            text, written = path.read_text(encoding="utf-8"), path.stat().st_mtime_ns
        except OSError:
            return self._packed(group)
        found = dict(_lines(text))
        kept = {item.index: found[item.index] for item in group.items if _fits(found.get(item.index), item)}
        return kept, written >= self._begun

    def _packed(self, group: JobGroup) -> tuple[dict[int, Line], bool]:
        """Return what `_read` does, for a group without a record of its own: from that of its shard."""
        number = self.shards.number(group.items[0].index) if self.shards else 0
        if self.shards is None or (state := self.shards.state(number)) is None:
            return {}, False
        lines = ((item, state.line(item.index)) for item in group.items)
        kept = {item.index: line for item, line in lines if line is not None and _fits(line, item)}
        return kept, self.shards.written(number) >= self._begun

    def _inspect(self, item: Item) -> Line | None:
        """Return the line of an image that no record holds, from its file; None where it is missing or incomplete.

        A file that holds another image makes a line that failed: nothing is overwritten.
        """
        if not os.path.lexists(item.path):
            return None
        try:
            decode(item.path)
            found = recipe.read(item.path).recipe
        except ImageError:
            return None
        if found is None or (found.prompt, found.seed) != (item.task.job.prompt, item.task.job.seed):
            return self.line(item, "failed", error=atomic.already_exists(item.path).message)
        return self.line(item, "done", found.image_hash)


def _lines(text: str) -> Iterator[tuple[int, Line]]:
    """Yield complete lines by index; those that a failing disk has damaged are skipped, and drawn again."""
    for line in text.splitlines():
        with suppress(ValueError, TypeError, KeyError):
            record = json.loads(line)
            yield record["index"], record


def _write_line(file: TextIO, line: Line) -> None:
    file.write(json.dumps(line) + "\n")


def _fits(line: Line | None, item: Item) -> bool:
    return line is not None and line.get("job") == item.job and {"status", "bytes", "file"} <= line.keys()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _list(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))
