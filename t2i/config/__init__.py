"""The configs of every family: frozen, strict, typed; YAML in, `--set` overrides, YAML out.

Durations and intervals are in images seen, never in steps. Numbers are coerced, since YAML reads `1e-4` as a string.
"""

from t2i.config.base import Data, Optimizer, Run, Source, Strict
from t2i.config.families import (
    FAMILIES,
    AutoencoderConfig,
    AutoencoderLoss,
    AutoencoderModel,
    Captions,
    ClassSamples,
    DDPMConfig,
    FlowObjective,
    Objective,
    PixelUNet,
    Samples,
    Text2ImageConfig,
    TextEncoder,
    UNet,
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
    "DDPMConfig",
    "Data",
    "FlowObjective",
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
