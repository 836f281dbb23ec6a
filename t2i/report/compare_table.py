"""The comparison table: size, cost and quality of each model, beside real images."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2i.errors import T2IError
from t2i.evaluation.metric_table import METRICS
from t2i.report.runs import RunRecord, part, read_run
from t2i.report.summary_rows import NONE, Rows, amount, duration, number


def rows(result: dict[str, Any]) -> Rows:
    """Return (label, its value for each model): size, cost, and quality beside real images."""
    subjects = result["subjects"]
    runs = [_run(subject) for subject in subjects]
    scores = [subject["score"] for subject in subjects]
    settings = [score["subject"].get("settings", {}) for score in scores]
    found: Rows = [
        ("family", [NONE if run is None else run.family for run in runs]),
        ("parameters", [NONE if run is None else amount(run.parameters) for run in runs]),
        ("images seen", [NONE if run is None else f"{run.images_seen:,}" for run in runs]),
        ("training time", [NONE if run is None else duration(run.seconds) for run in runs]),
        ("sampling steps", [_plain(some.get("steps")) for some in settings]),
        ("guidance", [_plain(some.get("guidance")) for some in settings]),
        ("images/s", [number(score.get("images_per_second") or math.nan) for score in scores]),
        ("images evaluated", [f"{score['n']:,}" for score in scores]),
    ]
    for name in METRICS:
        if any(name in score["metrics"] for score in scores):
            found += _metric(name, scores)
    prompts = [score.get("prompts", {}) for score in scores]
    for name in dict.fromkeys(name for some in prompts for name in some):
        values = [some[name]["value"] if name in some else math.nan for some in prompts]
        floor = next(some[name]["floor"] for some in prompts if name in some)
        found.append((f"prompt accuracy: {name}", [*map(number, values), NONE if floor is None else number(floor)]))
    if any(score.get("clip_score") for score in scores):
        clips = [score.get("clip_score") or {"value": None, "spread": None} for score in scores]
        found.append(("CLIPScore", [_spread(one["value"], one["spread"]) for one in clips]))
    return found


def _metric(name: str, scores: Sequence[dict[str, Any]]) -> Rows:
    """Return a metric's row, and below the distance its ratio; the last column is real images."""
    title = METRICS[name][0]
    if name == "frechet":
        title = " or ".join(dict.fromkeys(score["frechet_is"] for score in scores))
    numbers = [score["metrics"].get(name) for score in scores]
    values = [NONE if one is None else _spread(one["value"], one["spread"]) for one in numbers]
    # two, where some models sample their classes in turn and others by chance
    floors = dict.fromkeys(_spread(one["floor"], one["floor_spread"]) for one in numbers if one)
    made: Rows = [(title, [*values, " or ".join(floors)])]
    if name == "frechet":
        ratios = [NONE if one is None or one["ratio"] is None else f"{one['ratio']:.2f}" for one in numbers]
        made.append(("  ratio to real pictures", [*ratios, "1"]))
    return made


def _spread(value: float | None, spread: float | None) -> str:
    if value is None:
        return NONE
    return number(value) + ("" if spread is None else f" ± {number(spread, 2)}")


def _plain(value: Any) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def headers(result: dict[str, Any]) -> list[str]:
    """Return the names of the models, and of the last column."""
    return [*(subject["name"] for subject in result["subjects"]), "real pictures"]


def full_rows(result: dict[str, Any]) -> Rows:
    """Return the rows, each with a cell for every header."""
    width = len(headers(result))
    return [(name, [*cells, *[""] * (width - len(cells))]) for name, cells in rows(result)]


def markdown(result: dict[str, Any]) -> str:
    """Return the table in Markdown, with the protocol and the warnings."""
    lines = [f"| | {' | '.join(map(_cell, headers(result)))} |", f"| --- |{' --- |' * len(headers(result))}"]
    lines += [f"| {_cell(name)} | {' | '.join(map(_cell, cells))} |" for name, cells in full_rows(result)]
    return "\n".join([*lines, "", protocol(result), *(f"- {line}" for line in warnings(result))]) + "\n"


def _cell(text: str) -> str:
    return text.strip().replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def terminal(result: dict[str, Any]) -> str:
    """Return the table as aligned text."""
    lines = [["", *headers(result)], *([name, *cells] for name, cells in full_rows(result))]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    sides = [str.ljust] + [str.rjust] * (len(widths) - 1)
    return "\n".join(
        "  ".join(side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)).rstrip()
        for line in lines
    )


def protocol(result: dict[str, Any]) -> str:
    """Describe in two sentences how the models were evaluated."""
    score = result["subjects"][0]["score"]
    reference, floor = score["reference"], score["floor"]
    coded = " and ".join(reference["formats"])
    return (
        f"{result['n']:,} pictures each, seed {result['seed']}, by {score['extractor']['name']}"
        f"@{score['extractor']['hash'][:8]}, against {reference['count']:,} pictures of {reference['data']} ({coded}; "
        f"data {reference['data_hash'][:12]}). Real pictures: {floor['draws']} draws of {floor['n']:,}"
        " against the others."
    )


def warnings(result: dict[str, Any]) -> list[str]:
    """Return every warning once, after the names of the models that it is about."""
    about: dict[str, list[str]] = {}
    for subject in result["subjects"]:
        for line in subject["score"]["warnings"]:
            about.setdefault(line, []).append(subject["name"])
    return [f"{', '.join(names)}: {line}" for line, names in about.items()]


def _run(subject: dict[str, Any]) -> RunRecord | None:
    """Return the run of a model, where there is one; for weights kept as best, its log up to that moment."""
    path = Path(subject["path"]).resolve()
    try:
        if path.name not in ("best", "export"):
            return read_run(path)
        run = read_run(path.parent)
        if path.name == "export":
            return run
        # the cost of the best weights is that of the images they had seen, not of the whole run
        seen = json.loads((path / "best.json").read_text(encoding="utf-8"))["images_seen"]
        return replace(run, log=part(run.log, last=seen))
    except (T2IError, OSError, ValueError, TypeError, KeyError):
        return None
