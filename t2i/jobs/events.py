"""Typed events of a running job, which the command line, a server and a notebook each show in their own way.

A notebook, for example:

    for event in run(request):
        match event:
            case Drawn(path=path): print(path)
            case Message(level="warning", text=text): print(text)

Every event is a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i.metadata.recipe import Recipe

Level = Literal["info", "note", "warning", "hint"]
LEVELS: tuple[Level, ...] = ("note", "warning", "hint")


@dataclass(frozen=True)
class Event:
    """Something that happened in a job."""


@dataclass(frozen=True)
class Message(Event):
    """A sentence for the user."""

    text: str
    level: Level = "info"

    def __str__(self) -> str:
        return self.text if self.level == "info" else f"{self.level}: {self.text}"


@dataclass(frozen=True)
class Planned(Event):
    """The images to draw are known, and nothing stands in their way.

    images: all of them.  models: names, in the order in which they are loaded; empty where that is not known yet.
    folder: of a batch.
    """

    images: int
    models: tuple[str, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class Loading(Event):
    """A model is being loaded."""

    model: str


@dataclass(frozen=True)
class StepDone(Event):
    """Denoising went on.  done, total: steps, summed over images; the total grows with each model that is loaded."""

    done: int
    total: int


@dataclass(frozen=True)
class Previewed(Event):
    """A preview was written over the one before."""

    path: Path


@dataclass(frozen=True)
class Drawn(Event):
    """An image is drawn, and saved where the request says so.

    path: its file; None: it was not saved.  verification: of a replay, whether it is the original image.
    """

    path: Path | None
    recipe: Recipe
    image: Image = field(repr=False, compare=False)
    verification: str | None = None


@dataclass(frozen=True)
class Blanked(Event):
    """The model's safety checker blanked an image; no file was written for it.

    image: what the checker left.
    """

    recipe: Recipe
    image: Image = field(repr=False, compare=False)


@dataclass(frozen=True)
class SheetSaved(Event):
    """All images were saved on one sheet."""

    path: Path


@dataclass(frozen=True)
class ShardPacked(Event):
    """A shard of a batch was written."""

    path: Path
    images: int


@dataclass(frozen=True)
class Failed(Event):
    """An image of a batch could not be drawn.  name: its file or key."""

    name: str
    error: str


@dataclass(frozen=True)
class Counted(Event):
    """Images of a batch that are there, drawn by any process or found."""

    done: int
    total: int


@dataclass(frozen=True)
class Done(Event):
    """The job has ended.  images: drawn by this process.  folder: of a batch."""

    images: int
    folder: Path | None = None


Emit = Callable[[Event], None]
Say = Callable[[str], None]


def ignore(_: Event) -> None:
    """Take an event and do nothing."""


def messages(emit: Emit) -> Say:
    """Return a function that emits a line as a message; "warning: ..." and so on give its level."""

    def say(line: str) -> None:
        level, colon, text = line.partition(": ")
        if colon and level in LEVELS:
            emit(Message(text, level))
        else:
            emit(Message(line))

    return say
