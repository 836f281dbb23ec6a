"""The training loops, one visible function per family, also for Python users.

    from t2i.training import train_text2image

Names are resolved lazily: a loop is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i.training.autoencoder import train_autoencoder
    from t2i.training.ddpm import train_ddpm
    from t2i.training.text2image import train_text2image

__all__ = ["TRAINERS", "train_autoencoder", "train_ddpm", "train_text2image"]

TRAINERS = {"autoencoder": "train_autoencoder", "ddpm": "train_ddpm", "text2image": "train_text2image"}


def __getattr__(name: str) -> Any:
    if name in TRAINERS.values():
        return getattr(import_module(f"t2i.training.{name.removeprefix('train_')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
