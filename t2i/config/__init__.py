"""The configs of every family: frozen, strict, typed; YAML in, `--set` overrides, YAML out.

Durations and intervals are in images seen, never in steps. Numbers are coerced, since YAML reads `1e-4` as a string.
Names are resolved lazily: a command that trains nothing imports no family.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i.config.base import Data, Evaluate, Judged, Optimizer, Run, Source, Strict
    from t2i.config.families import (
        FAMILIES,
        AutoencoderConfig,
        AutoencoderLoss,
        AutoencoderModel,
        Captions,
        ClassifierConfig,
        ClassSamples,
        DCGANConfig,
        DDPMConfig,
        FlowObjective,
        Objective,
        PixelUNet,
        Samples,
        Text2ImageConfig,
        TextEncoder,
        UNet,
        VAEConfig,
    )
    from t2i.config.files import (
        MAX_CONFIG_BYTES,
        build_config,
        config_difference,
        config_hash,
        dump_config,
        find_config,
        load_config,
        parse_yaml,
        shipped_config,
        shipped_data,
    )

__all__ = [
    "FAMILIES",
    "MAX_CONFIG_BYTES",
    "AutoencoderConfig",
    "AutoencoderLoss",
    "AutoencoderModel",
    "Captions",
    "ClassSamples",
    "ClassifierConfig",
    "DCGANConfig",
    "DDPMConfig",
    "Data",
    "Evaluate",
    "FlowObjective",
    "Judged",
    "Objective",
    "Optimizer",
    "PixelUNet",
    "Run",
    "Samples",
    "Source",
    "Strict",
    "Text2ImageConfig",
    "TextEncoder",
    "UNet",
    "VAEConfig",
    "build_config",
    "config_difference",
    "config_hash",
    "dump_config",
    "find_config",
    "load_config",
    "parse_yaml",
    "shipped_config",
    "shipped_data",
]


def __getattr__(name: str) -> Any:
    """Import what a public name stands for, the first time it is asked for."""
    if name in __all__:
        for module in ("base", "families", "files"):
            found = import_module(f"t2i.config.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
