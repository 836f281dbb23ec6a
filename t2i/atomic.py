"""Atomic file writing: a file exists complete or not at all, and nothing is overwritten unless asked."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from t2i.errors import T2IError, UsageError


def write(data: bytes, path: Path, *, overwrite: bool = False) -> None:
    """Put bytes into a file atomically; see `whole`."""
    with whole(path, overwrite=overwrite) as file:
        file.write(data)


@contextmanager
def whole(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write to, which gets its name when the block ends without an error.

    It is a temporary file in the same folder, synced to disk and then linked or renamed. Missing folders are created;
    the mode follows the umask. After a failure nothing is left behind, and an existing file stays as it was.
    Raises UsageError: the file exists (unless overwrite; safe against other processes), or the folder is not writable.
    Raises T2IError: the disk fails or is full.
    """
    temporary = path.parent / f".t2i-{secrets.token_hex(8)}.tmp"  # short: the name itself may be as long as allowed
    try:
        _make_folder(path.parent)
        with open(temporary, "xb") as file:  # the mode follows the umask
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            publish(temporary, path)
    except FileExistsError:
        raise already_exists(path) from None
    except OSError as e:
        raise not_written(path, e) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """Return the sha256 of a file, in hex.  Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # said of a file that stands where the folder should be
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder") from None


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name; both are in one filesystem.  The temporary name may remain.

    A link, unlike a rename, fails where the name is taken, even by a process that took it a moment ago.
    Raises FileExistsError.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this filesystem: claim the name with an empty file, then rename over it
        with open(path, "xb"):
            pass
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def not_written(path: Path, e: OSError) -> T2IError:
    """Return the error for a file that could not be written: a UsageError, unless the disk fails or is full."""
    message = f"cannot write {path}: {e.strerror or e}"
    if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return T2IError(message, "free some space, then run the same command again")
    return UsageError(message, "choose another place: `output`")


def already_exists(path: Path) -> UsageError:
    """Return the error for a file that would have been overwritten."""
    return UsageError(f"{path} exists already", "choose another name, or set `overwrite`")
