"""Evaluation during training: at regular intervals and at the end, the EMA weights generate images that are scored.

Sampling has random numbers of its own: training sees the same images in the same order, with the same noise, as
without. Every process generates its share. Metrics go to scores.csv, the settings behind them to judges.json, and the
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
from t2i.training.runs.change_log import record_change
from t2i.training.runs.run_folder import RunFolder, say

BEST = "best.json"  # in `best/`: images seen, metric and value


@dataclass(frozen=True)
class PeriodicEvaluation:
    """The evaluation of one run; created before the first step, so that missing files are reported at once.

    pipeline: builds a model from EMA weights.  settings: its sampling settings.
    """

    config: Evaluate
    folder: RunFolder
    reference: Reference
    extractor: Extractor
    pipeline: Callable[[dict[str, Tensor]], Any]
    settings: dict[str, Any]
    shown_warnings: set[str] = field(default_factory=set)  # warnings, each once

    @classmethod
    def create(
        cls, engine: Engine, config: Judged, pipeline: Callable[[dict[str, Tensor]], Any], **settings: Any
    ) -> PeriodicEvaluation | None:
        """Load the reference and the extractor of a config's `evaluate`; return None where it has none.

        Raises T2IError: no such reference, another extractor's, or a `best` that this extractor cannot compute.
        """
        wanted = config.evaluate
        if wanted is None:
            return None
        reference = load_reference(Path(wanted.reference))
        # with several processes Accelerate calls the CPU cpu:0
        device = str(engine.device) if engine.device.index else engine.device.type
        extractor = load_extractor(wanted.features or extractor_spec(reference), device)
        check_extractor(reference, extractor)
        check_best(wanted.best, extractor, labelled=getattr(config, "label", None) is not None)
        given = {key: value for key, value in settings.items() if value is not None}
        return cls(wanted, engine.folder, reference, extractor, pipeline, given)

    def evaluate_if_due(self, engine: Engine) -> None:
        """Score the model if the newest update passed a multiple of `evaluate.every` images, or was the last.

        Every process must call this.
        """
        wanted = self.config
        if not (engine.crossed(wanted.every) or engine.images_seen >= engine.config.images):
            return
        model = self.pipeline(engine.average())
        pictures = generated_set(model, self.reference.facts.size, wanted.n, wanted.seed, **self.settings)
        result = score(pictures, self.reference, self.extractor, wanted.n, wanted.seed)
        if result is not None and is_main():
            self.record_score(engine.images_seen, result, model)

    def record_score(self, images_seen: int, result: Mapping[str, Any], model: Any) -> None:
        """Write the metrics of a score, and the model if no comparable earlier one was better."""
        for line in result["warnings"]:
            if line not in self.shown_warnings:
                self.shown_warnings.add(line)
                say(f"evaluating {self.folder.path.name} at {images_seen:,} images: {line}")
        name, metrics = self.config.best, result["metrics"]
        since = record_change(self.folder.judges, images_seen, evaluation_protocol(result))
        rows = self.folder.read_scores() if self._best_is_current(name, since) else []
        before = [float(row[name]) for row in rows if row.get(name) and int(row["images"]) >= since]
        floors = {f"{key}_floor": found["floor"] for key, found in metrics.items() if found["floor"] is not None}
        self.folder.write_scores(images_seen, {key: found["value"] for key, found in metrics.items()} | floors)
        if name not in metrics:
            say(f"no best weights kept: {name} cannot be computed for these images")
            return
        # rounded as in scores.csv, so that rounding alone does not make a score better than an earlier one
        value = float(f"{metrics[name]['value']:.6g}")
        sign = METRICS[name][1]
        if all(sign * value > sign * other for other in before):
            self._write_best(model, {"images_seen": images_seen, "metric": name, "value": value})

    def _best_is_current(self, name: str, since: int) -> bool:
        """Return whether `best/` holds the best weights by this metric under the current settings."""
        try:
            kept = json.loads((self.folder.best / BEST).read_text(encoding="utf-8"))
            return bool(kept["metric"] == name and kept["images_seen"] >= since)
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def _write_best(self, model: Any, facts: dict[str, Any]) -> None:
        """Write `best/` atomically; until then the previous one stays there, or beside it."""
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
    """Check that a metric is available.

    Raises ConfigError: it needs classes, and the extractor or the run has none.
    """
    if name in ("classifier_score", "class_accuracy") and not extractor.classes:
        raise ConfigError(f"evaluate.best: {extractor.tag} has no classes, and so no {name}", "frechet, for example")
    if name == "class_accuracy" and not labelled:
        raise ConfigError("evaluate.best: class_accuracy needs a model with classes, and this has none", "set `label`")


def evaluation_protocol(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that two scores must share to be comparable, and their sampling settings."""
    same = ("version", "n", "seed", "frechet_is", "extractor", "reference")
    return {key: result[key] for key in same} | {"settings": result["subject"].get("settings", {})}
