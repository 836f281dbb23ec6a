"""From log columns to plot series: frames, moving averages, and no more points than a plot can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from t2i.report.curve_specs import FLOOR, Curve, Scale, curves_of, score_curves
from t2i.report.runs import Columns, RunRecord

POINTS = 600  # of a line; a longer log is averaged in groups, since a plot has no more pixels
HALF_LIFE = 0.01  # of the moving average, as a part of the images shown


@dataclass(frozen=True)
class Line:
    """One column of a run.  x: images seen.  y: as logged.  mean: the moving average of y.

    label: name in the legend.  place: number of its colour, the same for a run in every plot.
    real: it shows real images, and is dotted.  best: x of a ring, at the weights that were kept as best.
    """

    label: str
    place: int
    x: np.ndarray
    y: np.ndarray
    mean: np.ndarray
    real: bool = False
    best: float | None = None


@dataclass(frozen=True)
class Plot:
    """One frame with its lines.  key: a name for files, unique within a report.

    reach: the right edge of curves over images seen, the same for all plots of a family, so that they line up.
    x_label: of the x axis; if it is not images seen, each x has its own tick.
    """

    key: str
    title: str
    meaning: str
    scale: Scale
    smooth: bool
    zero: bool
    lines: list[Line]
    reach: float
    x_label: str = "images seen"
    doubling: bool = False  # the x axis is logarithmic, base 2


def plots(runs: Sequence[RunRecord]) -> list[Plot]:
    """Return all plots of runs of one family: a plot for each curve of a single run, or for each column of several."""
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


def score_plots(runs: Sequence[RunRecord]) -> list[Plot]:
    """Return the plots of evaluation during training, of runs of any family, beside the scores of real images."""
    found: list[Plot] = []
    names = [[f"scores/{name}" for name, y in run.scores.items() if np.isfinite(y).any()] for run in runs]
    reach = max((float(table["images"][-1]) for run in runs for table in (run.log, run.scores) if table), default=0)
    for curve in score_curves(name for some in names for name in some if name != "scores/images"):
        columns = [column for column in curve.columns if any(column in some for some in names)]
        if len(runs) == 1 and columns:
            lines = [_score(runs[0], column, curve.columns[column], k) for k, column in enumerate(columns)]
            found.append(_plot(curve, curve.title, [*lines, *_floors(runs, columns, curve, reach)], reach))
        elif len(runs) > 1:
            for column in columns:
                title = curve.columns[column].capitalize() if len(columns) > 1 else curve.title
                lines = [_score(run, column, run.name, k) for k, run in enumerate(runs) if column in names[k]]
                found.append(_plot(curve, title, [*lines, *_floors(runs, [column], curve, reach)], reach))
    return found


def _score(run: RunRecord, column: str, label: str, place: int) -> Line:
    name = column.removeprefix("scores/")
    x, y = _finite(run.scores, name)
    metric, seen = run.best or ("", 0)
    return Line(label, place, x, y, y, best=seen if metric == name and seen in x else None)


def _floors(runs: Sequence[RunRecord], columns: Sequence[str], curve: Curve, reach: float) -> list[Line]:
    """Return the lines of real images, for each column or run; one, in the last colour, where runs have the same."""
    found = []
    for k, run in enumerate(runs):
        for j, column in enumerate(columns):
            name = column.removeprefix("scores/") + FLOOR
            if name in run.scores and len((table := _finite(run.scores, name))[0]):
                one = curve.columns[column] if len(columns) > 1 else run.name if len(runs) > 1 else ""
                found.append(_floor(f"real pictures{one and ', '}{one}", k + j, *table, reach))
    if len(runs) > 1 and len({value for line in found for value in line.y.tolist()}) == 1:
        return [replace(found[0], label="real pictures", place=-1)]
    return found


def _floor(label: str, place: int, x: np.ndarray, y: np.ndarray, reach: float) -> Line:
    """Return a line; a constant becomes a horizontal line over the whole range."""
    if (y == y[0]).all():
        x, y = np.array([0.0, reach]), y[[0, 0]]
    return Line(label, place, x, y, y, real=True)


def _finite(table: Columns, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images seen and values of a column, without its gaps."""
    there = np.isfinite(table[name])
    return table["images"][there], table[name][there]


def _names(run: RunRecord) -> list[str]:
    """Return the run's columns with at least one value, by the names that curves use."""
    log = [name for name, values in run.log.items() if np.isfinite(values).any()]
    evaluation = [f"evaluation/{name}" for name, values in run.evaluation.items() if np.isfinite(values).any()]
    return [name for name in log + evaluation if name.rpartition("/")[2] != "images"]


def _line(run: RunRecord, column: str, curve: Curve, label: str, place: int) -> Line:
    measured = column.startswith("evaluation/")
    table = run.evaluation if measured else run.log
    x, y = _finite(table, column.removeprefix("evaluation/"))
    mean = moving_average(x, y) if curve.smooth and not measured else y
    return Line(label, place, thin(x), thin(y), thin(mean))


def moving_average(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Average exponentially over images seen, not rows, without a bias at the start.  x, y: (N,).

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
    """Reduce to at most POINTS numbers, each the mean of a group of neighbours; fewer stay as they are."""
    group = -(-len(values) // POINTS)
    return (
        values if group <= 1 else np.array([part.mean() for part in np.split(values, range(group, len(values), group))])
    )


def _plot(curve: Curve, title: str, lines: list[Line], reach: float) -> Plot:
    positive = all((line.y > 0).all() for line in lines)  # a log axis has no place for others
    key = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
    scale = curve.scale if positive else "linear"
    meaning = curve.meaning + (" Dotted: as many real images." if any(line.real for line in lines) else "")
    meaning += " Ringed: the best weights, kept in best/." if any(line.best is not None for line in lines) else ""
    return Plot(key, title, meaning, scale, curve.smooth, curve.zero, lines, reach)
