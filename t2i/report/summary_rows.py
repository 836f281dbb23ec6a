"""The tables of a report: rows of (label, its value for each run)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml

from t2i.report.curve_specs import CURVES
from t2i.report.runs import RunRecord
from t2i.report.series import moving_average

Rows = list[tuple[str, list[str]]]
NONE = "–"


def summary_rows(runs: Sequence[RunRecord]) -> Rows:
    """Return progress, speed, size and key metrics of each run."""
    rows = [
        ("family", [run.family for run in runs]),
        ("images seen", [progress(run) for run in runs]),
        ("training time", [duration(run.seconds) for run in runs]),
        ("images/s", [number(run.images_seen / run.seconds) if run.seconds > 0 else NONE for run in runs]),
        ("parameters", [amount(run.parameters) for run in runs]),
    ]
    metrics = [_key_metrics(run) for run in runs]
    for label in dict.fromkeys(label for some in metrics for label in some):
        rows.append((label, [number(some.get(label, math.nan)) for some in metrics]))
    rows.append(("last logged, UTC", [f"{run.written:%Y-%m-%d %H:%M}" if run.written else NONE for run in runs]))
    return rows


def metric_rows(runs: Sequence[RunRecord]) -> Rows:
    """Return the metrics of the exported model; for a run that is still training, those of its last evaluation."""
    measured = []
    for run in runs:
        last = {name: float(values[-1]) for name, values in run.evaluation.items() if name != "images"}
        measured.append({k: v for k, v in run.facts.items() if k != "images_seen"} or last)
    names = dict.fromkeys(name.replace(".", "_") for some in measured for name in some)
    by_name = [{name.replace(".", "_"): value for name, value in some.items()} for some in measured]
    return [(name.replace("_", " "), [number(some.get(name, math.nan)) for some in by_name]) for name in names]


def warning_lines(run: RunRecord) -> list[str]:
    """Return the warnings of a run, each text once, with the number of images at which it occurred."""
    found = []
    for text in dict.fromkeys(text for _, text in run.warnings):
        seen = [images for images, some in run.warnings if some == text]
        often = f"at {seen[0]:,}" if len(seen) == 1 else f"{len(seen)} times, at {seen[0]:,} to {seen[-1]:,}"
        found.append(f"{text} ({often} images)")
    return found


def config_rows(runs: Sequence[RunRecord]) -> Rows:
    """Return every config key in which the runs differ."""
    leaves = [_leaves(without_paths(run.config)) for run in runs]
    names = dict.fromkeys(name for some in leaves for name in some)
    rows = [(name, [some.get(name, NONE) for some in leaves]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def config_text(run: RunRecord) -> str:
    """Return the config as YAML."""
    return yaml.safe_dump(without_paths(run.config), sort_keys=False, allow_unicode=True, width=100)


def environment_rows(runs: Sequence[RunRecord]) -> tuple[list[str], Rows]:
    """Return (headers, rows): a column for each run, and a further one for each change of its environment."""
    columns = [
        (run.name if k == 0 else f"{run.name} from {entry.get('since', 0):,} images", entry)
        for run in runs
        for k, entry in enumerate(run.environment)
    ]
    names = [name for name in dict.fromkeys(name for _, entry in columns for name in entry) if name != "since"]
    return [head for head, _ in columns], [
        (name, [str(entry.get(name, NONE)) for _, entry in columns]) for name in names
    ]


def without_paths(value: Any) -> Any:
    """Return a config without the folders of this machine: of absolute paths only the name is kept.

    A page may be shared, and these folders are private.
    """
    if isinstance(value, dict):
        return {key: without_paths(some) for key, some in value.items()}
    if isinstance(value, list):
        return [without_paths(some) for some in value]
    # absolute on any system: the config may come from another machine
    if isinstance(value, str) and re.match(r"([a-zA-Z]:)?[/\\]\S", value):
        return "…/" + re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def progress(run: RunRecord) -> str:
    if not run.total:
        return f"{run.images_seen:,}"
    return f"{run.images_seen:,} of {run.total:,} ({100 * run.images_seen // run.total}\u00a0%)"


def duration(seconds: float) -> str:
    """Format a duration: 2.4 hours; a dash where it is unknown."""
    if not math.isfinite(seconds) or seconds <= 0:
        return NONE
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def amount(count: int | None) -> str:
    """Format a count: 4.21 million."""
    if count is None:
        return NONE
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"


def number(value: float, digits: int = 4) -> str:
    """Format four significant digits, or `digits`, without an exponent below a billion; a dash for nan."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e+0" in text else text


def _key_metrics(run: RunRecord) -> dict[str, float]:
    """Return {label: number} of the family's first curve: the newest value of its moving average."""
    found = {}
    for curve in CURVES.get(run.family, ())[:1]:
        for column, label in curve.columns.items():
            y = run.log.get(column, np.array([]))
            there = np.isfinite(y)
            if there.any():
                name = curve.title.lower() + (f", {label}" if len(curve.columns) > 1 else "")
                found[name] = float(moving_average(run.log["images"][there], y[there])[-1])
    return found


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, some in value.items():
        if isinstance(some, dict):
            found |= _leaves(some, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = some if isinstance(some, str) else json.dumps(some, ensure_ascii=False)
    return found
