"""Models side by side: what was measured, what it cost, what they draw; as a table, and as a page.

Reads what `t2i.evaluation.comparison` wrote, and the run folders of those that were trained here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from t2i import __version__, files, images
from t2i.errors import T2IError
from t2i.evaluation.measures import MEASURES
from t2i.report.curves import Scale
from t2i.report.facts import NONE, amount, duration, number
from t2i.report.lines import Line, Plot
from t2i.report.page import figures, frame_script, frame_style, table
from t2i.report.runs import Run, read_run

QUALITY = 92  # of WebP
CURVES = {
    "steps": ("sampling steps", "Quality against sampling steps"),
    "guidance": ("guidance", "Quality against guidance"),
}
DRAWN: dict[str, tuple[str, Scale]] = {
    "frechet": ("Frechet distance", "log"),
    "precision": ("precision", "linear"),
    "recall": ("recall", "linear"),
}
NEAREST = "The generated pictures that lie nearest to a real one, by features, above it. Copies would show here."

Rows = list[tuple[str, list[str]]]


def save(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write a comparison's table and page into its own folder, over those of an earlier call."""
    written = {"compare.md": markdown(result), "index.html": page(result, folder, datetime.now(UTC))}
    for name, text in written.items():
        files.write(text.encode(), folder / name, overwrite=True)
    return [folder / name for name in written]


def rows(result: dict[str, Any]) -> Rows:
    """(what, its value for each model): what it is, what it cost, how good it is beside real pictures."""
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
        ("pictures judged", [f"{score['n']:,}" for score in scores]),
    ]
    for name in MEASURES:
        if any(name in score["metrics"] for score in scores):
            found += _metric(name, scores)
    return found


def _metric(name: str, scores: Sequence[dict[str, Any]]) -> Rows:
    """A number's row, and below the distance its ratio; in the last column what real pictures get."""
    title = MEASURES[name][0]
    if name == "frechet":
        title = " or ".join(dict.fromkeys(score["frechet_is"] for score in scores))
    numbers = [score["metrics"].get(name) for score in scores]
    values = [NONE if one is None else _spread(one["value"], one["spread"]) for one in numbers]
    # two, where some draw their classes in turn and others by chance
    floors = dict.fromkeys(_spread(one["floor"], one["floor_spread"]) for one in numbers if one)
    made: Rows = [(title, [*values, " or ".join(floors)])]
    if name == "frechet":
        ratios = [NONE if one is None or one["ratio"] is None else f"{one['ratio']:.2f}" for one in numbers]
        made.append(("  over that of real pictures", [*ratios, "1"]))
    return made


def _spread(value: float | None, spread: float | None) -> str:
    if value is None:
        return NONE
    return number(value) + ("" if spread is None else f" ± {spread:.2g}")


def _plain(value: Any) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def heads(result: dict[str, Any]) -> list[str]:
    """The names of the models, and of the last column."""
    return [*(subject["name"] for subject in result["subjects"]), "real pictures"]


def full(result: dict[str, Any]) -> Rows:
    """The rows, every one with a cell for each head."""
    width = len(heads(result))
    return [(name, [*cells, *[""] * (width - len(cells))]) for name, cells in rows(result)]


def markdown(result: dict[str, Any]) -> str:
    """The table in Markdown, with what was judged against, and the warnings."""
    lines = [f"| | {' | '.join(map(_cell, heads(result)))} |", f"| --- |{' --- |' * len(heads(result))}"]
    lines += [f"| {_cell(name)} | {' | '.join(map(_cell, cells))} |" for name, cells in full(result)]
    return "\n".join([*lines, "", protocol(result), *(f"- {line}" for line in warnings(result))]) + "\n"


def _cell(text: str) -> str:
    return text.strip().replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def terminal(result: dict[str, Any]) -> str:
    """The table as aligned text."""
    lines = [["", *heads(result)], *([name, *cells] for name, cells in full(result))]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    sides = [str.ljust] + [str.rjust] * (len(widths) - 1)
    return "\n".join(
        "  ".join(side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)).rstrip()
        for line in lines
    )


