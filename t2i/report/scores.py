"""Evaluation in reports: scores during training, and those that `t2i eval score` wrote into the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from t2i.report.curve_specs import FLOOR, SCORES
from t2i.report.html_parts import Numbers, figures, table
from t2i.report.runs import RunRecord
from t2i.report.series import Plot, score_plots
from t2i.report.summary_rows import NONE, Rows, number

# Metric -> its name in a sentence; the label `generated` adds nothing to the curve's title.
TITLES = {
    column.removeprefix("scores/"): curve.title if label == "generated" else label
    for curve in SCORES
    for column, label in curve.columns.items()
}


def comparable_runs(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Group the runs that were evaluated during training by settings under which scores compare."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        if run.scores:
            # `settings` is the sampler's: models that sample differently still compare
            protocol = {key: value for key, value in run.judge.items() if key not in ("since", "settings")}
            groups.setdefault(json.dumps(protocol, sort_keys=True), []).append(run)
    return list(groups.values())


def evaluation_plots(runs: Sequence[RunRecord]) -> dict[str, list[Plot]]:
    """Return the plots of each group of comparable runs, by the prefix of their file names."""
    groups = comparable_runs(runs)
    return {f"judged-{k}-" if len(groups) > 1 else "judged-": score_plots(group) for k, group in enumerate(groups, 1)}


def evaluation_section(runs: Sequence[RunRecord], first: int) -> tuple[str, Numbers]:
    """Render a section with a table and plots for runs evaluated during training, and return the plots' numbers.

    Empty where there are none.  first: number of the first plot's id.
    """
    parts: list[str] = []
    numbers: Numbers = {}
    groups = comparable_runs(runs)
    for group in groups:
        if len(groups) > 1:
            parts.append(f"<h3>{escape(', '.join(run.name for run in group))}</h3>")
        content, more = figures(score_plots(group), first + len(numbers))
        parts.append(table([escape(run.name) for run in group], evaluation_rows(group)) + content)
        numbers |= more
    meaning = '<p class="quiet">Samples of the EMA weights, beside as many real images.</p>'
    return f"<section><h2>Evaluation during training</h2>{meaning}{''.join(parts)}</section>" if parts else "", numbers


def evaluation_rows(runs: Sequence[RunRecord]) -> Rows:
    """Return rows with the evaluation settings, the best score of each run, and its newest."""
    rows: Rows = [
        ("metric", [str(run.judge.get("frechet_is", NONE)) for run in runs]),
        ("reference", [_reference(run.judge) for run in runs]),
        ("images per evaluation", [_count(run.judge.get("n")) for run in runs]),
        ("sampling", [_settings(run.judge.get("settings")) for run in runs]),
        ("best, kept in best/", [_moment(run, *(run.best or ("", 0))) for run in runs]),
    ]
    for name in ("frechet", "class_accuracy"):
        if any(name in run.scores for run in runs):
            rows.append((f"{TITLES[name]}, newest", [_newest(run, name) for run in runs]))
    return [(what, values) for what, values in rows if set(values) != {NONE}]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NONE


def _reference(judge: dict[str, Any]) -> str:
    found = judge.get("reference")
    if not isinstance(found, dict):
        return NONE
    return f"{_count(found.get('count'))} pictures of {found.get('data')} (data {str(found.get('data_hash'))[:12]})"


def _settings(settings: Any) -> str:
    found = [f"{name} {value}" for name, value in settings.items()] if isinstance(settings, dict) else []
    return ", ".join(found) or NONE


def _moment(run: RunRecord, metric: str, seen: float) -> str:
    """Format a metric of a run, and when it was measured."""
    images, values = run.scores["images"], run.scores.get(metric)
    if values is None or seen not in images:
        return NONE
    value = float(values[images == seen][0])
    return f"{TITLES.get(metric, metric)} {number(value)} after {int(seen):,} images"


def _newest(run: RunRecord, metric: str) -> str:
    """Format the newest value of a metric, beside that of real images."""
    values = run.scores.get(metric, np.array([]))
    there = np.isfinite(values)
    if not there.any():
        return NONE
    value, floors = float(values[there][-1]), run.scores.get(metric + FLOOR)
    floor = float(floors[there][-1]) if floors is not None else 0.0
    return number(value) + (f" ({value / floor:.3g} times that of real pictures, {number(floor)})" if floor else "")


def score_tables(runs: Sequence[RunRecord]) -> str:
    """Render a section with a table for each score in the run folders; nothing where there is none."""
    parts = [_score(run.name + (f", {name}" if name else ""), score) for run in runs for name, score in run.scored]
    return f"<section><h2>Scores</h2>{''.join(parts)}</section>" if any(parts) else ""


def _score(title: str, score: dict[str, Any]) -> str:
    """Render one score like the command; nothing where the file holds something else."""
    from t2i.evaluation.score import lines  # here, since it imports torch, which a report without scores does not need

    try:
        head, *rows = lines({**score, "classes": {}})
        _, *classes = lines({**score, "metrics": {}, "cas": None})
        reference = _reference(score)
        notes = [str(line) for line in score["warnings"]]
        facts = [f"{_count(score['n'])} pictures", f"seed {score['seed']}"]
        settings = _settings(score["subject"].get("settings"))
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""
    how = ", ".join([*facts, settings] if settings != NONE else facts)
    made = f"{how}; against {reference}; t2i {score.get('t2i', NONE)}"
    headers = [escape(name) for name in head[1:]]
    more = table(headers, [(name, cells) for name, *cells in classes]) if classes else ""
    return (
        f'<h3>{escape(title)}</h3><p class="quiet">{escape(made)}</p>'
        + table(headers, [(name, cells) for name, *cells in rows])
        + (f'<ul class="quiet">{"".join(f"<li>{escape(line)}</li>" for line in notes)}</ul>' if notes else "")
        + (f"<details><summary>By class</summary>{more}</details>" if more else "")
    )
