"""Run folders as a report reads them: once, possibly while they are being written.

Rows that are half written, and files that are damaged or missing, are skipped without an error.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from t2i.config import parse_yaml
from t2i.errors import ConfigError, UsageError

Columns = dict[str, np.ndarray]  # float64, one number per row; NaN where a cell is empty
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, the format's own limit
NOT_TRAINED = (".running_mean", ".running_var", ".num_batches_tracked", "._u", "._v")  # of batch and spectral norm
Confusion = tuple[list[str], list[list[int]]]


@dataclass(frozen=True)
class RunRecord:
    """The content of one run folder.

    log, evaluation: columns by name, `images` (seen) among them; empty where nothing is written yet.
    scores: likewise, of scores.csv, limited to rows measured in the current way, which `judge` describes (judges.json).
    best: the metric by which the kept weights are best, and the images they had seen.
    scored: (name, score.json) of scores in the folder: score.json itself, and scores/NAME/score.json.
    samples: (images seen, file), oldest first.  facts: metrics of its export; numbers by dotted name.
    confusions: of a classifier, by question: the classes, and images by true class (rows) and prediction (columns).
    warnings: (images seen, text), oldest first.  parameters: number of trained ones, None before the first checkpoint.
    written: time of the last change of its log.
    """

    name: str
    path: Path
    config: dict[str, Any]
    log: Columns
    evaluation: Columns = field(default_factory=dict)
    scores: Columns = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)
    best: tuple[str, int] | None = None
    scored: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    samples: list[tuple[int, Path]] = field(default_factory=list)
    environment: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    confusions: dict[str, Confusion] = field(default_factory=dict)
    warnings: list[tuple[int, str]] = field(default_factory=list)
    parameters: int | None = None
    written: datetime | None = None

    @property
    def family(self) -> str:
        return str(self.config.get("family", "unknown"))

    @property
    def total(self) -> int:
        """Return the number of images in the config, 0 where it has none."""
        images = self.config.get("images")
        return images if isinstance(images, int) else 0

    @property
    def images_seen(self) -> int:
        """Return the images up to the newest row of the log."""
        return int(self.log["images"][-1]) if self.log else 0

    @property
    def seconds(self) -> float:
        """Return the time that the logged images took; nan where the log does not hold it."""
        if not {"images", "images_per_second"} <= self.log.keys():
            return math.nan
        seen, rate = np.diff(self.log["images"], prepend=0), self.log["images_per_second"]
        return float(np.sum(seen[rate > 0] / rate[rate > 0]))


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Read the runs in these folders; runs of the same name get their parent's name in front.

    Raises UsageError for a folder that is no run, and for one that is given twice.
    """
    found = [path.resolve() for path in paths]
    twice = [path for path, n in Counter(found).items() if n > 1]
    if twice:
        raise UsageError(f"{twice[0].name} is given twice", "give each run folder once")
    names = Counter(path.name for path in found)
    return [
        read_run(given, path.name if names[path.name] == 1 else f"{path.parent.name}/{path.name}")
        for given, path in zip(paths, found, strict=True)
    ]


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """Read one run folder.  Raises UsageError where there is none."""
    path = folder / "config.yaml"
    if not path.is_file():
        what = "is no run folder: it has no config.yaml" if folder.exists() else "is not there"
        raise UsageError(f"{folder} {what}", "t2i train writes run folders: runs/NAME, or the folder given by --run")
    try:
        config = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, ConfigError) as e:
        raise UsageError(f"{path} cannot be read: {e}") from None
    log = folder / "log.csv"
    scores = read_numbers(folder / "scores.csv")
    judge = _judge(folder, scores["images"][-1] if scores else 0)
    return RunRecord(
        name=name or folder.resolve().name,
        path=folder,
        config=config,
        log=read_numbers(log),
        evaluation=read_numbers(folder / "evaluation.csv"),
        scores=part(scores, judge.get("since", 0)),
        judge=judge,
        best=_best(folder),
        scored=_scored(folder),
        samples=sorted((int(p.stem), p) for p in folder.glob("samples/*.png") if p.stem.isdigit()),
        environment=_environment(folder),
        facts=_numbers(_json(folder / "export" / "facts.json", {})),
        confusions=_confusions(folder / "export"),
        warnings=read_warnings(folder / "warnings.csv"),
        parameters=_parameters(folder),
        written=datetime.fromtimestamp(log.stat().st_mtime, UTC) if log.is_file() else None,
    )


