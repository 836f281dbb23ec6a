"""One option of a command, and a record of options, from which command line, rows and the Python API are derived.

    class SampleOptions(Options):
        steps: Annotated[int | None, Field(ge=1, le=1000), Option(("--steps",), "Sampling steps.", HOW)] = None

    SampleOptions.read({"steps": "20"})     # converted and checked; UsageError names field, value and range
    SampleOptions.table()["steps"].option   # its flags, help and so on

Nothing here imports more than pydantic: shell completion and help read these modules.
"""

from __future__ import annotations

import difflib
import operator
import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict

from t2i.errors import UsageError

BOOLEANS = ("bool", "bool_")  # Python's and numpy's: an integer to Python, and meant as none
PATHS = ("PATH", "FILE", "FOLDER", "MODEL")  # in the metavar of a text option that may be given as a path
EXACT = 2**53  # below it every whole number has a float of its own

# What an option applies to. source: it names prompts. row: each image may have its own. run: all images of a run
# share it. machine: like run; how images are computed, not which. output: what is printed.
Scope = Literal["source", "row", "run", "machine", "output"]
# What it is passed on to. settings: of one image (`TextToImage.settings`). inputs: images that drawing starts from.
# model: which pipeline draws, in what. Nothing: the job that runs reads it itself.
Target = Literal["settings", "inputs", "model", ""]


@dataclass(frozen=True)
class Option:
    """Metadata of an option, in addition to its type, default and range.

    flags: on the command line; "--a/--no-a" is a switch with three states.
    help: for the command line's help page.  metavar: for its value.
    heading: its section there.
    row: its name in a row of a prompt file, where that is not the field's.  aliases: other names there and in Python.
    many: it may be repeated on the command line.
    identity: whether it is part of a batch's identity: another value, another batch; "set": only if not the default.
    recorded: whether an image's record keeps it under its own name, from which replay restores it.
    a1111: its key in A1111's text, for writing and reading.  a1111_unset: the value there that means "not set".
    environment: the environment variable that sets its default.
    """

    flags: tuple[str, ...]
    help: str
    heading: str
    scope: Scope = "run"
    target: Target = ""
    metavar: str | None = None
    row: str = ""
    aliases: tuple[str, ...] = ()
    many: bool = False
    identity: Literal["", "always", "set"] = ""
    recorded: bool = False
    a1111: str = ""
    a1111_unset: str = ""
    environment: str = ""


@dataclass(frozen=True)
class Known:
    """One option: its name, the contents of its field, and how values of its type are read."""

    name: str
    option: Option
    kind: type  # of one value: int, float, bool, str or Path; object: anything
    choices: tuple[str, ...]
    default: Any
    low: float | None
    high: float | None

    @property
    def row_name(self) -> str:
        """Return its name in a row of a prompt file."""
        return self.option.row or self.name

    @property
    def words(self) -> str:
        """Return its name in a message."""
        return self.row_name.replace("_", " ") if self.name in ("negative_prompt", "batch_size") else self.row_name

    def convert(self, value: Any) -> Any:
        """Convert one value, or several of an option that may be repeated, to its Python type.

        Text is parsed, since the cells of a table are text.
        Raises UsageError: another type, out of range, none of the choices.
        """
        if not self.option.many:
            return self._one(value)
        several = value if isinstance(value, list | tuple | range) else [value]
        return tuple(self._one(one) for one in several)

    def _one(self, value: Any) -> Any:
        if self.choices:
            if isinstance(value, bool) or str(value) not in self.choices:
                raise UsageError(f"{self.words}: got {str(value)[:40]!r}, allowed {', '.join(self.choices)}")
            return str(value)
        if self.kind is int:
            return self._in_range(self._number(value, int))
        if self.kind is float:
            return self._in_range(self._number(value, float))
        if self.kind is bool:
            return self._flag(value)
        if self.kind is Path:
            if not isinstance(value, str | os.PathLike):
                raise UsageError(f"{self.words}: got {str(value)[:40]!r}, expected a path")
            return Path(value)
        if self.kind is str and not isinstance(value, str):
            if isinstance(value, os.PathLike) and any(word in (self.option.metavar or "") for word in PATHS):
                return os.fspath(value)
            raise UsageError(f"{self.words}: got {str(value)[:40]!r}, expected text")
        return value

    def _number(self, value: Any, kind: type[int] | type[float]) -> Any:
        try:
            if type(value).__name__ in BOOLEANS:
                raise ValueError
            return float(value) if kind is float else _whole(value)
        except (TypeError, ValueError, OverflowError):
            expected = "a whole number" if kind is int else "a number"
            raise UsageError(f"{self.words}: got {str(value)[:40]!r}, expected {expected}") from None

    def _flag(self, value: Any) -> bool:
        if type(value).__name__ in BOOLEANS:
            return bool(value)
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        raise UsageError(f"{self.words}: got {str(value)[:40]!r}, allowed true, false")

    def _in_range(self, value: Any) -> Any:
        low, high = self.low, self.high
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            what = {"num_images": "images per prompt", "batch_size": "batch size"}.get(self.name, self.name)
            unit = " pixels" if self.name in ("width", "height") else ""
            note = "; 1 or less turns it off" if self.name == "guidance" else ""
            raise UsageError(f"{what}: got {value}, allowed {low:g} to {high:.17g}{unit}{note}")
        return value


