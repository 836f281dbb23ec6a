"""From the columns of runs to the lines of plots: frames, moving averages, no more points than one can see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t2i.report.curves import Curve, Scale, curves_of
from t2i.report.runs import Run

POINTS = 600  # of a line; a longer log is averaged in groups, for a picture has no more pixels
HALF_LIFE = 0.01  # of the moving average, as a part of the images shown


@dataclass(frozen=True)
class Line:
    """A column of a run.  x: images seen.  y: as logged.  mean: the moving average of y.

    label: what tells it from the others in its frame.  place: which colour it has, the same for a run in every frame.
    """

    label: str
    place: int
    x: np.ndarray
    y: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class Plot:
    """What is drawn into one frame.  key: a name for files, unique within a report.

    reach: its right edge; of curves over images seen the same for all plots of a family, to be read across.
    """

    key: str
    title: str
    meaning: str
    scale: Scale
    smooth: bool
    zero: bool
    lines: list[Line]
    reach: float
    across: str = "images seen"
    doubling: bool = False  # whether the axis across grows by doubling


def plots(runs: Sequence[Run]) -> list[Plot]:
    """All plots of runs of one family: one run's columns share a frame, several runs share one frame per column."""
    found: list[Plot] = []
    names = [_names(run) for run in runs]
    reach = max((float(table["images"][-1]) for run in runs for table in (run.log, run.evaluation) if table), default=0)
    for curve in curves_of(runs[0].family, {name for some in names for name in some}):
        columns = [column for column in curve.columns if any(column in some for some in names)]
        if len(runs) == 1 and columns:
            lines = [_line(runs[0], column, curve, curve.columns[column], k) for k, column in enumerate(columns)]
            found.append(_plot(curve, curve.title, lines, reach))
        elif len(runs) > 1:
            for column in columns:
                title = curve.title + (f": {curve.columns[column]}" if len(columns) > 1 else "")
                having = [(k, run) for k, run in enumerate(runs) if column in names[k]]
                lines = [_line(run, column, curve, run.name, k) for k, run in having]
                found.append(_plot(curve, title, lines, reach))
    return found


def _names(run: Run) -> list[str]:
    """The run's columns that hold at least one number, as curves call them."""
    log = [name for name, values in run.log.items() if np.isfinite(values).any()]
    evaluation = [f"evaluation/{name}" for name, values in run.evaluation.items() if np.isfinite(values).any()]
    return [name for name in log + evaluation if name.rpartition("/")[2] != "images"]


def _line(run: Run, column: str, curve: Curve, label: str, place: int) -> Line:
    measured = column.startswith("evaluation/")
    table = run.evaluation if measured else run.log
    y = table[column.removeprefix("evaluation/")]
    there = np.isfinite(y)
    x, y = table["images"][there], y[there]
    mean = moving_average(x, y) if curve.smooth and not measured else y
    return Line(label, place, thin(x), thin(y), thin(mean))


def moving_average(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Exponential, over images seen rather than rows, without a bias at the start.  x, y: (N,).

    A row that is `HALF_LIFE` of the range older than another weighs half as much.
    """
    span = HALF_LIFE * float(x[-1] - x[0]) if len(x) else 0.0
    total = weight = 0.0
    mean = np.empty_like(y)
    for k in range(len(y)):
        keep = 0.5 ** ((x[k] - x[k - 1]) / span) if k and span > 0 else 0.0
        total, weight = keep * total + y[k], keep * weight + 1
        mean[k] = total / weight
    return mean


def thin(values: np.ndarray) -> np.ndarray:
    """At most POINTS numbers, each the mean of a group of neighbours; fewer stay as they are."""
    group = -(-len(values) // POINTS)
    return (
        values if group <= 1 else np.array([part.mean() for part in np.split(values, range(group, len(values), group))])
    )


def _plot(curve: Curve, title: str, lines: list[Line], reach: float) -> Plot:
    positive = all((line.y > 0).all() for line in lines)
    key = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
    scale = curve.scale if positive else "linear"
    return Plot(key, title, curve.meaning, scale, curve.smooth, curve.zero, lines, reach)
