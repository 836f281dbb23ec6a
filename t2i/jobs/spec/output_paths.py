"""Names of output files: safe on every system, inside the folder that was named, and not taken yet."""

from __future__ import annotations

import datetime
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from t2i.atomic import already_exists
from t2i.errors import UsageError

SUFFIXES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
FIELDS = ("date", "index", "seed", "model", "prompt", "job")
MAX_NAME_BYTES = 255  # of one file or folder name, on every common file system
MAX_PROMPT_BYTES = 100  # of the prompt within a name
MAX_MODEL_BYTES = 60
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.IGNORECASE)  # devices, on Windows


def safe_name(text: str, limit: int = MAX_PROMPT_BYTES) -> str:
    """Return a piece of a file name made from any text: at most `limit` bytes of UTF-8, never empty.

    Letters of all scripts stay; separators, what Windows forbids, control and direction marks go; no leading dot or
    hyphen, no trailing dot, and no name of a Windows device.
    """
    text = unicodedata.normalize("NFC", text)
    kept = "".join(_character(character) for character in text)
    name = re.sub(r"-{2,}", "-", kept).strip("-._ ")
    name = name.encode("utf-8")[:limit].decode("utf-8", errors="ignore").rstrip("-._ ")
    if RESERVED.match(name):
        name = f"_{name}"[:limit]
    return name or "untitled"


def _character(character: str) -> str:
    if character.isspace() or character in "/\\:*?\"<>|{}'`$&;!%#~^()[]" or ord(character) == 0:
        return "-"
    return "" if unicodedata.category(character)[0] == "C" else character


class Outputs:
    """The names of the images of one run.

    target: the option `output` (None: `outputs/DATE/INDEX-SEED.png`).  format: png, jpg, webp or None.
    count: how many images will be drawn; several in one named file get `-1`, `-2`, ...
    """

    def __init__(
        self, target: str | None, *, format: str | None = None, overwrite: bool = False, model: str = "", count: int = 1
    ) -> None:
        """Split the target into folder and pattern.

        Raises UsageError for an unknown field, suffix or format, and a folder that cannot be written.
        """
        self.overwrite = overwrite
        self.root, self.template = _split(target, format)
        self.stem = Path(self.template).stem
        if count > 1 and not _fields(self.template):
            self.template = f"{self.stem}-{{number}}{Path(self.template).suffix}"
        self._constant = {
            "date": datetime.date.today().isoformat(),
            "model": safe_name(model, MAX_MODEL_BYTES),
        }
        self._next: dict[Path, int] = {}
        self._used: set[Path] = set()
        self._drawn = 0
        self._inside: Path | None = None  # the folder that was found to be within the root, last
        _check_writable(self.root)

    def candidates(self, prompt: str, seed: int, model: str = "") -> Iterator[Path]:
        """Yield paths for the next image, best first: the caller takes the first that it can create.

        With {index} in the pattern there is always another; else there is one, which `save` may find taken.
        """
        self._drawn += 1
        values = {
            **self._constant,
            "seed": str(seed),
            "prompt": safe_name(prompt),
            "number": str(self._drawn),
            "job": "",
        }
        if model:
            values["model"] = safe_name(model, MAX_MODEL_BYTES)
        if not self.counted:
            yield self._unused(self._path(values | {"index": ""}))
            return
        folder = self._path(values | {"index": "0"}).parent
        while True:
            self._next[folder] = self._next.get(folder) or _first_free(folder, Path(self.template).name)
            index = self._next[folder]
            self._next[folder] = index + 1  # before the caller takes this one and leaves
            yield self._path(values | {"index": f"{index:05d}"})

    def place(self, **values: str) -> Path:
        """Return the path of an image of a long batch: a function of these fields, whether the file exists or not.

        values: of all fields except {date}; {number} is the image's place among those of its row.
        """
        for field, limit in (("prompt", MAX_PROMPT_BYTES), ("model", MAX_MODEL_BYTES)):
            if f"{{{field}}}" in self.template:
                values[field] = safe_name(values[field], limit)
        return self._path(self._constant | values)

    @property
    def counted(self) -> bool:
        """Return whether names hold an {index}, so that there is always a free one."""
        return "index" in _fields(self.template)

    def check(self, images: Sequence[tuple[str, int] | tuple[str, int, str]], grid: bool = False) -> None:
        """Check, before anything is drawn, that the files of these images (prompt, seed, model) do not exist.

        grid: check the sheet too.  Raises UsageError.
        """
        if "job" in _fields(self.template):
            raise UsageError("`output`: {job} is for batches only", "give `prompt_file=FILE`, without `grid`")
        if self.counted:
            self._path(dict.fromkeys((*FIELDS, "number"), "0") | self._constant)
        else:
            paths = [next(self.candidates(*image)) for image in images]
            for path in [*paths, self.grid_path(paths[0])] if grid else paths:
                if not self.overwrite and os.path.lexists(path):
                    raise already_exists(path)
        self._used.clear()
        self._drawn = 0

    def grid_path(self, first: Path) -> Path:
        """Return the path of the sheet of all images, next to the first of them."""
        fixed = set(_fields(self.template)) <= {"number"}
        return first.with_name(f"{self.stem if fixed else first.stem}-grid{first.suffix}")

    def _path(self, values: dict[str, str]) -> Path:
        """Return the pattern with its fields filled in.  Raises UsageError where the path leaves the folder."""
        relative = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], self.template)
        for part in Path(relative).parts:
            size = len(os.fsencode(part))
            if size > MAX_NAME_BYTES:
                raise UsageError(f"output name of {size} bytes, allowed are {MAX_NAME_BYTES}", "shorten `output`")
        path = self.root / relative
        if path.parent != self._inside:
            # Text of prompts and rows may come from someone else, and a folder may be a link elsewhere.
            root, parent = self.root.resolve(), path.parent.resolve()
            if not parent.is_relative_to(root):
                raise UsageError(f"{path.parent} leads out of {self.root} (to {parent})", "choose another `output`")
            self._inside = path.parent
        return path

    def _unused(self, path: Path) -> Path:
        """Return the path, or one with `-2`, `-3` ... if this run has used the name already."""
        number, free = 1, path
        while free in self._used:
            number += 1
            free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        self._used.add(free)
        return free


