"""Plots by matplotlib: as SVG that takes its colours from the page it stands in, and as PNG and SVG files.

Figures are made by hand, without pyplot: there is no current figure, no window, and nothing that outlives a call.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from t2i.report.lines import Line, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.0, 3.0  # inches of 72 SVG units
DPI = 200  # of a PNG
FEW = 30  # rows up to which each is marked by a dot
STYLES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.5)))  # of lines for which no colour is left


@dataclass(frozen=True)
class Theme:
    """Colours of a plot: of text, of quieter text, of the grid, of the ground, and of lines in turn."""

    ink: str
    quiet: str
    grid: str
    paper: str
    lines: tuple[str, ...]


LIGHT = Theme(
    "#1d2127", "#5c6570", "#e4e7eb", "#ffffff", ("#1663b0", "#c2500f", "#187a55", "#8543b5", "#94700a", "#5a6672")
)
DARK = Theme(
    "#e7eaee", "#9aa4b0", "#2d333b", "#15181c", ("#6db3f7", "#f59a66", "#5cc79c", "#c79df3", "#dcb84c", "#a6b1bd")
)
THEMES = {"": LIGHT, "-dark": DARK}  # by what is added to a file's name

# In a page colours are the page's own, by CSS variable: these stand for them while matplotlib draws.
_PAGE = Theme("#000001", "#000002", "#000003", "none", tuple(f"#00001{k}" for k in range(len(LIGHT.lines))))
_VARIABLES = {_PAGE.ink: "--ink", _PAGE.quiet: "--quiet", _PAGE.grid: "--grid"} | {
    colour: f"--line{k}" for k, colour in enumerate(_PAGE.lines)
}


def inline_svg(plot: Plot, key: str) -> tuple[str, list[float]]:
    """An <svg> element for HTML: no header, no address of anything, ids that begin with the key.

    Also the frame within it: left and right edge as parts of its width, and the images seen that stand there.
    """
    figure = draw(plot, _PAGE, legend=False)
    svg = _render(figure, "svg").decode()
    frame = figure.axes[0].get_position()  # after drawing, which lays out
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    svg = re.sub("#0000[01][0-9]", lambda match: f"var({_VARIABLES[match[0]]})", svg).strip()
    return svg, [frame.x0, frame.x1, *figure.axes[0].get_xlim()]


def render_all(plots: Sequence[Plot], note: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each plot as PNG and SVG, for light ground and for dark.  note: goes into their metadata."""
    for plot in plots:
        for ending, theme in THEMES.items():
            figure = draw(plot, theme, legend=True)
            for kind in ("png", "svg"):
                yield f"{plot.key}{ending}.{kind}", _render(figure, kind, note)


def draw(plot: Plot, theme: Theme, legend: bool) -> Figure:
    """The plot as a figure of its own: faint what was logged, strong its moving average."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    for line in plot.lines:
        turn, k = divmod(line.place, len(theme.lines))
        _draw_line(axes, line, theme.lines[k], STYLES[turn % len(STYLES)], plot.smooth)
    _dress(axes, plot, theme)
    if legend:
        figure.suptitle(plot.title, x=0.02, ha="left", color=theme.ink, fontsize=11)
        if len(plot.lines) > 1 or plot.lines[0].label != plot.title:
            columns = max(1, min(len(plot.lines), 60 // max(len(line.label) + 4 for line in plot.lines)))
            figure.legend(
                loc="outside lower left",
                ncols=columns,
                frameon=False,
                fontsize=8,
                labelcolor=theme.quiet,
                handlelength=1.5,
            )
    return figure


def _draw_line(axes: Axes, line: Line, colour: str, style: Any, smooth: bool) -> None:
    few = len(line.x) <= FEW
    if smooth and not few and not np.array_equal(line.y, line.mean):
        axes.plot(line.x, line.y, color=colour, alpha=0.28, linewidth=0.8)
    marks: dict[str, Any] = {"marker": "o", "markersize": 3} if few else {}
    axes.plot(line.x, line.mean, color=colour, linewidth=1.6, linestyle=style, label=line.label, **marks)


def _dress(axes: Axes, plot: Plot, theme: Theme) -> None:
    """Axes as quiet as they can be: a grid across, numbers one can read, nothing around."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.set_xlabel("images seen", color=theme.quiet, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    if plot.scale == "log":
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(_log_ticks(high / low))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4g}"))
    axes.grid(True, axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=theme.quiet, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)


def _log_ticks(ratio: float) -> Any:
    """Where a log axis has numbers: about five, of few digits, however far it reaches."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if ratio < 1.6:
        return MaxNLocator(5)
    if ratio < 1e3:
        return LogLocator(
            subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if ratio < 10 else (1.0, 2.0, 5.0) if ratio < 100 else (1.0, 3.0)
        )
    return LogLocator(numticks=6)


def short(number: float) -> str:
    """4.2k, 620k, 1.5M: a number of images on an axis."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:g}"


def _render(figure: Figure, kind: str, note: str = "") -> bytes:
    """The figure's bytes, the same for the same figure: no date, no random ids; text stays text."""
    import matplotlib

    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Software": note} if kind == "png" else {"Date": None, "Creator": note or None}
    with matplotlib.rc_context({"svg.hashsalt": "t2i", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=kind, dpi=DPI if kind == "png" else 72, metadata=metadata)
    return buffer.getvalue()
