"""Plots by matplotlib: as SVG that takes its colours from the page around it, and as PNG and SVG files.

Figures are made without pyplot: no current figure, no window, and no state after a call.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2i.report.series import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.0, 3.0  # inches of 72 SVG units
DPI = 200  # of a PNG
TEXT = 11.5  # font size of the axes in points; a page shows a plot about as wide as WIDTH
FEW = 30  # rows up to which each is marked by a dot
STYLES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.5)))  # by cycle of colours, for more lines than colours

# Ratio of a log axis's ends (less than the key) -> first digits of its ticks; beyond, powers of ten.
LOG_TICKS = {4: (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8), 10: (1, 1.5, 2, 3, 5, 7), 100: (1, 2, 5), 1000: (1, 3)}


@dataclass(frozen=True)
class Theme:
    """Colours of a plot: text, secondary text, grid, background, and lines in turn."""

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
THEMES = {"": LIGHT, "-dark": DARK}  # by suffix of a file's name

# In a page the colours are CSS variables of the page; matplotlib needs colours, so these stand for them until then.
_PAGE = Theme("#000001", "#000002", "#000003", "none", tuple(f"#00001{k}" for k in range(len(LIGHT.lines))))
_VARIABLES = {_PAGE.ink: "--ink", _PAGE.quiet: "--quiet", _PAGE.grid: "--grid"} | {
    colour: f"--line{k}" for k, colour in enumerate(_PAGE.lines)
}


def inline_svg(plot: Plot, key: str) -> tuple[str, list[float]]:
    """Render an <svg> element for HTML: no header, no reference to anything outside, ids that begin with the key.

    Also returns its frame: left and right edge as parts of the width, and the x values there.
    """
    with _own_style():
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
    """Yield (name, content) of each plot as PNG and SVG, for light and dark backgrounds.

    note: goes into their metadata.
    """
    for plot in plots:
        for ending, theme in THEMES.items():
            with _own_style():
                figure = draw(plot, theme, legend=True)
                made = [(f"{plot.key}{ending}.{kind}", _render(figure, kind, note)) for kind in ("png", "svg")]
            yield from made


def draw(plot: Plot, theme: Theme, legend: bool) -> Figure:
    """Draw a plot as a figure of its own: light the logged values, dark their moving average."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    few = all(len(line.x) <= FEW for line in plot.lines)
    for line in plot.lines if plot.smooth and not few else ():
        axes.plot(line.x, line.y, color=theme.lines[line.place % len(theme.lines)], alpha=0.28, linewidth=0.8)
    for line in plot.lines:
        cycle, k = divmod(line.place, len(theme.lines))
        marks: dict[str, Any] = {"marker": "o", "markersize": 3 if len(line.x) > 1 else 5} if len(line.x) <= FEW else {}
        style = STYLES[cycle % len(STYLES)]
        if line.real:
            style, marks = STYLES[-1], marks if len(line.x) == 1 else {}
        axes.plot(line.x, line.mean, color=theme.lines[k], linewidth=1.6, linestyle=style, **marks)
        if line.best is not None:
            ring: dict[str, Any] = {
                "s": 90,
                "facecolors": "none",
                "edgecolors": theme.lines[k],
                "linewidths": 1.6,
                "zorder": 3,
            }
            axes.scatter([line.best], line.mean[line.x == line.best], **ring)
    _style_axes(axes, plot, theme)
    if legend:
        _add_legend(figure, plot, theme)
    return figure


def _add_legend(figure: Figure, plot: Plot, theme: Theme) -> None:
    """Add a title above, and a legend below."""
    figure.suptitle(plot.title, x=0.02, ha="left", color=theme.ink, fontsize=12.5, parse_math=False)
    labels = [line.label for line in plot.lines]
    columns = max(1, min(len(labels), 52 // (5 + max(map(len, labels)))))
    figure.set_figheight(HEIGHT + 0.21 * (len(labels) // columns))
    legend = figure.legend(
        handles=figure.axes[0].get_lines()[-len(labels) :],
        labels=["line"] * len(labels),
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=10,
        labelcolor=theme.quiet,
        handlelength=1.5,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)  # a run's name is not a formula, and may begin with _, which a legend leaves out
        text.set_text(label)


def _style_axes(axes: Axes, plot: Plot, theme: Theme) -> None:
    """Style the axes with little ink: a horizontal grid, few ticks, no box."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axes.set_xlabel(plot.x_label, color=theme.quiet, fontsize=TEXT)
    if plot.x_label == "images seen":
        axes.set_xlim(0, 1.02 * plot.reach or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    else:
        if plot.doubling:
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({x for line in plot.lines for x in line.x.tolist()})))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count_label(x)))
    if plot.scale == "log":
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(_log_ticks(high / low))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if plot.zero:
            axes.set_ylim(bottom=0, top=1.1 * max(line.y.max() for line in plot.lines) or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: tick_label(y)))
    axes.grid(True, axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=theme.quiet, labelsize=TEXT)
    axes.tick_params(axis="x", pad=6)  # else the first number touches the lowest one of the y axis
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)


def _log_ticks(ratio: float) -> Any:
    """Return a locator for a log axis: about five ticks, of few digits, whatever its range."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if ratio < 1.6:
        return MaxNLocator(5)
    for most, digits in LOG_TICKS.items():
        if ratio < most:
            return LogLocator(subs=digits)
    return LogLocator(numticks=6)


def tick_label(number: float) -> str:
    """Format four significant digits, without an exponent where possible: 0.00005, 1e-06."""
    return f"{number:.8f}".rstrip("0") if 1e-5 <= abs(number) < 1e-4 else f"{number:.4g}"


def count_label(number: float) -> str:
    """Format a number of images on an axis: 4.2k, 620k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:g}"


def _render(figure: Figure, kind: str, note: str = "") -> bytes:
    """Return the figure's bytes, the same for the same figure: no date, no random ids; text stays text."""
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Software": note} if kind == "png" else {"Date": None, "Creator": note or None}
    with warnings.catch_warnings():
        # a run's name may be in a script that matplotlib's font does not have
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=kind, dpi=DPI if kind == "png" else 72, metadata=metadata)
    return buffer.getvalue()


@contextmanager
def _own_style() -> Iterator[None]:
    """Ignore the user's matplotlibrc, and keep text in an SVG as text."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "t2i", "svg.fonttype": "none"})
        yield
