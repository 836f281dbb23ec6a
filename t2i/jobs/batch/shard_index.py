"""The shards of a long batch: which image goes into which, and what is known of them, in `.t2i-batch` of its folder.

spool/                 images of shards that are not complete yet
shards/000000.json     what a shard holds: its size, its hash and its lines of the manifest

A record is written before its shard gets its name, and tells of both until it has it: the shard that was there and the
one that comes. So a kill in between leaves a shard that is known, and a shard that nobody knows is not ours.
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
from t2i.jobs.batch.shard_formats import KINDS, ShardImage

# Of the manifest: index, job, file, prompt, seed, hash, bytes, status; the key within a shard; an error
Line = dict[str, Any]


@dataclass(frozen=True)
class State:
    """A shard as it is or was.  bytes: None for one that no image has been drawn for, and so no file."""

    bytes: int | None
    sha256: str | None
    lines: list[Line]

    @property
    def pictures(self) -> list[Line]:
        """The lines of the images that are in it."""
        return [line for line in self.lines if line["status"] == "done"]

    def line(self, index: int) -> Line | None:
        """What is known of image `index` of the list."""
        at = index - self.lines[0]["index"] if self.lines else -1
        return self.lines[at] if 0 <= at < len(self.lines) else None


class Shards:
    """folder: of the batch.  kind: of `KINDS`.  size: images of a shard; image k of the list is in shard k // size."""

    def __init__(self, folder: Path, kind: str, size: int) -> None:
        self.folder = folder
        self.kind = KINDS[kind]
        self.size = size
        self.spool = folder / ".t2i-batch" / "spool"
        self._records = folder / ".t2i-batch" / "shards"
        self._parse = lru_cache(maxsize=2)(_parse)

    def number(self, index: int) -> int:
        """Of the shard of an image."""
        return index // self.size

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / self.kind.name.format(number)

    def state(self, number: int) -> State | None:
        """What is in the file of a shard; None where it is not there, not whole, or not ours."""
        size, states = _size(self.path(number)), self._states(number)
        found = [state for state in states if state.bytes == size]
        if len(found) > 1 and size is not None:  # two of one size, after a kill at the very moment of renaming
            digest = atomic.file_hash(self.path(number))
            found = [state for state in found if state.sha256 == digest]
        return found[0] if found else None

    def written(self, number: int) -> int:
        """When its record was written, in nanoseconds."""
        return self._record(number).stat().st_mtime_ns

    def check(self, numbers: Iterable[int]) -> None:
        """Raises UsageError where the file of a shard is another's: nothing is overwritten."""
        for number in numbers:
            path = self.path(number)
            if not os.path.lexists(path) or self.state(number) is not None:
                continue
            if not self._states(number):
                raise UsageError(f"{path} exists already, and not from this batch", "-o another folder/")
            if self.kind.is_whole(path):
                raise UsageError(f"{path} has been changed since it was written", "move it away: it is made again")

    def beyond(self, images: int) -> list[Path]:
        """Shards that an earlier, longer list has left behind.  images: of the list as it is."""
        numbers = sorted(int(path.stem) for path in self._records.glob("*.json"))
        return [self.path(number) for number in numbers if number * self.size >= images and self.path(number).exists()]

    def pack(self, number: int, made: Sequence[tuple[Path, Line]]) -> bool:
        """Write a shard of these images; returns whether the file is new.  Its claim must be ours.

        made: (where the image was spooled, its line) in the order of the list.  What has left the spool already is
        taken from the shard as it is.
        Raises DataError where that cannot be read, UsageError and T2IError as `files.write` does.
        """
        before = self.state(number)
        after = State(None, None, [line for _, line in made])
        if before is not None and before.pictures == after.pictures:
            self._write_record(number, [State(before.bytes, before.sha256, after.lines)])
            return False
        self.check([number])
        if not after.pictures:
            self._write_record(number, [after, *([before] if before else [])])
            self.path(number).unlink(missing_ok=True)
            self._write_record(number, [after])
            return False
        temporary = self._record(number).with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                self.kind.write(file, self._pictures(number, made, before))
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

    def _pictures(self, number: int, made: Sequence[tuple[Path, Line]], before: State | None) -> Iterator[ShardImage]:
        """The pictures of a shard: from the spool, else from the shard as it was, which has the same order."""
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
            yield from self.kind.read(path)
        except Exception as e:  # a damaged file: pyarrow and tarfile raise a dozen kinds
            raise _unreadable(path, one_line(e)) from None

    def _record(self, number: int) -> Path:
        return self._records / f"{number:06d}.json"

    def _states(self, number: int) -> list[State]:
        """The states that a shard may be in, the newest first; none where nothing is known."""
        try:
            found = self._record(number).stat()
        except OSError:
            return []
        return self._parse(self._record(number), found.st_mtime_ns, found.st_ino, found.st_size)

    def _write_record(self, number: int, states: Sequence[State]) -> None:
        atomic.write(json.dumps([asdict(state) for state in states]).encode(), self._record(number), overwrite=True)


def _parse(path: Path, *_: int) -> list[State]:
    """What a failing disk has torn is as if it were not there."""
    with suppress(OSError, ValueError, TypeError):
        return [State(**state) for state in json.loads(path.read_text(encoding="utf-8"))]
    return []


def _give_name(temporary: Path, path: Path, new: bool) -> None:
    """new: nothing of ours is at the place, and nothing of another's is overwritten."""
    (atomic.publish if new else os.replace)(temporary, path)


def _unreadable(path: Path, what: str) -> DataError:
    return DataError(f"cannot read {path}: {what}", "delete it, and the same command makes it again")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