def protocol(result: dict[str, Any]) -> str:
    """One sentence on how it was measured."""
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
    """Every warning, by the name of whom it is about."""
    return [f"{s['name']}: {line}" for s in result["subjects"] for line in s["score"]["warnings"]]


def plots(result: dict[str, Any]) -> list[Plot]:
    """Quality against steps and against guidance: a plot for each number, a line for each model."""
    found = []
    for kind, (across, title) in CURVES.items():
        for metric, (name, scale) in DRAWN.items():
            lines = [
                _line(subject["name"], place, subject["curves"][kind], metric)
                for place, subject in enumerate(result["subjects"])
                if subject["curves"].get(kind)
            ]
            if lines:
                meaning = f"{name.capitalize()} of {result['curve_n']:,} pictures each."
                key, doubling, title_here = f"{kind}-{metric}", kind == "steps", f"{title}: {name}"
                reach = max(float(line.x.max()) for line in lines)
                found.append(Plot(key, title_here, meaning, scale, False, False, lines, reach, across, doubling))
    return found


def _line(name: str, place: int, points: Sequence[dict[str, Any]], metric: str) -> Line:
    x = np.array([float(point["at"]) for point in points])
    y = np.array([float(point["score"]["metrics"][metric]["value"]) for point in points])
    return Line(name, place, x, y, y)


def page(result: dict[str, Any], folder: Path, now: datetime) -> str:
    """The whole comparison as HTML; pictures come from the folder, and stand in the page."""
    frame = Path(__file__).with_name("compare.html").read_text(encoding="utf-8")
    script = frame_script()
    parts = {
        "hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "style": frame_style(),
        "script": script,
        "title": html.escape(", ".join(subject["name"] for subject in result["subjects"])),
        "made": f"{now:%Y-%m-%d %H:%M} UTC, t2i {html.escape(__version__)}",
        "protocol": html.escape(protocol(result)),
        "table": table([html.escape(head) for head in heads(result)], full(result)),
        "warnings": "".join(f"<li>{html.escape(line)}</li>" for line in warnings(result)),
        "curves": _section("Quality and cost of sampling", "", figures(drawn)) if (drawn := plots(result)) else "",
        "grids": _sheets(result, folder, "grid.png", "Pictures of"),
        "closest": _section("Nearest to real pictures", NEAREST, f'<div class="sheets">{closest}</div>')
        if (closest := _sheets(result, folder, "closest.png", "Nearest to real pictures, above them: of"))
        else "",
    }
    return re.sub(r"\{\{([\w-]+)\}\}", lambda match: parts[match[1]], frame)


def _section(title: str, meaning: str, content: str) -> str:
    said = f'<p class="quiet">{meaning}</p>' if meaning else ""
    return f"<section><h2>{title}</h2>{said}{content}</section>"


def _sheets(result: dict[str, Any], folder: Path, file: str, what: str) -> str:
    return "".join(_sheet(folder, subject["name"], file, what) for subject in result["subjects"])


def _sheet(folder: Path, name: str, file: str, what: str) -> str:
    """A picture of the folder as a figure; nothing where it is not there, or cannot be read."""
    try:
        sheet = images.decode(folder / name / file)
    except (T2IError, OSError):
        return ""
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=QUALITY)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    who, alt = html.escape(name), html.escape(f"{what} {name}")
    return (
        f'<figure class="sheet" style="width:min(100%,{sheet.width}px)"><figcaption><b>{who}</b></figcaption>'
        f'<img src="{uri}" alt="{alt}" width="{sheet.width}" height="{sheet.height}"></figure>'
    )


def _run(subject: dict[str, Any]) -> Run | None:
    """The run folder behind a model, where it is one."""
    try:
        return read_run(Path(subject["path"]))
    except (T2IError, OSError):
        return None
