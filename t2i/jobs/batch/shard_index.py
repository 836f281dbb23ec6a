"""The shards of a long batch: which image belongs to which, and their records, in `.t2i-batch` of its folder.

spool/                 images of shards that are not complete yet
shards/000000.json     what a shard holds: its size, its hash and its lines of the manifest

A record is written before its shard gets its final name, and until then describes both the old shard and the new one.
So a kill in between leaves a shard that is recorded, and a shard without a record is not ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from t2i import atomic
from t2i.errors import DataError, UsageError, one_line
from t2i.jobs.batch.shard_formats import FORMATS, ShardImage

# Of the manifest: index, job, file, prompt, seed, hash, bytes, status; the key within a shard; an error
Line = dict[str, Any]


@dataclass(frozen=True)
class State:
    """A shard as it is or was.  bytes: None for a shard without images, which has no file."""

    bytes: int | None
    sha256: str | None
    lines: list[Line]

    @property
    def images(self) -> list[Line]:
        """Return the lines of the images that it holds."""
        return [line for line in self.lines if line["status"] == "done"]

    def line(self, index: int) -> Line | None:
        """Return the line of image `index` of the list; None where it is not of this shard."""
        at = index - self.lines[0]["index"] if self.lines else -1
        return self.lines[at] if 0 <= at < len(self.lines) else None


class Shards:
    """The shards of a batch and their records.

    folder: of the batch.  kind: of `FORMATS`.  size: images of a shard; image k of the list is in shard k // size.
    """

    def __init__(self, folder: Path, kind: str, size: int) -> None:
        self.folder = folder
        self.format = FORMATS[kind]
        self.size = size
        self.spool = folder / ".t2i-batch" / "spool"
        self._records = folder / ".t2i-batch" / "shards"
        self._parse = lru_cache(maxsize=2)(_parse)

    def number(self, index: int) -> int:
        """Return the number of the shard that image `index` belongs to."""
        return index // self.size

    def path(self, number: int) -> Path:
        """Return the path of a shard."""
        return self.folder / self.format.name.format(number)

    def state(self, number: int) -> State | None:
        """Return the state of the file of a shard; None where it is missing, incomplete, or not ours."""
        size, states = _size(self.path(number)), self._states(number)
        found = [state for state in states if state.bytes == size]
        if len(found) > 1 and size is not None:  # two of one size, after a kill at the very moment of renaming
            digest = atomic.file_hash(self.path(number))
            found = [state for state in found if state.sha256 == digest]
        return found[0] if found else None

    def written(self, number: int) -> int:
        """Return when the record of a shard was written, in nanoseconds."""
        return self._record(number).stat().st_mtime_ns

    def check(self, numbers: Iterable[int]) -> None:
        """Check that no shard would overwrite a file that is not ours.  Raises UsageError."""
        for number in numbers:
            path = self.path(number)
            if not os.path.lexists(path) or self.state(number) is not None:
                continue
            if not self._states(number):
                raise UsageError(f"{path} exists already, and not from this batch", "choose another `output`")
            if self.format.is_whole(path):
                raise UsageError(f"{path} has been changed since it was written", "move it away; it is packed again")

    def leftover(self, images: int) -> list[Path]:
        """Return shards that an earlier, longer list has left behind.  images: number in the list as it is."""
        numbers = sorted(int(path.stem) for path in self._records.glob("*.json"))
        return [self.path(number) for number in numbers if number * self.size >= images and self.path(number).exists()]

    def pack(self, number: int, made: Sequence[tuple[Path, Line]]) -> bool:
        """Write a shard of these images; return whether the file is new.  Its claim must be ours.

        made: (where the image was spooled, its line) in the order of the list.  Images that have left the spool are
        taken from the shard as it is.
        Raises DataError where that cannot be read, UsageError and T2IError as `atomic.write` does.
        """
        before = self.state(number)
        after = State(None, None, [line for _, line in made])
        if before is not None and before.images == after.images:
            self._write_record(number, [State(before.bytes, before.sha256, after.lines)])
            return False
        self.check([number])
        if not after.images:
            self._write_record(number, [after, *([before] if before else [])])
            self.path(number).unlink(missing_ok=True)
            self._write_record(number, [after])
            return False
        temporary = self._record(number).with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                self.format.write(file, self._images(number, made, before))
                file.flush()
                os.fsync(file.fileno())
            after = State(temporary.stat().st_size, atomic.file_hash(temporary), after.lines)
            new = not self._states(number)
            self._write_record(number, [after, *([before] if before else [])])
            _give_name(temporary, self.path(number), new)
        except FileExistsError:
            raise atomic.already_exists(self.path(number)) from None
        except OSError as e:
            raise atomic.not_written(self.path(number), e) from None
        finally:
            temporary.unlink(missing_ok=True)
        self._write_record(number, [after])
        return True

    def _images(self, number: int, made: Sequence[tuple[Path, Line]], before: State | None) -> Iterator[ShardImage]:
        """Yield the images of a shard: from the spool, else from the shard as it was, which has the same order."""
        old = self._read(number) if before else iter(())
        for path, line in made:
            if line["status"] != "done":
                continue
            data: bytes | None
            if _size(path) == line["bytes"]:
                data = path.read_bytes()
            else:
                data = next((data for key, data in old if key == line["key"]), None)
            if data is None:
                raise _unreadable(self.path(number), f"no {line['key']}")
            yield ShardImage(line["key"], path.suffix, data, line["prompt"])

    def _read(self, number: int) -> Iterator[tuple[str, bytes]]:
        path = self.path(number)
        try:
            yield from self.format.read(path)
        except Exception as e:  # a damaged file: pyarrow and tarfile raise a dozen kinds
            raise _unreadable(path, one_line(e)) from None

    def _record(self, number: int) -> Path:
        return self._records / f"{number:06d}.json"

    def _states(self, number: int) -> list[State]:
        """Return the states that a shard may be in, the newest first; none where it has no record."""
        try:
            found = self._record(number).stat()
        except OSError:
            return []
        return self._parse(self._record(number), found.st_mtime_ns, found.st_ino, found.st_size)

    def _write_record(self, number: int, states: Sequence[State]) -> None:
        atomic.write(json.dumps([asdict(state) for state in states]).encode(), self._record(number), overwrite=True)


def _parse(path: Path, *_: int) -> list[State]:
    """Read a record; one that a failing disk has damaged counts as missing."""
    with suppress(OSError, ValueError, TypeError):
        return [State(**state) for state in json.loads(path.read_text(encoding="utf-8"))]
    return []


def _give_name(temporary: Path, path: Path, new: bool) -> None:
    """Move a finished file to its path.  new: there is none of ours, so one that exists must not be overwritten."""
    (atomic.publish if new else os.replace)(temporary, path)


def _unreadable(path: Path, what: str) -> DataError:
    return DataError(f"cannot read {path}: {what}", "delete it and run the same command, which packs it again")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
