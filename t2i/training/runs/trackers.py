"""TensorBoard and Weights & Biases, through Accelerate's trackers. The CSV log is written always, by the run folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from t2i.config import Run
from t2i.errors import T2IError


def make_accelerator(config: Run, folder: Path, precision: str) -> Accelerator:
    """An Accelerator that logs to the config's trackers.

    Raises T2IError when the package of a tracker is not installed.
    """
    for name in config.trackers:
        if find_spec(name) is None:
            raise T2IError(f"tracker {name!r} is not installed", f"pip install {name}, or --set trackers=[]")
    log_with = list(config.trackers) or None  # an empty list is warned about
    accelerator = Accelerator(mixed_precision=precision, log_with=log_with, project_dir=str(folder))
    if config.trackers:
        kept_here = {"wandb": {"dir": str(folder)}}  # not in whatever folder the user stands in
        accelerator.init_trackers(folder.name, flat(config.model_dump(mode="json")), init_kwargs=kept_here)
    return accelerator


def close_trackers(accelerator: Accelerator) -> None:
    """Write out what the trackers hold back. Not `end_training`, which also parts the processes."""
    for tracker in accelerator.trackers:
        tracker.finish()


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, int | float | str]:
    """{dotted key: value} of nested values; what is no number becomes text, as trackers want it."""
    leaves: dict[str, int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value if isinstance(value, int | float | str) else str(value)
    return leaves
