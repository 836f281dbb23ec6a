"""One run of `t2i generate`: from what was asked to files, telling on stderr what it does."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.cli.output import Outputs
from t2i.cli.prompts import Prompt, make_jobs
from t2i.errors import PartialFailure, T2IError, UsageError
from t2i.pipelines import limits
from t2i.pipelines.loading import ModelFiles, locate
from t2i.pipelines.settings import Job, Settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i.pipelines.text_to_image import Result, TextToImage
    from t2i.recipe import Recipe

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the user asks for; None: the model's default.  seeds: chosen, none of them -1."""

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    count: int = 1
    negative: str = ""
    model: str = "mini"
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    batch_size: int | None = None
    output: str | None = None
    format: str | None = None
    overwrite: bool = False
    grid: bool = False
    columns: int | None = None
    device: str | None = None
    dtype: str | None = None
    revision: str | None = None
    config: str | None = None
    offline: bool = False
    jobs: list[Job] = field(init=False)

    def __post_init__(self) -> None:
        """Raises UsageError for everything that can be judged without the model."""
        limits.check_image_count(self.count)
        if self.steps is not None:
            limits.check_steps(self.steps)
        if self.guidance is not None:
            limits.check_guidance(self.guidance)
        if self.batch_size is not None:
            limits.check_batch_size(self.batch_size)
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None:
                limits.check_side(name, side)
        limits.check_prompt(self.negative, "negative prompt")
        if self.columns is not None and not self.grid:
            raise UsageError(f"--columns {self.columns} without a sheet to put them on", "add --grid")
        if self.scheduler is not None:
            from t2i.pipelines.schedulers import scheduler_name

            scheduler_name(self.scheduler)
        object.__setattr__(self, "jobs", make_jobs(self.prompts, self.seeds, self.count))


