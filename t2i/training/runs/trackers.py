"""TensorBoard and Weights & Biases, through Accelerate's trackers. The run folder always writes its CSV log as well."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from t2i.config import Run
from t2i.errors import T2IError


def make_accelerator(config: Run, folder: Path, precision: str) -> Accelerator:
    """Return an Accelerator that logs to the config's trackers.

    Raises T2IError when the package of a tracker is not installed.
    """
    for name in config.trackers:
        if find_spec(name) is None:
            raise T2IError(f"tracker {name!r} is not installed", f"pip install {name}, or --set trackers=[]")
    log_with = list(config.trackers) or None  # Accelerate warns about an empty list
    accelerator = Accelerator(mixed_precision=precision, log_with=log_with, project_dir=str(folder))
    if config.trackers:
        options = {"wandb": {"dir": str(folder)}}  # by default it writes to the working directory
        accelerator.init_trackers(folder.name, flatten(config.model_dump(mode="json")), init_kwargs=options)
    return accelerator


def close_trackers(accelerator: Accelerator) -> None:
    """Flush the trackers. Not by `end_training`, which also ends the process group."""
    for tracker in accelerator.trackers:
        tracker.finish()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, int | float | str]:
    """Return {dotted key: value} of nested values; values other than numbers become text, as trackers require."""
    leaves: dict[str, int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value if isinstance(value, int | float | str) else str(value)
    return leaves
