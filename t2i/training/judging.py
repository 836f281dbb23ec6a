"""Judging along training: every so many images the averaged weights draw, and are scored against a reference.

What is drawn has random numbers of its own: training sees the same images in the same order, with the same noise, as
without. Every process draws its share. The numbers go to scores.csv; the export of the best so far to `best/`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from t2i import files
from t2i.config import Judged
from t2i.evaluation.features import Extractor, load_extractor
from t2i.evaluation.measures import MEASURES
from t2i.evaluation.pictures import drawn
from t2i.evaluation.reference import Reference, check_extractor, extractor_spec, load_reference
from t2i.evaluation.score import score
from t2i.processes import is_main
from t2i.training.engine import Engine
from t2i.training.run import RunFolder, say

BEST = "best.json"  # in `best/`: of which moment it is, and how good


@dataclass(frozen=True)
class Judging:
    """What a run is judged by; made before the first step, so that what is missing is said at once.

    pipeline: from averaged weights to the model that draws.  settings: how it draws.
    """

    config: Judged
    folder: RunFolder
    reference: Reference
    extractor: Extractor
    pipeline: Callable[[dict[str, Tensor]], Any]
    settings: dict[str, Any]

    @classmethod
    def of(
        cls, engine: Engine, config: Judged, pipeline: Callable[[dict[str, Tensor]], Any], **settings: Any
    ) -> Judging | None:
        """None where the config asks for none.  Raises T2IError: no such reference, or another extractor's."""
        wanted = config.evaluate
        if wanted is None:
            return None
        reference = load_reference(Path(wanted.reference))
        extractor = load_extractor(wanted.features or extractor_spec(reference), str(engine.device))
        check_extractor(reference, extractor)
        given = {key: value for key, value in settings.items() if value is not None}
        return cls(config, engine.folder, reference, extractor, pipeline, given)

    def after(self, engine: Engine) -> None:
        """Judge, if the newest update passed a multiple of `evaluate.every` images.  Every process must ask."""
        wanted = self.config.evaluate
        assert wanted is not None
        if not engine.crossed(wanted.every):
            return
        model = self.pipeline(engine.average())
        pictures = drawn(model, self.reference.facts.size, wanted.n, wanted.seed, **self.settings)
        result = score(pictures, self.reference, self.extractor, wanted.n, wanted.seed)
        if result is not None and is_main():
            numbers = {name: found["value"] for name, found in result["metrics"].items()}
            numbers["frechet_floor"] = result["metrics"]["frechet"]["floor"]
            self._keep(engine.images_seen, numbers, model)

    def _keep(self, images_seen: int, numbers: dict[str, float], model: Any) -> None:
        assert self.config.evaluate is not None
        name = self.config.evaluate.best
        before = [float(row[name]) for row in self.folder.read_scores() if row.get(name)]
        self.folder.write_scores(images_seen, numbers)
        if name not in numbers:
            say(f"no best: the judge cannot tell {name} of these pictures")
            return
        sign = MEASURES[name][1]
        if all(sign * numbers[name] > sign * other for other in before):
            partial = self.folder.best.with_name("best.partial")
            shutil.rmtree(partial, ignore_errors=True)
            model.save_pretrained(partial)
            said = {"images_seen": images_seen, "metric": name, "value": numbers[name]}
            files.write(json.dumps(said).encode(), partial / BEST)
            shutil.rmtree(self.folder.best, ignore_errors=True)
            partial.rename(self.folder.best)
