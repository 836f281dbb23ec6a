"""Claims on work among independent processes: one locked file per piece of work.

The operating system releases a lock when its process ends, however it ends: work claimed by a killed process is free
at once, and no claim has to be declared stale by its age.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Hold the lock of this file, which is created and removed again; yield whether it is ours.

    The folder must exist.  False: another process, or another claim of this one, holds it at this moment.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        if not (_lock(descriptor) and _is_at(descriptor, path)):
            yield False
            return
        try:
            yield True
        finally:
            with suppress(OSError):  # Windows keeps a file that is open
                path.unlink()  # still locked: another process that opened it meanwhile sees that it is gone
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file is still at its path: its last owner may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
