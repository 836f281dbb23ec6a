"""Estimate of the memory that a model needs, from the headers of its weights and its configs; nothing is loaded.

Weights are counted exactly: elements of each tensor times the bytes of the dtype in which they are loaded. Activations
are estimated:

    denoiser   30 x B x positions x channels x bytes of its first level (of all of a transformer), B twice for guidance
    decoder    5 x B x width x height x channels x bytes of its last level but one
    both       the larger one, and half of the smaller one, part of which the allocator keeps
    copies     three times the largest tensor of weights, as the libraries reorder them
    overhead   150 MB: code that the libraries compile, their threads and buffers
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from t2i.model_files.registry import read_json
from t2i.model_files.weight_files import LOADED, tensor_shapes

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
DENOISERS = ("unet", "transformer", "prior")
# Fitted to peaks of whole drawings with guidance in fresh processes (torch 2.13, one core of an AMD EPYC with
# AVX512_BF16, 2026-11-28), weights included, estimated : measured in MB. tests/pipelines/loading compares them again.
#                            mini 512x512   mini 768x768   112M parameters, 512x512   SD 1.5's sizes, 512x512
#     float32                  697 : 571     1274 : 1053        1573 : 1405                5891 : 5219
#     bfloat16                 423 : 321      712 : 434          862 : 726                 3021 : 2909
# On an Intel Xeon with AMX mini took up to 445 MB in bfloat16, which the overhead covers.
DENOISER = 30
DECODER = 5
COPIES = 3
OVERHEAD = 150_000_000
TILE = 512  # pixels of a side that diffusers decodes at once where tiling is on and the config says no other
EMBEDDING = re.compile(r"(token|position|class)_embedding|embed_tokens|(^|\.)shared\.|pos_embed")  # tables, not layers
# (prefix of tensors in a single file, component of the pipeline)
PREFIXES = (
    (re.compile(r"first_stage_model\.|vae\."), "vae"),
    (re.compile(r"cond_stage_model\.|conditioner\.|text_encoders?\."), "text_encoder"),
)


@dataclass(frozen=True)
class Component:
    """The weights of one network.  small: how many of its elements are quantised."""

    elements: int
    small: int
    largest: int  # elements of its largest tensor

    def bytes(self, dtype: str, bits: int = 0) -> int:
        """Return the bytes in memory, in this dtype; bits: 8 or 4 for quantised elements."""
        kept = self.elements - (self.small if bits else 0)
        return kept * BYTES[dtype] + (self.small * bits // 8 if bits else 0)


@dataclass(frozen=True)
class Networks:
    """The sizes of a model's networks.

    configs: by component; empty where they are not known.
    """

    components: Mapping[str, Component]
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """Return the number of elements of all weights."""
        return sum(part.elements for part in self.components.values())

    def weights(self, dtype: str, bits: int = 0) -> int:
        """Return the bytes of all weights; bits apply to the denoiser and the text encoders, as in `quantize.py`."""
        return sum(self.component(name, dtype, bits) for name in self.components)

    def component(self, name: str, dtype: str, bits: int = 0) -> int:
        """Return the bytes of one network's weights."""
        return self.components[name].bytes(dtype, bits if is_quantized(name) else 0)

    def largest_component(self, dtype: str, bits: int = 0) -> int:
        """Return the bytes of the largest network."""
        return max((self.component(name, dtype, bits) for name in self.components), default=0)

    def largest_tensors(self, dtype: str) -> int:
        """Return the bytes of two largest tensors: one computes while the next one is copied."""
        return 2 * self._largest() * BYTES[dtype]

    def activations(self, width: int, height: int, batch: int, dtype: str, *, tiling: bool = False) -> int:
        """Estimate the bytes that drawing takes besides the weights, for `batch` images of this size at once."""
        scale = self.vae_scale
        decoder = self._decoder(min(width, self.tile), min(height, self.tile), 1) if tiling else 0
        decoder = decoder or self._decoder(width, height, batch)
        denoiser = self._denoiser(width // scale, height // scale, 2 * batch)
        # One runs after the other, but in buffers of other sizes: the allocator does not reuse all of the former.
        both = max(decoder, denoiser) + min(decoder, denoiser) // 2
        return BYTES[dtype] * (both + COPIES * self._largest()) + OVERHEAD

    @property
    def vae_scale(self) -> int:
        """Return how many pixels of a side one position of the latents stands for."""
        vae = self.configs.get("vae", {})
        levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0] * 4
        if "temperal_downsample" in vae:  # diffusers' spelling
            return int(2 ** len(vae["temperal_downsample"]))
        return int(2 ** (len(levels) - 1))

    @property
    def tile(self) -> int:
        """Return the pixels of a tile's side."""
        size = self.configs.get("vae", {}).get("sample_size")
        return int(size) if isinstance(size, int) and size > 0 else TILE

    def denoiser(self) -> Mapping[str, Any]:
        """Return the config of the denoising network."""
        return next((self.configs[name] for name in DENOISERS if name in self.configs), {})

    def _largest(self) -> int:
        """Return the elements of the largest tensor."""
        return max((part.largest for part in self.components.values()), default=0)

    def _decoder(self, width: int, height: int, batch: int) -> int:
        levels = self.configs.get("vae", {}).get("block_out_channels") or [128, 256]
        return DECODER * batch * width * height * int(levels[min(1, len(levels) - 1)])  # it is upsampled, then narrowed

    def _denoiser(self, width: int, height: int, batch: int) -> int:
        config = self.denoiser()
        if levels := config.get("block_out_channels"):
            return DENOISER * batch * width * height * int(levels[0])
        heads, size = config.get("num_attention_heads"), config.get("attention_head_dim")
        wide = int(heads) * int(size) if isinstance(heads, int) and isinstance(size, int) else 3072
        return DENOISER * batch * (width // 2) * (height // 2) * wide  # patches of 2x2


def is_quantized(component: str) -> bool:
    """Return whether a component is quantised: the denoiser and the text encoders are, the decoder never is."""
    return component in DENOISERS or component.startswith("text_encoder")


@lru_cache(maxsize=16)
def networks(weights: tuple[Path, ...], folder: Path, configs: Path | None = None) -> Networks:
    """Read the sizes of a model from verified files.  folder: of the pipeline or the file; configs: of a single file.

    Raises ModelError: a config is no JSON.
    """
    parts: dict[str, list[tuple[str, int, int]]] = {}
    for file in _loaded(weights):
        for name, shape in tensor_shapes(file).items():
            parts.setdefault(_part(file, name, folder), []).append((name, _product(shape), len(shape)))
    components = {}
    for part, tensors in parts.items():
        small = sum(n for name, n, sides in tensors if sides == 2 and not EMBEDDING.search(name))
        largest = max(n for _, n, _ in tensors)
        components[part] = Component(sum(n for _, n, _ in tensors), small, largest)
    return Networks(components, _configs(configs or folder))


def _configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    known = {name: folder / name / "config.json" for name in (*DENOISERS, "vae", "vqvae")}
    return {name: read_json(path) for name, path in known.items() if path.is_file()}


def _loaded(weights: tuple[Path, ...]) -> list[Path]:
    """Select the files that loading reads: of a component with variants (fp16, non_ema) those without a variant."""
    plain = {file.parent for file in weights if LOADED.fullmatch(file.name)}
    return [file for file in weights if LOADED.fullmatch(file.name) or file.parent not in plain]


def _part(file: Path, tensor: str, folder: Path) -> str:
    if file.parent != folder:
        return file.parent.name
    return next((part for pattern, part in PREFIXES if pattern.match(tensor)), "unet")


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product
