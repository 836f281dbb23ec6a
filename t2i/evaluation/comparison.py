"""Comparison of several models or folders of images: the same reference, number of images and seeds for all.

    folder/NAME/score.json, grid.png        the score of each, and some of its images
    folder/NAME/steps-8.json ...            of a diffusion model: at other numbers of steps, at other guidance scales
    folder/compare.json                     all of it in one

A comparison is resumable: every score is written as soon as it is computed, and a later call with the same settings
reads it instead of computing it. Scores by another version of the metrics are not reused.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from t2i import atomic
from t2i.distributed import is_main, processes
from t2i.errors import UsageError
from t2i.evaluation.features import Extractor
from t2i.evaluation.image_sets import GeneratedSet, ImageSet
from t2i.evaluation.image_sources import draws_from_text, open_pictures
from t2i.evaluation.prompted_samples import PromptedSet
from t2i.evaluation.reference import VERSION, Reference
from t2i.evaluation.score import score
from t2i.evaluation.score_files import save_score
from t2i.pipelines.class_conditional.ddpm import DDPM

FILE = "compare.json"
STEPS = (2, 4, 8, 16, 32, 64, 250, 1000)
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
SCORE = "score.json"
SHEETS = ("grid.png", "closest.png")  # beside it; the second where the reference's data are given
IN_RUN = ("best", "export")  # folders of a run that are models by themselves

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class ComparisonPlan:
    """The settings shared by all subjects.

    n: images of each.  prompts: of those that generate from text.  curve_n: images for each point of a curve.
    steps, guidance: the points, none: no curve; more steps than a model has noise levels are left out.
    """

    n: int
    seed: int = 0
    steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    curve_n: int = 1000
    prompts: tuple[str, ...] = ()


@dataclass
class TimedImages:
    """An image set that measures the seconds it takes to generate."""

    pictures: ImageSet
    seconds: float = 0.0
    drawn: int = 0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.pictures.name

    def pixels(self, which: Sequence[int]) -> Tensor:
        begin = time.perf_counter()
        found = self.pictures.pixels(which)
        self.seconds += time.perf_counter() - begin
        self.drawn += len(which)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pictures, name)


def compare(
    subjects: Sequence[str],
    reference: Reference,
    extractor: Extractor,
    plan: ComparisonPlan,
    folder: Path,
    *,
    data: str | None = None,
    seen: Progress = lambda n, total: None,
) -> dict[str, Any] | None:
    """Score all subjects and return the content of compare.json on the main process, None on the others.

    Every process must call this.  data: that of the reference, for the images nearest to generated ones.
    Raises UsageError: two subjects of one name; and what `score` and `open_pictures` raise.
    """
    names = [_name(subject) for subject in subjects]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"two of these are called {twice[0]}", "their names are those of their folders: rename one")
    found = []
    for name, subject in zip(names, subjects, strict=True):
        here = folder / name
        given: dict[str, Any] = {"device": extractor.device, "offline": True}
        if plan.prompts and draws_from_text(subject, offline=True):
            given["prompts"] = plan.prompts
        pictures = open_pictures(subject, reference.facts.size, count=plan.n, seed=plan.seed, **given)
        one = _scored(pictures, reference, extractor, plan.n, plan.seed, here / SCORE, data, seen)
        curves = {
            kind: [_point(pictures, reference, extractor, plan, kind, value, here, seen) for value in values]
            for kind, values in _points(pictures, plan).items()
        }
        found.append({"name": name, "path": subject, "score": one, "curves": curves})
    if not is_main():
        return None
    result = {"n": plan.n, "seed": plan.seed, "curve_n": plan.curve_n, "subjects": found}
    atomic.write(json.dumps(result, indent=1).encode(), folder / FILE, overwrite=True)
    return result


def _name(subject: str) -> str:
    """Return a name that can be a folder's; for a folder within a run (`best`, `export`) the run's name comes first."""
    path = Path(subject)
    if not path.exists():
        return subject.replace("/", "-")
    path = path.resolve()
    if path.name in IN_RUN and (path.parent / "config.yaml").is_file():
        return f"{path.parent.name}-{path.name}"
    return path.name if path.is_dir() else path.stem


def _points(pictures: ImageSet, plan: ComparisonPlan) -> dict[str, Sequence[float]]:
    """Return the values of each curve; none where a model has a single step, or was not trained for guidance."""
    model = pictures.model if isinstance(pictures, GeneratedSet) else None
    if not isinstance(model, DDPM):
        return {}
    steps = [steps for steps in plan.steps if steps <= (model.schedule.steps or STEPS[-1])]
    found = {"steps": steps, "guidance": () if model.null is None else plan.guidance}
    return {kind: values for kind, values in found.items() if values}


def _point(
    pictures: ImageSet,
    reference: Reference,
    extractor: Extractor,
    plan: ComparisonPlan,
    kind: str,
    value: float,
    folder: Path,
    seen: Progress,
) -> dict[str, Any] | None:
    """Score one point of a curve: {`at`, `score`}."""
    assert isinstance(pictures, GeneratedSet)
    here = replace(pictures, count=plan.curve_n, settings=pictures.model.settings(**{kind: value}))
    path = folder / f"{kind}-{value:g}.json"
    one = _scored(here, reference, extractor, plan.curve_n, plan.seed, path, None, seen)
    return None if one is None else {"at": value, "score": one}


def _scored(
    pictures: ImageSet,
    reference: Reference,
    extractor: Extractor,
    n: int,
    seed: int,
    path: Path,
    data: str | None,
    seen: Progress,
) -> dict[str, Any] | None:
    """Score images, or read the score from its file if it is there.

    The result has `images_per_second`, of all processes, where the images were generated here.
    """
    wanted = {"subject": pictures.facts, "n": n, "seed": seed, "reference": reference.facts.data_hash}
    # through JSON, as it will be read back: tuples become lists
    wanted = json.loads(json.dumps(wanted | {"extractor": extractor.hash, "version": VERSION}))
    processes().wait_for_everyone()  # no process may write the file before every process has checked for it
    result = _load_matching(path, wanted)
    processes().wait_for_everyone()
    if result is not None:
        seen(n, n)
    else:
        timed = TimedImages(pictures)
        result = score(cast(ImageSet, timed), reference, extractor, n, seed, seen)
        if result is None:
            return None
        result["wanted"] = wanted
        drawn = isinstance(pictures, GeneratedSet | PromptedSet)
        result["images_per_second"] = timed.drawn * processes().num_processes / timed.seconds if drawn else None
        for name in SHEETS if path.name == SCORE else ():
            (path.parent / name).unlink(missing_ok=True)  # of another score
        atomic.write(json.dumps(result, indent=1).encode(), path, overwrite=True)
    sheets = [path.parent / name for name in (SHEETS if data else SHEETS[:1])]
    if path.name == SCORE and is_main() and not all(sheet.is_file() for sheet in sheets):
        save_score(result, pictures, reference, data, path.parent, overwrite=True)
    return result


def _load_matching(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Read a score that was computed with the same inputs; None where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("wanted") == wanted else None