def _whole(value: Any) -> int:
    """Return a whole number; 2.0 is one, as pandas writes it.  Raises ValueError and TypeError for anything else."""
    if isinstance(value, str) or not hasattr(value, "__index__"):
        try:
            return int(value) if isinstance(value, str) else _whole(str(float(value)))
        except ValueError:
            number = float(value)
        if not number.is_integer() or abs(number) >= EXACT:
            raise ValueError
        return int(number)
    return operator.index(value)


class Options(BaseModel):
    """A record of options, as given: None stands for a default that is chosen later.

    Create it with `read`, which knows aliases, converts text and raises UsageError; values are not checked again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Build the record from values by name or alias; a `size` becomes width and height.

        Raises UsageError: an unknown option (suggesting the nearest name), a value of another type, or out of range.
        """
        table = cls.table()
        read: dict[str, Any] = {}
        for given, value in values.items():
            known = cls.find(given) if isinstance(given, str) else None
            if known is None:
                raise unknown_option(given, tuple(table))
            if known.name in read:
                raise UsageError(f"{known.name} is given twice ({given!r})")
            read[known.name] = None if value is None else known.convert(value)
        if "size" in read:
            sides = read_size(read.pop("size"), read.get("width"), read.get("height"))
            read |= {name: table[name].convert(side) for name, side in zip(("width", "height"), sides, strict=True)}
        said = {name: value for name, value in read.items() if value is not None}
        return cast(Self, cls.model_construct(**said))

    def override(self, values: Mapping[str, Any]) -> Self:
        """Return these options with some replaced; the values are not checked."""
        return self.model_copy(update=dict(values))

    def changed(self, name: str) -> bool:
        """Return whether an option differs from its default."""
        return bool(getattr(self, name) != self.table()[name].default)

    @classmethod
    def table(cls) -> dict[str, Known]:
        """Return all options of the record by name, in its order."""
        return _table(cls)

    @classmethod
    def find(cls, name: str) -> Known | None:
        """Look an option up by its name, its name in rows, or an alias."""
        return _by_name(cls).get(name)


@cache
def _table(record: type[Options]) -> dict[str, Known]:
    return {name: _describe(record, name) for name in record.model_fields}


@cache
def _by_name(record: type[Options]) -> dict[str, Known]:
    return {
        name: known for known in record.table().values() for name in (known.name, known.row_name, *known.option.aliases)
    }


def _describe(record: type[Options], name: str) -> Known:
    """Read one field of the record."""
    field = record.model_fields[name]
    option = next(one for one in field.metadata if isinstance(one, Option))
    bounds = {type(one).__name__: one for one in field.metadata}
    low, high = bounds.get("Ge"), bounds.get("Le")
    kind: Any = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    choices = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()
    kind = str if choices else object if kind is Any else kind
    return Known(
        name,
        option,
        kind,
        choices,
        field.default,
        None if low is None else low.ge,
        None if high is None else high.le,
    )


def unknown_option(given: str, names: tuple[str, ...]) -> UsageError:
    """Return an error that suggests the nearest name for an unknown option."""
    near = difflib.get_close_matches(str(given), names, n=1)
    guess = f", did you mean {near[0]!r}?" if near else ""
    return UsageError(f"unknown option {str(given)[:40]!r}{guess}", f"options: {', '.join(names)}")


def read_size(size: Any, width: int | None = None, height: int | None = None) -> tuple[int | None, int | None]:
    """Return (width, height) of a size "768x512" or "512", or of both given apart.  Raises UsageError."""
    if size is None:
        return width, height
    match = re.fullmatch(r"\s*(\d{1,9})(?:\s*[xX×*]\s*(\d{1,9}))?\s*", str(size))
    if match is None:
        raise UsageError(f"`size`: got {str(size)[:40]!r}, expected WIDTHxHEIGHT, for example 512x512")
    if width is not None or height is not None:
        raise UsageError("give either `size`, or `width` and `height`")
    return int(match[1]), int(match[2] or match[1])
