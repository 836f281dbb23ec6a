"""How good a run's pictures are: judged along training, and by `t2i eval score` into the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from t2i.report.curve_specs import FLOOR, SCORES
from t2i.report.html_parts import Numbers, figures, table
from t2i.report.runs import Run
from t2i.report.series import Plot, score_plots
from t2i.report.summary_rows import NONE, Rows, number

# What a number is called in a sentence; `generated` is a label that says no more than the curve's title.
TITLES = {
    column.removeprefix("scores/"): curve.title if label == "generated" else label
    for curve in SCORES
    for column, label in curve.columns.items()
}


def alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that were judged along training, those together whose numbers compare."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.scores:
            what = {key: value for key, value in run.judge.items() if key not in ("since", "settings")}
            groups.setdefault(json.dumps(what, sort_keys=True), []).append(run)
    return list(groups.values())


def judged_plots(runs: Sequence[Run]) -> dict[str, list[Plot]]:
    """The plots of all runs that compare, by what their files' names begin with."""
    groups = alike(runs)
    return {f"judged-{k}-" if len(groups) > 1 else "judged-": score_plots(group) for k, group in enumerate(groups, 1)}


def along_training(runs: Sequence[Run], first: int) -> tuple[str, Numbers]:
    """A section with a table and plots, of runs that were judged as they learned, and the plots' numbers; or nothing.

    first: of the plots' ids.
    """
    parts: list[str] = []
    numbers: Numbers = {}
    groups = alike(runs)
    for group in groups:
        if len(groups) > 1:
            parts.append(f"<h3>{escape(', '.join(run.name for run in group))}</h3>")
        drawn, more = figures(score_plots(group), first + len(numbers))
        parts.append(table([escape(run.name) for run in group], judged_rows(group)) + drawn)
        numbers |= more
    meaning = '<p class="quiet">What the averaged weights drew along the way, beside as many real pictures.</p>'
    return f"<section><h2>Judged along training</h2>{meaning}{''.join(parts)}</section>" if parts else "", numbers


def judged_rows(runs: Sequence[Run]) -> Rows:
    """By what runs were judged, how good their best moment was, and how good the newest is."""
    rows: Rows = [
        ("judge", [str(run.judge.get("frechet_is", NONE)) for run in runs]),
        ("against", [_reference(run.judge) for run in runs]),
        ("pictures each time", [_count(run.judge.get("n")) for run in runs]),
        ("drawn with", [_settings(run.judge.get("settings")) for run in runs]),
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


def _moment(run: Run, metric: str, seen: float) -> str:
    """A number of a run, and when."""
    images, values = run.scores["images"], run.scores.get(metric)
    if values is None or seen not in images:
        return NONE
    value = float(values[images == seen][0])
    return f"{TITLES.get(metric, metric)} {number(value)} after {int(seen):,} images"


def _newest(run: Run, metric: str) -> str:
    """A number of a run, beside what real pictures get."""
    values = run.scores.get(metric, np.array([]))
    there = np.isfinite(values)
    if not there.any():
        return NONE
    value, floors = float(values[there][-1]), run.scores.get(metric + FLOOR)
    floor = float(floors[there][-1]) if floors is not None else 0.0
    return number(value) + (f" ({value / floor:.3g} times that of real pictures, {number(floor)})" if floor else "")


def score_tables(runs: Sequence[Run]) -> str:
    """A section with a table for each score in the run folders; nothing where there is none."""
    parts = [_score(run.name + (f", {name}" if name else ""), score) for run in runs for name, score in run.scored]
    return f"<section><h2>Scores</h2>{''.join(parts)}</section>" if any(parts) else ""


def _score(title: str, score: dict[str, Any]) -> str:
    """One score as the command shows it; nothing where the file holds something else."""
    from t2i.evaluation.score import lines  # and torch with it, which a report without scores does without

    try:
        head, *rows = lines({**score, "classes": {}})
        _, *classes = lines({**score, "metrics": {}, "cas": None})
        reference = _reference(score)
        said = [str(line) for line in score["warnings"]]
        facts = [f"{_count(score['n'])} pictures", f"seed {score['seed']}"]
        settings = _settings(score["subject"].get("settings"))
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""
    how = ", ".join([*facts, settings] if settings != NONE else facts)
    made = f"{how}; against {reference}; t2i {score.get('t2i', NONE)}"
    heads = [escape(name) for name in head[1:]]
    more = table(heads, [(name, cells) for name, *cells in classes]) if classes else ""
    return (
        f'<h3>{escape(title)}</h3><p class="quiet">{escape(made)}</p>'
        + table(heads, [(name, cells) for name, *cells in rows])
        + (f'<ul class="quiet">{"".join(f"<li>{escape(line)}</li>" for line in said)}</ul>' if said else "")
        + (f"<details><summary>Class by class</summary>{more}</details>" if more else "")
    )
