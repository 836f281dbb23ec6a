"""The run folder: everything that a training run reads and writes about itself.

config.yaml                     the whole config, defaults included
environment.json                versions, device, processes, precision: a list, one item `since` each change of them
log.csv                         one row every `log_every` images: means since the row before
evaluation.csv                  for families with held-out or training metrics: one row every `sample_every` images
scores.csv                      with `evaluate` in the config: one row every `evaluate.every` images
judges.json                     the settings behind the scores: a list, one item `since` each change of them
best/                           the export of the EMA weights with the best score, and best.json: images seen, metric,
value warnings.csv                    warnings about a run that degenerates though its numbers are finite: images, text
samples/000000020000.png        sample sheets, named by images seen
checkpoints/000000020000/       model, ema, optimizer (.safetensors), state.json, manifest.json
export/                         the trained model, in diffusers' own format

Columns of log.csv: images (seen), the losses and terms of the family, gradient_norm, lr (of the last step), and
images_per_second. Diffusion also has mse_quarter1 .. mse_quarter4: the unweighted mean squared error of the samples
whose time was in that quarter of [0, T], the first being the least noise; empty where there was none.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from t2i import atomic
from t2i.config import Run, build_config, config_difference, dump_config, parse_yaml
from t2i.distributed import processes
from t2i.errors import CheckpointError
from t2i.training.runs import csv_log
from t2i.training.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

Start = Literal["auto", "resume", "fresh"]


@dataclass(frozen=True)
class Launch:
    """The way a run is started. Nothing here changes its result.

    start: "auto" resumes if there is a checkpoint; "resume" requires one; "fresh" moves the old run aside.
    force: accept a changed config or other data.  progress: bars on stderr.
    until: stop, with the state saved, at this number of images, although the config has more.
    """

    start: Start = "auto"
    force: bool = False
    progress: bool = True
    until: int | None = None


# Keys that may change between two starts of a run: none of them changes its result.
INTERVALS = {"log_every", "sample_every", "save_every"}
MAY_CHANGE = INTERVALS | {"evaluate", "keep", "latents", "accumulate", "compile", "deterministic", "trackers"}


def say(message: str) -> None:
    """Print a message to the user on stderr, above a progress bar: stdout is for results."""
    tqdm.write(message, file=sys.stderr)


class RunFolder:
    """Paths, log and checkpoints of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.log = path / "log.csv"
        self.evaluation = path / "evaluation.csv"
        self.scores = path / "scores.csv"
        self.judges = path / "judges.json"
        self.best = path / "best"
        self.warnings = path / "warnings.csv"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"

    def begin(self, config: Run, launch: Launch) -> None:
        """Prepare the folder for this config on the main process, while the others wait.

        Raises CheckpointError: nothing to resume, or the folder belongs to another config (the difference is shown).
        """
        state = processes()
        if state.is_main_process:
            self._begin(config, launch.start, launch.force)
        state.wait_for_everyone()

    def _begin(self, config: Run, start: Start, force: bool) -> None:
        if start == "fresh" and self.path.exists():
            stem = f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}"
            names = chain([stem], (f"{stem}-{k}" for k in count(2)))  # two fresh starts within a second
            aside = next(path for path in map(self.path.with_name, names) if not path.exists())
            self.path.rename(aside)
            say(f"moved the old run to {aside}")
        if start == "resume" and not self.saved():
            raise CheckpointError(f"no checkpoint in {self.checkpoints}", "leave --resume out to start a new run")
        if self.config.exists() and self.saved() and not force:
            self._compare(config)
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.saved():
            self.keep_config(config)

    def keep_config(self, config: Run) -> None:
        """Write the config of the run; after a checkpoint, only once it is known to fit."""
        atomic.write(dump_config(config).encode(), self.config, overwrite=True)

    def _compare(self, config: Run) -> None:
        written = parse_yaml(self.config.read_text(encoding="utf-8"), str(self.config))
        # a key that an older version did not have yet had today's default
        old = build_config(type(config), written, str(self.config)).model_dump(mode="json")
        changes = config_difference(old, config.model_dump(mode="json"))
        # Without a decay over its whole length, a run may be prolonged: its steps so far do not depend on `images`.
        longer = config.optimizer.decay == "none" and config.images > old["images"]
        newest = max((int(path.name) for path in self.saved()), default=0)
        longer = longer and newest <= old["images"] - config.optimizer.cooldown  # else the cooldown has begun
        changes = {
            k: v for k, v in changes.items() if k.partition(".")[0] not in MAY_CHANGE and not (k == "images" and longer)
        }
        if changes:
            lines = [f"  {key}: {before!r} -> {now!r}" for key, (before, now) in changes.items()]
            raise CheckpointError(
                f"{self.path} was started with another config:\n" + "\n".join(lines),
                "--force continues with the new one, --fresh starts over, --run DIR takes another folder",
            )

    def saved(self) -> list[Path]:
        """Return checkpoint folders, newest first, intact or not, without stray files and temporary folders."""
        found = [p for p in self.checkpoints.glob("*") if p.name.isdigit() and p.is_dir()]
        return sorted(found, key=lambda p: int(p.name), reverse=True)

    def save(self, checkpoint: Checkpoint, keep: int) -> None:
        """Write a checkpoint, then remove all but the newest `keep`.  Raises CheckpointError; the old ones stay."""
        save_checkpoint(self.checkpoints / f"{checkpoint.state['images_seen']:012d}", checkpoint)
        for old in self.saved()[keep:]:
            shutil.rmtree(old)

    def newest(self, warn: Callable[[str], None] = say) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None when the run has none yet.

        Damaged and unfinished ones are reported through `warn` and skipped.
        Raises CheckpointError when all are damaged: an existing run never starts over silently.
        """
        for partial in self.checkpoints.glob("*.partial"):
            warn(f"skipped {partial}: it was not finished")
        damaged = False
        for folder in self.saved():
            try:
                return load_checkpoint(folder)
            except CheckpointError as e:
                damaged = True
                warn(f"skipped {folder}: {e.message}")
        if damaged:
            raise CheckpointError(f"no intact checkpoint is left in {self.checkpoints}", "--fresh starts over")
        return None

    def rewind_log(self, images_seen: int) -> None:
        """Drop the rows of the log, evaluation, scores and warnings that a resumed run will write again."""
        for path in (self.log, self.evaluation, self.scores, self.warnings):
            if path.exists():
                csv_log.rewind(path, images_seen)

    def read_log(self) -> list[dict[str, str]]:
        """Return the rows of the log, oldest first."""
        return csv_log.read(self.log)

    def write_log(self, row: dict[str, Any]) -> None:
        """Append one row to the log."""
        csv_log.append(self.log, row)

    def warn(self, images_seen: int, text: str) -> None:
        """Print a warning, and keep it for the report.

        text: constant for each kind of warning, so that they can be counted.
        """
        say(f"{self.path.name} at {images_seen:,} images: {text}")
        csv_log.append(self.warnings, {"images": images_seen, "text": text})

    def write_evaluation(self, images_seen: int, numbers: dict[str, float]) -> None:
        """Append one row to the evaluation."""
        csv_log.append(self.evaluation, {"images": images_seen, **{k: f"{v:.6g}" for k, v in numbers.items()}})

    def read_scores(self) -> list[dict[str, str]]:
        """Return the scores so far, oldest first."""
        return csv_log.read(self.scores)

    def write_scores(self, images_seen: int, numbers: dict[str, float]) -> None:
        """Append one row to the scores."""
        csv_log.append(self.scores, {"images": images_seen, **{k: f"{v:.6g}" for k, v in numbers.items()}})
