"""Write reports and plots as files.

A report is made of run folders alone, so that rebuilding it loses nothing. A file whose marker says that it is a report
on the same runs is therefore replaced; any other only with `overwrite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from t2i import atomic
from t2i.report.page import build, marker
from t2i.report.plots import render_all
from t2i.report.runs import read_runs
from t2i.report.scores import evaluation_plots
from t2i.report.series import plots

HEAD = 65536  # bytes at the beginning of a file that are searched for its marker


def save_page(paths: Sequence[Path], output: Path, overwrite: bool = False) -> Path:
    """Write the page of these run folders.  Raises UsageError: no run, or another file exists there."""
    runs = read_runs(paths)
    mark = marker(runs)
    _check(output, mark, overwrite)
    _write(build(runs, datetime.now(UTC)).encode(), output, mark, overwrite)
    return output


def save_plots(paths: Sequence[Path], folder: Path, overwrite: bool = False) -> list[Path]:
    """Write every curve as NAME.png and NAME.svg, and NAME-dark.* for dark backgrounds.

    Raises UsageError, likewise.
    """
    runs = read_runs(paths)
    mark = marker(runs)
    families = list(dict.fromkeys(run.family for run in runs))
    found = {
        f"{family}-" if len(families) > 1 else "": plots([run for run in runs if run.family == family])
        for family in families
    }
    rendered = [
        (folder / f"{prefix}{name}", data)
        for prefix, some in (found | evaluation_plots(runs)).items()
        for name, data in render_all(some, mark)
    ]
    for path, _ in rendered:  # all or none
        _check(path, mark, overwrite)
    for path, data in rendered:
        _write(data, path, mark, overwrite)
    return [path for path, _ in rendered]


def _check(path: Path, mark: str, overwrite: bool) -> None:
    if path.exists() and not overwrite and not _is_ours(path, mark):
        raise atomic.already_exists(path)


def _write(data: bytes, path: Path, mark: str, overwrite: bool) -> None:
    atomic.write(data, path, overwrite=overwrite or _is_ours(path, mark))


def _is_ours(path: Path, mark: str) -> bool:
    """Return whether a file is an earlier report on the same runs, by the marker in its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD).decode("utf-8", errors="replace")
    except OSError:
        return False
    return mark in head
