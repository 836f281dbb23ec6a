"""HTML fragments: plots with their legends, tables, data for the script. Text from runs is escaped here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from t2i.report.plots import LIGHT, inline_svg
from t2i.report.series import Line, Plot
from t2i.report.summary_rows import Rows, number

Numbers = dict[str, dict[str, Any]]  # figure id -> the values that the script shows under the pointer


def figures(plots: Sequence[Plot], first: int = 1) -> tuple[str, Numbers]:
    """Render plots as figures with ids from plot`first` on, and return their numbers for the script."""
    parts: list[str] = []
    numbers: Numbers = {}
    for place, plot in enumerate(plots, first):
        key = f"plot{place}"
        svg, frame = inline_svg(plot, key)
        facts = {"title": plot.title, "x_label": plot.x_label, "doubling": plot.doubling, "frame": frame}
        numbers[key] = facts | {"lines": [_line(line) for line in plot.lines]}
        parts.append(_figure(plot, key, svg))
    return f'<div class="plots">{"".join(parts)}</div>' if parts else "", numbers


def _line(line: Line) -> dict[str, Any]:
    columns = {"x": line.x, "y": line.y, "mean": line.mean}
    return {"label": line.label} | {name: [float(f"{v:.6g}") for v in values] for name, values in columns.items()}


def _figure(plot: Plot, key: str, svg: str) -> str:
    legend = "".join(
        f"<li>{swatch(line)}{escape(line.label)} <b>{escape(number(line.mean[-1]))}</b></li>" for line in plot.lines
    )
    svg = svg.replace("<svg", f'<svg role="img" aria-labelledby="{key}-title {key}-meaning"', 1)
    return (
        f'<figure id="{key}"><figcaption><h4 id="{key}-title">{escape(plot.title)}</h4>'
        f'<p id="{key}-meaning">{escape(plot.meaning)}</p></figcaption>'
        f'<ul class="legend">{legend}</ul><div class="frame">{svg}<i hidden></i></div></figure>'
    )


def swatch(line: Line | int) -> str:
    """Return the colour sample of a line, a ring for one of real images; or that of a run."""
    place, real = (line, False) if isinstance(line, int) else (line.place, line.real)
    colour = f"var(--line{place % len(LIGHT.lines)})"
    style = f"border:2px solid {colour}" if real else f"background:{colour}"
    return f'<span class="swatch" style="{style}"></span>'


def table(headers: Iterable[str], rows: Rows) -> str:
    """Render a table.  headers: HTML.  rows: text, escaped here.

    It scrolls by itself where it is wider than the screen.
    """
    head = "".join(f'<th scope="col">{name}</th>' for name in headers)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(value)}</td>" for value in values)}</tr>'
        for name, values in rows
    )
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>'  # the tabindex lets the keyboard scroll it


def json_data(name: str, data: Any) -> str:
    """Embed data for the script; no text in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'
