"""Weights in 8 or 4 bits, by diffusers' own means: bitsandbytes on a GPU, torchao on a CPU.

The denoiser and the text encoders are quantised, in their linear layers; the decoder never is. 4 bits need a GPU:
torchao has no such kind for a CPU, and diffusers has deprecated Quanto.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from t2i.errors import T2IError, UsageError

BITS = (8, 4)
LIBRARIES = {"cpu": "torchao", "cuda": "bitsandbytes", "xpu": "bitsandbytes", "mps": "bitsandbytes"}
INSTALL = "pip install 't2i[quantize]'"


def check_bits(bits: int, device: str) -> int:
    """Return the bits.  Raises UsageError: not on this kind of device; T2IError: the library is missing."""
    kind = device.partition(":")[0]
    if bits == 4 and kind == "cpu":
        raise UsageError("`quantize=4`: diffusers has no 4-bit weights that compute on a CPU", "`quantize=8`")
    if not is_available(bits, device):
        library = LIBRARIES.get(kind, "bitsandbytes")
        raise T2IError(f"weights in {bits} bits need {library}, which is not installed", INSTALL)
    return bits


def is_available(bits: int, device: str) -> bool:
    """Return whether such weights work on this device with the installed libraries."""
    kind = device.partition(":")[0]
    return bits in BITS and not (bits == 4 and kind == "cpu") and find_spec(LIBRARIES.get(kind, "")) is not None


def pipeline_config(bits: int, device: str, dtype: str, components: dict[str, str]) -> Any:
    """Make diffusers' PipelineQuantizationConfig for these components: {name: the library of its class}."""
    from diffusers import PipelineQuantizationConfig

    config = _torchao if device.partition(":")[0] == "cpu" else _bitsandbytes
    mapping = {name: config(bits, dtype, library) for name, library in components.items()}
    return PipelineQuantizationConfig(quant_mapping=mapping)


def _torchao(bits: int, dtype: str, library: str) -> Any:
    import diffusers
    import transformers
    from torchao.quantization import Int8WeightOnlyConfig

    assert bits == 8, "check_bits comes first"
    kind = transformers.TorchAoConfig if library == "transformers" else diffusers.TorchAoConfig
    return kind(Int8WeightOnlyConfig())


def _bitsandbytes(bits: int, dtype: str, library: str) -> Any:
    import diffusers
    import torch
    import transformers

    kind = transformers.BitsAndBytesConfig if library == "transformers" else diffusers.BitsAndBytesConfig
    if bits == 8:
        return kind(load_in_8bit=True)
    return kind(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype))
