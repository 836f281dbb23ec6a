"""Judging along training: every so many images, and at the end, the averaged weights draw and are scored.

What is drawn has random numbers of its own: training sees the same images in the same order, with the same noise, as
without. Every process draws its share. The numbers go to scores.csv, by what they were measured to judges.json, and the
export of the best weights so far to `best/`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from t2i import atomic
from t2i.config import Evaluate, Judged
from t2i.distributed import is_main
from t2i.errors import ConfigError
from t2i.evaluation.features import Extractor, load_extractor
from t2i.evaluation.image_sources import generated_set
from t2i.evaluation.metric_table import METRICS
from t2i.evaluation.reference import Reference, check_extractor, extractor_spec, load_reference
from t2i.evaluation.score import score
from t2i.training.engine import Engine
from t2i.training.runs.change_log import add_entry
from t2i.training.runs.run_folder import RunFolder, say

BEST = "best.json"  # in `best/`: of which moment it is, and how good


@dataclass(frozen=True)
class Judging:
    """What a run is judged by; made before the first step, so that what is missing is said at once.

    pipeline: from averaged weights to the model that draws.  settings: how it draws.
    """

    config: Evaluate
    folder: RunFolder
    reference: Reference
    extractor: Extractor
    pipeline: Callable[[dict[str, Tensor]], Any]
    settings: dict[str, Any]
    said: set[str] = field(default_factory=set)  # warnings, each once

    @classmethod
    def of(
        cls, engine: Engine, config: Judged, pipeline: Callable[[dict[str, Tensor]], Any], **settings: Any
    ) -> Judging | None:
        """None where the config asks for none.

        Raises T2IError: no such reference, another extractor's, or a `best` that this judge can never tell.
        """
        wanted = config.evaluate
        if wanted is None:
            return None
        reference = load_reference(Path(wanted.reference))
        device = str(engine.device) if engine.device.index else engine.device.type  # of several, the CPU is cpu:0
        extractor = load_extractor(wanted.features or extractor_spec(reference), device)
        check_extractor(reference, extractor)
        check_best(wanted.best, extractor, labelled=getattr(config, "label", None) is not None)
        given = {key: value for key, value in settings.items() if value is not None}
        return cls(wanted, engine.folder, reference, extractor, pipeline, given)

    def after(self, engine: Engine) -> None:
        """Judge, if the newest update passed a multiple of `evaluate.every` images, or was the last.

        Every process must ask.
        """
        wanted = self.config
        if not (engine.crossed(wanted.every) or engine.images_seen >= engine.config.images):
            return
        model = self.pipeline(engine.average())
        pictures = generated_set(model, self.reference.facts.size, wanted.n, wanted.seed, **self.settings)
        result = score(pictures, self.reference, self.extractor, wanted.n, wanted.seed)
        if result is not None and is_main():
            self.keep(engine.images_seen, result, model)

    def keep(self, images_seen: int, result: Mapping[str, Any], model: Any) -> None:
        """Write the numbers of a score, and the model if none that was measured alike had a better one."""
        for line in result["warnings"]:
            if line not in self.said:
                self.said.add(line)
                say(f"{self.folder.path.name} is judged at {images_seen:,} images: {line}")
        name, metrics = self.config.best, result["metrics"]
        since = add_entry(self.folder.judges, images_seen, by_what(result))
        rows = self.folder.read_scores() if self._best_is_of(name, since) else []
        before = [float(row[name]) for row in rows if row.get(name) and int(row["images"]) >= since]
        floors = {f"{key}_floor": found["floor"] for key, found in metrics.items() if found["floor"] is not None}
        self.folder.write_scores(images_seen, {key: found["value"] for key, found in metrics.items()} | floors)
        if name not in metrics:
            say(f"no best: the judge cannot tell {name} of these pictures")
            return
        value = float(f"{metrics[name]['value']:.6g}")  # as it is read back: rounding makes no number the better one
        sign = METRICS[name][1]
        if all(sign * value > sign * other for other in before):
            self._save_best(model, {"images_seen": images_seen, "metric": name, "value": value})

    def _best_is_of(self, name: str, since: int) -> bool:
        """Whether `best/` holds what was best by this number, measured as it is now."""
        try:
            kept = json.loads((self.folder.best / BEST).read_text(encoding="utf-8"))
            return bool(kept["metric"] == name and kept["images_seen"] >= since)
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def _save_best(self, model: Any, facts: dict[str, Any]) -> None:
        """Into `best/`, whole; the one before lies there, or beside it, until then."""
        best = self.folder.best
        partial, old = (best.with_name(f"best.{name}") for name in ("partial", "old"))
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
        model.save_pretrained(partial)
        atomic.write(json.dumps(facts).encode(), partial / BEST)
        if best.exists():
            best.rename(old)
        partial.rename(best)
        shutil.rmtree(old, ignore_errors=True)


def check_best(name: str, extractor: Extractor, labelled: bool) -> None:
    """Raises ConfigError: a metric that needs classes, where the judge knows none, or the run has none."""
    if name in ("classifier_score", "class_accuracy") and not extractor.classes:
        raise ConfigError(f"evaluate.best: {extractor.tag} tells no classes, and so no {name}", "frechet, for example")
    if name == "class_accuracy" and not labelled:
        raise ConfigError("evaluate.best: class_accuracy is of models with classes, and this has none", "set `label`")


def by_what(result: Mapping[str, Any]) -> dict[str, Any]:
    """All that two scores must share to be compared, and that a reader wants to know of them."""
    same = ("version", "n", "seed", "frechet_is", "extractor", "reference")
    return {key: result[key] for key in same} | {"settings": result["subject"].get("settings", {})}
