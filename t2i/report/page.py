"""The report: one page that needs nothing else. Its frame is page.html; what comes from runs is escaped here.

The page forbids itself the network, and any script but its own (whose hash it carries), by a Content-Security-Policy.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from t2i.report.html_parts import Numbers, figures, json_data, swatch, table
from t2i.report.plots import DARK, LIGHT, Theme
from t2i.report.runs import Run
from t2i.report.samples import SampleImage, pictures
from t2i.report.scores import along_training, score_tables
from t2i.report.series import HALF_LIFE, plots
from t2i.report.summary_rows import (
    Rows,
    config_rows,
    config_text,
    environment_rows,
    metric_rows,
    summary_rows,
    warning_lines,
)
from t2i.version import __version__


def build(runs: Sequence[Run], now: datetime) -> str:
    """The whole page for these runs, as HTML."""
    families = {
        family: [run for run in runs if run.family == family] for family in dict.fromkeys(r.family for r in runs)
    }
    frame = _frame()
    script = frame_script()
    curves, numbers = _curves(families)
    judged, more = along_training(runs, len(numbers) + 1)
    parts = {
        "hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "marker": marker(runs),
        "light": _variables(LIGHT),
        "dark": _variables(DARK),
        "title": escape(", ".join(run.name for run in runs)),
        "made": f"{now:%Y-%m-%d %H:%M} UTC, t2i {escape(__version__)}",
        "half-life": f"{100 * HALF_LIFE:g}\u00a0%",
        "runs": _summary(runs, families) + _warnings(runs),
        "curves": curves + json_data("curves", numbers | more),
        "judged": judged + score_tables(runs),
        "samples": _samples(runs),
        "metrics": _section("Metrics", metric_rows(runs), runs) + _confusions(runs),
        "config": _config(families),
        "environment": _environment(runs),
    }
    return re.sub(r"\{\{([\w-]+)\}\}", lambda match: parts[match[1]], frame)


def _frame() -> str:
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def frame_script() -> str:
    """The page's only script, which reads plots and samples out."""
    script = re.search("<script>(.*?)</script>", _frame(), re.DOTALL)
    assert script is not None
    return script[1]


def frame_style() -> str:
    """The page's style sheet, with its colours."""
    style = re.search("<style>(.*?)</style>", _frame(), re.DOTALL)
    assert style is not None
    return style[1].replace("{{light}}", _variables(LIGHT)).replace("{{dark}}", _variables(DARK))


def marker(runs: Sequence[Run]) -> str:
    """What a report, page or plot, says it is about: the names of its runs, the same text in HTML, SVG and PNG."""
    names = json.dumps([run.name for run in runs])
    return "t2i report on " + re.sub("[<>&']", lambda match: f"\\u{ord(match[0]):04x}", names)


def _variables(theme: Theme) -> str:
    lines = "".join(f"--line{k}:{colour};" for k, colour in enumerate(theme.lines))
    return f"--ink:{theme.ink};--quiet:{theme.quiet};--grid:{theme.grid};--paper:{theme.paper};{lines}"


def _summary(runs: Sequence[Run], families: dict[str, list[Run]]) -> str:
    rows = summary_rows(runs)
    if len(runs) == 1:
        facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, (value,) in rows)
        return f'<dl class="facts">{facts}</dl>'
    places = [families[run.family].index(run) if len(families[run.family]) > 1 else None for run in runs]
    heads = [("" if k is None else swatch(k)) + escape(run.name) for k, run in zip(places, runs, strict=True)]
    return table(heads, rows)


def _warnings(runs: Sequence[Run]) -> str:
    """What was said of runs that go wrong; nothing where all is well."""
    lines = [(run, line) for run in runs for line in warning_lines(run)]
    items = "".join(f"<li><b>{escape(run.name)}</b>: {escape(line)}</li>" for run, line in lines)
    return f'<ul class="warnings" aria-label="Warnings">{items}</ul>' if lines else ""


