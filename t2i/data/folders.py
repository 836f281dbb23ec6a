"""Image folders: what lies in them, what metadata files and file names say of it, and what may not be followed."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from t2i.data.rows import Row, Rows
from t2i.errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv")
MAX_TEXT = 64_000  # bytes of a caption file


def folder_rows(root: Path) -> Rows:
    """The images below a folder, in the order of their sorted paths; hidden and stray files are ignored.

    Columns: `label`, the name of the sub-folder an image lies in ("" in `root` itself); `text`, the content of
    `image.txt` beside `image.png`; and whatever a `metadata.jsonl` or `metadata.csv` in the folder or in a sub-folder
    says of the `file_name`s it names, which wins.  The values of `label` are its classes, sorted.
    Nothing may lead out of the folder, and no link may lead in circles.  JobList takes as long as there are files; what
    is held is the metadata, and the entries of one sub-folder at a time.
    Raises DataError.
    """
    real, suffixes = root.resolve(), _suffixes()
    described: dict[Path, dict[str, str]] = {}
    for path in _walk(root, real, ()):
        if path.name in METADATA:
            _add_metadata(path, root, described)
    # Walked again, not remembered: the paths of a million files are larger than what is said of them.
    count, named, labels, captions = 0, 0, set(), False
    for path in _walk(root, real, ()):
        if path.suffix.lower() in suffixes:
            columns = described.get(path)
            labels.add((columns or {}).get("label", _label(path, root)))
            named += columns is not None
            count += 1
            captions = captions or path.with_suffix(".txt").is_file()
    if not count:
        raise _no_images(root, real, suffixes)
    names = tuple(sorted(labels - {""}))
    found = dict.fromkeys(["label"] * bool(names) + ["text"] * captions)
    found |= dict.fromkeys(name for columns in described.values() for name in columns)
    classes = {"label": names} if names else {}
    return Rows(count + len(described) - named, _rows(root, described), classes, tuple(found))


def _rows(root: Path, described: dict[Path, dict[str, str]]) -> Iterator[Row]:
    suffixes, missing = _suffixes(), dict.fromkeys(described)
    for path in _walk(root, root.resolve(), ()):
        if path.suffix.lower() not in suffixes:
            continue
        columns = {"label": _label(path, root)}
        beside = path.with_suffix(".txt")
        if beside.is_file():
            columns["text"] = _read_text(beside, root)
        missing.pop(path, None)
        yield Row(str(path), path, columns | described.get(path, {}))
    for path in missing:
        yield Row(str(path), None, described[path], "named in the metadata, but no image is there")


def _label(path: Path, root: Path) -> str:
    return path.parent.name if path.parent != root else ""


def _no_images(root: Path, real: Path, suffixes: frozenset[str]) -> DataError:
    tables = sorted(path for path in _walk(root, real, ()) if path.suffix.lower() == ".parquet")
    hint = f"for its parquet files write {tables[0].parent}/*.parquet" if tables else None
    return DataError(f"{root}: no images in this folder (looked for {' '.join(sorted(suffixes))})", hint)


def _walk(folder: Path, root: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Files below a folder, sorted.  root, above: resolved; above holds the folders on the way here."""
    real = _resolve(folder, root)
    if real in above:
        raise DataError(f"{folder} is a link that leads back to {real}: a symlink loop", "remove the link")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as e:
        raise DataError(f"cannot read folder {folder}: {e.strerror}") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        path = folder / entry.name
        if entry.is_symlink():
            _resolve(path, root)
        if entry.is_dir():
            yield from _walk(path, root, (*above, real))
        elif entry.is_file():  # no pipes, no sockets: reading one would wait for ever
            yield path


def _resolve(path: Path, root: Path) -> Path:
    """Where a path really leads.  Raises DataError: in circles, nowhere, or out of root (resolved)."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as e:  # RuntimeError: a loop, before Python 3.13
        raise DataError(f"{path} is a broken link or a symlink loop: {e}", "remove the link") from None
    if not real.is_relative_to(root):
        raise DataError(f"{path} is a link that leads out of the folder, to {real}", "copy the files into the folder")
    return real


def _add_metadata(path: Path, root: Path, described: dict[Path, dict[str, str]]) -> None:
    """Read one metadata file; its file names are relative to its own folder."""
    for number, record in _records(path):
        where = f"{path} line {number}"
        if not isinstance(record, dict) or not isinstance(name := record.get("file_name"), str) or not name:
            raise DataError(f"{where}: no file_name", "each line names its image as file_name, relative to the file")
        image = _inside(path.parent, name, root, where)
        if image in described:
            raise DataError(f"{where}: {name!r} is described twice")
        plain = {k: v for k, v in record.items() if isinstance(k, str) and k != "file_name"}
        described[image] = {
            key: "" if value is None else str(value)
            for key, value in plain.items()
            if value is None or isinstance(value, str | int | float)
        }


def _records(path: Path) -> Iterator[tuple[int, object]]:
    """(line number, record) of each line of a metadata file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    yield reader.line_num, row
            else:
                yield from ((n, json.loads(line)) for n, line in enumerate(file, 1) if line.strip())
    except (OSError, ValueError, csv.Error, RecursionError) as e:
        raise DataError(f"cannot read {path}: {e}") from None


def _inside(folder: Path, name: str, root: Path, where: str) -> Path:
    """The file a metadata line names.  Raises DataError where it is not below the folder."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    if ".." in parts or "\0" in name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise DataError(f"{where}: file_name {name!r} leads out of the folder; it must be a plain relative path")
    path = folder / PurePosixPath(name)
    if path.exists() or path.is_symlink():
        _resolve(path, root.resolve())
    return path


def _read_text(path: Path, root: Path) -> str:
    _resolve(path, root.resolve())
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT + 1)
        if len(data) > MAX_TEXT:
            raise DataError(f"{path}: longer than {MAX_TEXT} bytes; a caption file holds one caption")
        return " ".join(data.decode("utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot read caption {path}: {e}") from None


def _suffixes() -> frozenset[str]:
    """File name endings of the formats that `images.decode` accepts."""
    from PIL import Image

    from t2i.imaging.images import FORMATS

    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)
