"""Models side by side as a page: the table, quality and speed against how they are drawn with, pictures.

Reads what `t2i.evaluation.comparison` wrote, and the run folders of those that were trained here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from t2i import atomic
from t2i.errors import T2IError
from t2i.imaging import images
from t2i.report.compare_table import full, heads, markdown, protocol, warnings
from t2i.report.curve_specs import Scale
from t2i.report.html_parts import figures, json_data, table
from t2i.report.page import frame_script, frame_style
from t2i.report.series import Line, Plot
from t2i.version import __version__

QUALITY = 92  # of WebP
CURVES = {"steps": "sampling steps", "guidance": "guidance"}
DRAWN: dict[str, tuple[str, str, Scale]] = {
    "frechet": ("Frechet distance", "Lower is better.", "log"),
    "precision": ("Precision", "The share of pictures that lie among real ones.", "linear"),
    "recall": ("Recall", "The share of real pictures that lie among these.", "linear"),
    "images_per_second": ("Images per second", "As drawn here, all processes together.", "log"),
}
NEAREST = "The generated pictures that lie nearest to a real one, by features, above it. Copies would show here."


def save(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write a comparison's table and page into its own folder, over those of an earlier call."""
    written = {"compare.md": markdown(result), "index.html": page(result, folder, datetime.now(UTC))}
    for name, text in written.items():
        atomic.write(text.encode(), folder / name, overwrite=True)
    return [folder / name for name in written]


def plots(result: dict[str, Any]) -> list[Plot]:
    """Quality and speed against steps and guidance: a plot for each number, a line for each model."""
    found = []
    for kind, across in CURVES.items():
        for metric, (name, meaning, scale) in DRAWN.items():
            lines = [
                _line(subject["name"], place, subject["curves"][kind], metric)
                for place, subject in enumerate(result["subjects"])
                if subject["curves"].get(kind)
            ]
            if lines:
                reach = max(float(line.x.max()) for line in lines)
                floors = _floors(result, kind, metric, [min(float(line.x.min()) for line in lines), reach])
                said = f"{meaning} {result['curve_n']:,} pictures each." + (
                    " Dotted: as many real ones." if floors else ""
                )
                title = f"{name} against {across}"
                doubling = kind == "steps"
                key = f"{kind}-{metric}"
                found.append(Plot(key, title, said, scale, False, False, [*lines, *floors], reach, across, doubling))
    return found


def _line(name: str, place: int, points: Sequence[dict[str, Any]], metric: str) -> Line:
    x = np.array([float(point["at"]) for point in points])
    scores = [point["score"] for point in points]
    speed = metric == "images_per_second"
    y = np.array([float(score[metric] if speed else score["metrics"][metric]["value"]) for score in scores])
    return Line(name, place, x, y, y)


def _floors(result: dict[str, Any], kind: str, metric: str, ends: list[float]) -> list[Line]:
    """What real pictures get: one line, or two where some models draw their classes in turn and others by chance."""
    points = [point["score"] for subject in result["subjects"] for point in subject["curves"].get(kind, ())]
    values = {score["metrics"].get(metric, {}).get("floor") for score in points} - {None}
    x = np.array(ends)
    return [Line("real pictures", -1, x, np.full(2, value), np.full(2, value), real=True) for value in sorted(values)]


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
        "curves": _curves(plots(result)),
        "grids": _sheets(result, folder, "grid.png", "Pictures of"),
        "closest": _section("Nearest to real pictures", NEAREST, f'<div class="sheets">{closest}</div>')
        if (closest := _sheets(result, folder, "closest.png", "Nearest to real pictures, above them: of"))
        else "",
    }
    return re.sub(r"\{\{([\w-]+)\}\}", lambda match: parts[match[1]], frame)


def _curves(drawn: list[Plot]) -> str:
    if not drawn:
        return ""
    content, numbers = figures(drawn)
    return _section("Quality and cost of sampling", "", content + json_data("curves", numbers))


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
