"""From a saved model to pictures.

    from t2i.pipelines import DCGAN

Names are resolved lazily: importing this package imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i.pipelines.dcgan import DCGAN
    from t2i.pipelines.ddpm import DDPM
    from t2i.pipelines.text_to_image import TextToImage
    from t2i.pipelines.vae import VAE

__all__ = ["DCGAN", "DDPM", "VAE", "TextToImage"]

_MODULES = {"DCGAN": "dcgan", "DDPM": "ddpm", "VAE": "vae", "TextToImage": "text_to_image"}  # name -> its module


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from t2i.pipelines.quiet import prepare_libraries

        prepare_libraries()
        return getattr(import_module(f"t2i.pipelines.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
