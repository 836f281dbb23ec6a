"""Several models, or folders of pictures, judged alike: the same reference, number of pictures and seeds.

    folder/NAME/score.json, grid.png        each one's score, and some of its pictures
    folder/NAME/steps-8.json ...            of a diffusion model: with so many steps, with so much guidance
    folder/compare.json                     all of it in one

What is there from an earlier call of the same settings is taken as it is, so that a call that was killed goes on: every
score is written when its pictures are, and none is believed that another version of the measures made.
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
from t2i.evaluation.prompted_samples import Prompted
from t2i.evaluation.reference import VERSION, Reference
from t2i.evaluation.score import score
from t2i.evaluation.score_files import save_score
from t2i.pipelines.class_conditional.ddpm import DDPM

FILE = "compare.json"
STEPS = (2, 4, 8, 16, 32, 64, 250, 1000)
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
SCORE = "score.json"
SHEETS = ("grid.png", "closest.png")  # beside it; the second where the reference's data are given
IN_RUN = ("best", "export")  # folders of a run that are models themselves

Seen = Callable[[int, int], object]


@dataclass(frozen=True)
class ComparisonPlan:
    """What is the same for all.

    n: pictures of each.  prompts: of those that draw from text.  curve_n: pictures of each point of a curve.
    steps, guidance: the points, none: no curve; more steps than a model knows noise levels are left out.
    """

    n: int
    seed: int = 0
    steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    curve_n: int = 1000
    prompts: tuple[str, ...] = ()


@dataclass
class Timed:
    """Pictures, and the seconds that it took to draw them."""

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
    seen: Seen = lambda n, total: None,
) -> dict[str, Any] | None:
    """Judge all of them; every process must ask, and the main one gets the answer, as in compare.json.

    data: the reference's, for the pictures nearest to generated ones.
    Raises UsageError: two of one name; and what `score` and `open_pictures` raise.
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
        one = _judged(pictures, reference, extractor, plan.n, plan.seed, here / SCORE, data, seen)
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
    """A plain word, since it becomes a folder; of what lies in a run (`best`, `export`) the run's comes first."""
    path = Path(subject)
    if not path.exists():
        return subject.replace("/", "-")
    path = path.resolve()
    if path.name in IN_RUN and (path.parent / "config.yaml").is_file():
        return f"{path.parent.name}-{path.name}"
    return path.name if path.is_dir() else path.stem


def _points(pictures: ImageSet, plan: ComparisonPlan) -> dict[str, Sequence[float]]:
    """Of each curve; none where a model draws in one step, or was not trained to be guided."""
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
    seen: Seen,
) -> dict[str, Any] | None:
    """One point of a curve: where, and the score there."""
    assert isinstance(pictures, GeneratedSet)
    here = replace(pictures, count=plan.curve_n, settings=pictures.model.settings(**{kind: value}))
    path = folder / f"{kind}-{value:g}.json"
    one = _judged(here, reference, extractor, plan.curve_n, plan.seed, path, None, seen)
    return None if one is None else {"at": value, "score": one}


def _judged(
    pictures: ImageSet,
    reference: Reference,
    extractor: Extractor,
    n: int,
    seed: int,
    path: Path,
    data: str | None,
    seen: Seen,
) -> dict[str, Any] | None:
    """A score with `images_per_second`, of all processes, where it was drawn here; from its file where it stands."""
    wanted = {"subject": pictures.facts, "n": n, "seed": seed, "reference": reference.facts.data_hash}
    wanted = json.loads(json.dumps(wanted | {"extractor": extractor.hash, "version": VERSION}))
    processes().wait_for_everyone()  # none writes before all have looked
    result = _known(path, wanted)
    processes().wait_for_everyone()
    if result is not None:
        seen(n, n)
    else:
        timed = Timed(pictures)
        result = score(cast(ImageSet, timed), reference, extractor, n, seed, seen)
        if result is None:
            return None
        result["wanted"] = wanted
        drawn = isinstance(pictures, GeneratedSet | Prompted)
        result["images_per_second"] = timed.drawn * processes().num_processes / timed.seconds if drawn else None
        for name in SHEETS if path.name == SCORE else ():
            (path.parent / name).unlink(missing_ok=True)  # of another score
        atomic.write(json.dumps(result, indent=1).encode(), path, overwrite=True)
    sheets = [path.parent / name for name in (SHEETS if data else SHEETS[:1])]
    if path.name == SCORE and is_main() and not all(sheet.is_file() for sheet in sheets):
        save_score(result, pictures, reference, data, path.parent, overwrite=True)
    return result


def _known(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("wanted") == wanted else None
