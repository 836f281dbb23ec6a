"""The training loops, one visible function per family, also for Python users.

    from t2i.training import train_text2image

Names are resolved lazily: a loop is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i.training.families.autoencoder import train_autoencoder
    from t2i.training.families.classifier import train_classifier
    from t2i.training.families.dcgan import train_dcgan
    from t2i.training.families.ddpm import train_ddpm
    from t2i.training.families.text2image import train_text2image
    from t2i.training.families.vae import train_vae

__all__ = [
    "TRAINERS",
    "train_autoencoder",
    "train_classifier",
    "train_dcgan",
    "train_ddpm",
    "train_text2image",
    "train_vae",
]

TRAINERS = {name: f"train_{name}" for name in ("autoencoder", "classifier", "dcgan", "ddpm", "text2image", "vae")}


def __getattr__(name: str) -> Any:
    if name in TRAINERS.values():
        from t2i.model_files.library_logging import prepare_libraries

        prepare_libraries()
        return getattr(import_module(f"t2i.training.families.{name.removeprefix('train_')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