def _split(target: str | None, format: str | None) -> tuple[Path, str]:
    """Return the folder that the user named, and the pattern below it, which ends in a known suffix."""
    suffix = f".{format or 'png'}"
    if target is None:
        return Path("outputs"), "{date}/{index}-{seed}" + suffix
    if not target or target == "-" or "\0" in target:
        raise UsageError(f"`output`: {target!r} is not a file, folder/ or pattern")
    target = os.path.expanduser(target)  # a shell leaves the tilde in an argument like --output=~/x
    if target.endswith(("/", os.sep)) or os.path.isdir(target):
        target = os.path.join(target, "{index}-{seed}" + suffix)
    unknown = [name for name in _fields(target) if name not in FIELDS]
    if unknown or re.sub(r"\{\w+\}", "", target).count("{"):
        what = f"field {{{unknown[0]}}}" if unknown else "brace"
        raise UsageError(f"`output`: unknown {what}", f"fields: {' '.join(f'{{{name}}}' for name in FIELDS)}")
    target = _with_suffix(target, format)
    parts = Path(target).parts
    literal = next((k for k, part in enumerate(parts[:-1]) if "{" in part), len(parts) - 1)
    return Path(*parts[:literal]), "/".join(parts[literal:])


def _with_suffix(target: str, format: str | None) -> str:
    suffix = os.path.splitext(target)[1].lower()
    if suffix in SUFFIXES:
        if format and SUFFIXES[suffix] != format:
            raise UsageError(f"`output={os.path.basename(target)}` and `format={format}` do not agree")
        return target
    if re.fullmatch(r"\.[a-z]{2,5}", suffix):
        raise UsageError(f"`output`: cannot write {suffix!r}", f"suffixes: {', '.join(SUFFIXES)}")
    return f"{target}.{format or 'png'}"


def _fields(template: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", template)


def _first_free(folder: Path, name: str) -> int:
    """Return one more than the highest index among the files of this folder that match the pattern."""
    pieces = re.split(r"(\{\w+\})", name.rpartition(".")[0])
    pattern = "".join(
        r"(\d+)" if piece == "{index}" else ".*" if piece.startswith("{") else re.escape(piece) for piece in pieces
    )
    try:
        found = (re.match(pattern, entry.name) for entry in os.scandir(folder))
        return 1 + max((int(match[1]) for match in found if match and len(match[1]) < 10), default=0)
    except OSError:
        return 1


def _check_writable(folder: Path) -> None:
    """Check that files can be created in a folder, now rather than after an hour of drawing.  Raises UsageError."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write into {folder}", "choose another `output`")