def read_numbers(path: Path) -> Columns:
    """Read the columns of a CSV file of numbers whose first is `images`; empty where there is no whole row.

    A row without its line end is still being written; a row that is not numeric is skipped.
    """
    header, *rows = _whole_rows(path) or [[]]  # no row at all: no header either
    whole = [numbers for row in rows if (numbers := _row(row, len(header)))]
    if header[:1] != ["images"] or not whole:
        return {}
    return dict(zip(header, np.array(whole, dtype=np.float64).T, strict=True))


def read_warnings(path: Path) -> list[tuple[int, str]]:
    """Read the warnings of a run: (images seen, text), oldest first."""
    return [(int(cells[0]), cells[1]) for cells in _whole_rows(path) if len(cells) == 2 and cells[0].isdecimal()]


def _whole_rows(path: Path) -> list[list[str]]:
    """Return the rows of a CSV file that end with a line end, its header first; none where it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return []
    return list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))


def _row(cells: list[str], length: int) -> list[float] | None:
    try:
        numbers = [float(cell) if cell else math.nan for cell in cells]
    except ValueError:
        return None
    return numbers if len(cells) == length and math.isfinite(numbers[0]) else None


def part(table: Columns, first: float = 0, last: float = math.inf) -> Columns:
    """Return the rows from `first` to `last` images; empty where there is none."""
    there = (table["images"] >= first) & (table["images"] <= last) if table else np.zeros(0, bool)
    return {name: column[there] for name, column in table.items()} if there.any() else {}


def _judge(folder: Path, seen: float) -> dict[str, Any]:
    """Return the evaluation settings of the newest scores; empty for a run of an older version."""
    entries = _json(folder / "judges.json", [])
    listed = entries if isinstance(entries, list) else []
    whole = [entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("since"), int)]
    return next((entry for entry in reversed(whole) if entry["since"] <= seen), {})


def _best(folder: Path) -> tuple[str, int] | None:
    try:
        found = _json(folder / "best" / "best.json", {})
        return str(found["metric"]), int(found["images_seen"])
    except (KeyError, TypeError, ValueError):
        return None


def _scored(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read the scores that `t2i eval score` wrote into the run folder."""
    paths = [folder / "score.json", *sorted(folder.glob("scores/*/score.json"))]
    found = [("" if path.parent == folder else path.parent.name, _json(path, None)) for path in paths]
    return [(name, score) for name, score in found if isinstance(score, dict)]


def _environment(folder: Path) -> list[dict[str, Any]]:
    """Return the recorded environments; for a run that an older version began, the few facts of its checkpoint."""
    entries = _json(folder / "environment.json", [])
    if (
        isinstance(entries, list)
        and entries
        and all(isinstance(e, dict) and isinstance(e.get("since"), int) for e in entries)
    ):
        return entries
    state = _json(_newest(folder) / "state.json", {})
    known = {key: state[key] for key in ("torch", "processes", "threads", "precision") if key in state}
    return [{"since": 0, **known}] if known else []


def _confusions(export: Path) -> dict[str, Confusion]:
    """Return the confusion matrices by question, "" where there is only one, skipping missing and malformed ones."""
    facts, classes = _json(export / "facts.json", {}), _json(export / "classes.json", {})
    questions = classes.get("questions") or {"": classes.get("classes")}
    found = {}
    for question, names in questions.items():
        try:
            matrix = (facts["questions"][question] if question else facts)["confusion"]
            counts = [[int(n) for n in row] for row in matrix]
            if [len(row) for row in counts] == [len(names)] * len(names):
                found[question] = [str(name) for name in names], counts
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _newest(folder: Path) -> Path:
    """Return the newest checkpoint, or a path that does not exist."""
    found = [p for p in folder.glob("checkpoints/*") if p.name.isdigit()]
    return max(found, key=lambda p: int(p.name), default=folder / "checkpoints" / "none")


def _parameters(folder: Path) -> int | None:
    """Count parameters from the shapes in a checkpoint's header, without reading its tensors."""
    try:
        with (_newest(folder) / "model.safetensors").open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(min(size, MAX_HEADER_BYTES)))
        tensors = {name: entry["shape"] for name, entry in head.items() if name != "__metadata__"}
        return sum(math.prod(shape) for name, shape in tensors.items() if not name.endswith(NOT_TRAINED))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _json(path: Path, otherwise: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return otherwise


def _numbers(values: Any, prefix: str = "") -> dict[str, float]:
    """Flatten nested values to numbers by dotted name, leaving out lists (per class, confusion)."""
    found: dict[str, float] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = value
    return found