def _curves(families: dict[str, list[Run]]) -> tuple[str, Numbers]:
    """The plots of each family, and their numbers for the script."""
    parts: list[str] = []
    numbers: Numbers = {}
    for family, runs in families.items():
        if len(families) > 1:
            parts.append(f"<h3>{escape(family)}</h3>")
        drawn, more = figures(plots(runs), len(numbers) + 1)
        parts.append(drawn or "<p>Nothing is logged yet.</p>")
        numbers |= more
    return "".join(parts), numbers


def _samples(runs: Sequence[Run]) -> str:
    """The newest sheet of each run, and all of them as JSON for the slider."""
    shown = [(run, found) for run in runs if (found := pictures(run))]
    if not shown:
        return "<p>There are no samples.</p>"
    stops = sorted({picture.images for _, found in shown for picture in found})
    top, disabled = len(stops) - 1, " disabled" if len(stops) == 1 else ""
    slider = (
        f'<label class="slider"><span>After <output id="stop">{stops[-1]:,}</output> images</span>'
        f'<input id="slider" type="range" min="0" max="{top}" step="1" value="{top}"{disabled}'
        f' aria-label="Images seen" aria-valuetext="{stops[-1]:,} images"></label>'
    )
    sheets = "".join(_sheet(k, run, found[-1]) for k, (run, found) in enumerate(shown))
    data = {
        "stops": stops,
        "runs": [
            {"name": run.name, "images": [p.images for p in found], "uris": [p.uri for p in found]}
            for run, found in shown
        ],
    }
    return f'{slider}<div class="sheets">{sheets}</div>' + json_data("samples", data)


def _sheet(k: int, run: Run, picture: SampleImage) -> str:
    alt = f"Samples of {run.name} after {picture.images:,} images"
    return (
        f'<figure class="sheet" style="width:min(100%,{picture.shown}px)"><figcaption><b>{escape(run.name)}</b>'
        f' <span id="at{k}">{picture.images:,} images</span></figcaption>'
        f'<img id="sheet{k}" src="{picture.uri}" alt="{escape(alt)}"'
        f' width="{picture.width}" height="{picture.height}"></figure>'
    )


def _config(families: dict[str, list[Run]]) -> str:
    parts = []
    for family, some in families.items():
        if len(some) > 1 and (rows := config_rows(some)):
            parts.append(f"<h3>What differs{f' ({escape(family)})' if len(families) > 1 else ''}</h3>")
            parts.append(table([escape(run.name) for run in some], rows))
        for run in some:
            text = f"<pre>{escape(config_text(run))}</pre>"
            parts.append(f"<details><summary>{escape(run.name)}: the whole config</summary>{text}</details>")
    return "".join(parts)


def _environment(runs: Sequence[Run]) -> str:
    heads, rows = environment_rows(runs)
    return table([escape(head) for head in heads], rows) if rows else "<p>Not recorded.</p>"


def _section(title: str, rows: Rows, runs: Sequence[Run]) -> str:
    return f"<section><h2>{title}</h2>{table([escape(run.name) for run in runs], rows)}</section>" if rows else ""


def _confusions(runs: Sequence[Run]) -> str:
    """What classifiers answer, class by class, as parts of the images of each true class."""
    parts = []
    for run in runs:
        for question, (classes, counts) in run.confusions.items():
            head = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
            rows = "".join(
                f'<tr><th scope="row">{escape(name)}</th>{"".join(_share(n, sum(row)) for n in row)}</tr>'
                for name, row in zip(classes, counts, strict=True)
            )
            table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"
            title = escape(f"{run.name}, {question}" if question else run.name)
            parts.append(f'<h3>{title}</h3><div class="wide confusion" tabindex="0">{table}</div>')
    meaning = (
        '<p class="quiet">Of the held-out images of a class (row), how many of 100 were taken for which (column).</p>'
    )
    return f"<section><h2>Answers by class</h2>{meaning}{''.join(parts)}</section>" if parts else ""


def _share(count: int, total: int) -> str:
    """A cell of a confusion matrix, the darker the more."""
    part = count / total if total else 0.0
    text = f"{100 * part:.1f}" if count else ""
    return f'<td style="--share:{100 * part:.1f}%">{text}</td>'