def read_size(size: str | None, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """(width, height) of `--size 768x512` or `--size 512`, or of -W and -H.  Raises UsageError."""
    if size is None:
        return width, height
    match = re.fullmatch(r"\s*(\d{1,9})(?:\s*[xX×*]\s*(\d{1,9}))?\s*", size)
    if match is None:
        raise UsageError(f"--size: got {size[:40]!r}, expected WIDTHxHEIGHT, for example 512x512")
    if width is not None or height is not None:
        raise UsageError("give either --size, or --width and --height")
    return int(match[1]), int(match[2] or match[1])


def draw(request: Request, say: Say, bar: bool = True) -> Iterator[tuple[Path, Recipe | None]]:
    """Draw and save all images; yields each path as soon as the file is there (the sheet of all has no recipe).

    say: takes a line for the user.  bar: show progress on stderr, if that is a terminal.
    Raises T2IError; PartialFailure where images had been written before.
    """
    files = locate(request.model, revision=request.revision, offline=request.offline, config=request.config)
    outputs = Outputs(
        request.output,
        format=request.format,
        overwrite=request.overwrite,
        model=files.model.name,
        count=len(request.jobs),
    )
    outputs.check([(job.prompt, job.seed) for job in request.jobs], grid=request.grid)
    painter, settings = _load(request, files, say)
    paths: list[Path] = []
    images: list[Image] = []
    blanked: list[int] = []
    with _progress(bar) as steps:
        try:
            for result in painter.draw(request.jobs, settings, batch_size=request.batch_size, progress=steps.show):
                if result.blanked:
                    blanked.append(result.recipe.seed)
                    continue
                paths.append(_save(result, outputs))
                images += [result.image] if request.grid else []
                steps.clear()  # the caller may print to the same terminal
                yield paths[-1], result.recipe
        except T2IError as e:
            if not paths:
                raise
            raise PartialFailure(f"{e.message} ({len(paths)} of {len(request.jobs)} images are written)", e.hint) from e
    if images:
        yield _save_grid(images, outputs.grid_path(paths[0]), request), None
    if blanked:
        message = f"the model's safety checker blanked seed {', '.join(map(str, blanked))}; no file was written for it"
        raise PartialFailure(message, "try another seed or prompt")


def _load(request: Request, files: ModelFiles, say: Say) -> tuple[TextToImage, Settings]:
    """Warn of what will be cut from the prompts, then load the weights and say what will be done."""
    from t2i.pipelines.text_to_image import TextToImage
    from t2i.pipelines.tokens import cut_words, load_tokenizers

    tokenizers = load_tokenizers(files)
    texts = dict.fromkeys([prompt.text for prompt in request.prompts] + [request.negative])
    for text in texts:
        cut = cut_words(text, list(tokenizers.values()))
        if cut:
            say(f"warning: the model reads no further than its text encoder; cut off: {shorten(cut)}")
    if any(not prompt.text.strip() for prompt in request.prompts):
        say("note: an empty prompt: drawing unconditionally")
    painter = TextToImage.load(
        files, device=request.device, dtype=request.dtype, scheduler=request.scheduler, components=tokenizers
    )
    settings = painter.settings(
        negative=request.negative,
        steps=request.steps,
        guidance=request.guidance,
        width=request.width,
        height=request.height,
    )
    if request.negative and not painter.uses_negative(settings.guidance):
        say(f"warning: the negative prompt does nothing (guidance {settings.guidance:g} of {files.model.name})")
    say(_headline(painter, settings, request.jobs))
    return painter, settings


def _headline(painter: TextToImage, settings: Settings, jobs: Sequence[Job]) -> str:
    """One line that says what is done and with what, so that nothing was chosen in silence."""
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    runs = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    shown = f"{seeds[0]} to {seeds[-1]}" if runs and len(seeds) > 2 else ", ".join(map(str, seeds[:4]))
    guidance = f"guidance {settings.guidance:g}" + (" (off)" if settings.guidance <= 1 else "")
    parts = [
        painter.name,
        painter.device,
        painter.dtype,
        f"{settings.width}x{settings.height}",
        f"{settings.steps} steps of {painter.scheduler}",
        guidance,
        f"seed {shown}" + (", ..." if not runs and len(seeds) > 4 else ""),
    ]
    return " · ".join(parts)


def _save(result: Result, outputs: Outputs) -> Path:
    """Save under the first name that is free; another run may take names at the same moment."""
    from t2i.images import save

    candidates = outputs.candidates(result.recipe.prompt, result.recipe.seed)
    for path in candidates:
        try:
            return save(result.image, path, recipe=result.recipe, overwrite=outputs.overwrite and not outputs.counted)
        except UsageError:
            if not (outputs.counted and os.path.lexists(path)):
                raise
    raise AssertionError("a pattern always has a candidate")


def _save_grid(images: Sequence[Image], path: Path, request: Request) -> Path:
    """All images on one sheet: a row per prompt, or as square as can be where each prompt has one image."""
    from t2i.images import grid, save
    from t2i.recipe import Mark

    each = len(request.seeds) * request.count
    columns = request.columns or (each if each > 1 and len(request.prompts) > 1 else None)
    return save(grid(images, columns), path, recipe=Mark(), overwrite=request.overwrite)


class _Steps:
    """A progress bar on stderr, in denoising steps of single images."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def show(self, done: int, total: int) -> None:
        """Move to `done` of `total`."""
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def clear(self) -> None:
        """Take the bar from the screen until it moves again."""
        self.bar.clear()


@contextmanager
def _progress(bar: bool) -> Iterator[_Steps]:
    """A bar where stderr is a terminal; nothing in a pipe or a log, where each path is a sign of life."""
    from tqdm import tqdm

    with tqdm(desc="drawing", unit="step", leave=False, file=sys.stderr, disable=None if bar else True) as steps:
        yield _Steps(steps)


def to_json(path: Path, recipe: Recipe | None) -> str:
    """One line of JSON: the path and the whole recipe; the sheet of all images has no recipe."""
    record = {"grid": True} if recipe is None else json.loads(recipe.to_json())
    return json.dumps({"path": str(path)} | record)


def shorten(text: str, limit: int = 200) -> str:
    """The text on one line in quotes, cut to `limit` characters."""
    text = " ".join(text.split())
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
