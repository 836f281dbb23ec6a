"""Pipelines: from a saved model to images.

    from t2i.pipelines import DCGAN

Names are resolved lazily: importing this package imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i.pipelines.class_conditional.dcgan import DCGAN
    from t2i.pipelines.class_conditional.ddpm import DDPM
    from t2i.pipelines.class_conditional.vae import VAE
    from t2i.pipelines.text_to_image.pipeline import TextToImage

__all__ = ["DCGAN", "DDPM", "VAE", "TextToImage"]

_MODULES = {  # name -> its module
    "DCGAN": "class_conditional.dcgan",
    "DDPM": "class_conditional.ddpm",
    "VAE": "class_conditional.vae",
    "TextToImage": "text_to_image.pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from t2i.model_files.library_logging import prepare_libraries

        prepare_libraries()
        return getattr(import_module(f"t2i.pipelines.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
