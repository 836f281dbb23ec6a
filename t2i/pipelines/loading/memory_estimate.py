"""How much memory a model will need, told from its files: headers of weights and configs, nothing loaded.

Weights are counted exactly: elements of each tensor times the bytes of the dtype they are loaded as. What the networks
hold while they compute is estimated:

    denoiser   40 x B x positions x channels x bytes of its first level (of all of a transformer), B twice for guidance
    decoder    6 x B x width x height x channels x bytes of its last level but one
    either     and three times the largest tensor of weights: the libraries' own copies

The larger of the two counts, since one comes after the other.
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
# Peaks over the weights on a CPU (torch 2.13, one core of an Intel Xeon with AMX, 2026-11-25), one picture of 512x512
# with guidance, estimated : measured in MB. Networks of SD 1.5's sizes: denoiser 596 : 502 in float32, 298 : 328 in
# bfloat16; decoder 1787 : 1140, 893 : 734. mini's: denoiser 360 : 382, 180 : 304; decoder 427 : 538, 214 : 408.
DENOISER = 40
DECODER = 6
COPIES = 3
TILE = 512  # pixels of a side that diffusers decodes at once where tiling is on and the config says no other
EMBEDDING = re.compile(r"(token|position|class)_embedding|embed_tokens|(^|\.)shared\.|pos_embed")  # tables, not layers
# In a single file: which part of the pipeline the tensors of a prefix are
PREFIXES = (
    (re.compile(r"first_stage_model\.|vae\."), "vae"),
    (re.compile(r"cond_stage_model\.|conditioner\.|text_encoders?\."), "text_encoder"),
)


@dataclass(frozen=True)
class Component:
    """The weights of one network.  small: of its elements, those that quantisation makes small."""

    elements: int
    small: int
    largest: int  # elements of its largest tensor

    def bytes(self, dtype: str, bits: int = 0) -> int:
        """In memory, in this dtype; bits: 8 or 4 for what quantisation reaches."""
        kept = self.elements - (self.small if bits else 0)
        return kept * BYTES[dtype] + (self.small * bits // 8 if bits else 0)


@dataclass(frozen=True)
class Networks:
    """A model as far as memory is concerned.

    configs: of its networks, by component; empty where they are not known.
    """

    components: Mapping[str, Component]
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """Numbers in all weights."""
        return sum(part.elements for part in self.components.values())

    def weights(self, dtype: str, bits: int = 0) -> int:
        """Bytes of all weights; bits reach the denoiser and the text encoders, as `quantize.py` has it."""
        return sum(self.component(name, dtype, bits) for name in self.components)

    def component(self, name: str, dtype: str, bits: int = 0) -> int:
        """Bytes of one network's weights."""
        return self.components[name].bytes(dtype, bits if is_quantized(name) else 0)

    def largest_component(self, dtype: str, bits: int = 0) -> int:
        """Bytes of the network that is the largest."""
        return max((self.component(name, dtype, bits) for name in self.components), default=0)

    def largest_tensors(self, dtype: str) -> int:
        """Bytes of the two largest tensors: one computes while the next one comes."""
        return 2 * self._largest() * BYTES[dtype]

    def activations(self, width: int, height: int, batch: int, dtype: str, *, tiling: bool = False) -> int:
        """Bytes that computing takes beyond the weights, for images of this size drawn `batch` at once."""
        scale = self.vae_scale
        decoder = self._decoder(min(width, self.tile), min(height, self.tile), 1) if tiling else 0
        decoder = decoder or self._decoder(width, height, batch)
        denoiser = self._denoiser(width // scale, height // scale, 2 * batch)
        return BYTES[dtype] * (max(decoder, denoiser) + COPIES * self._largest())

    @property
    def vae_scale(self) -> int:
        """Pixels of a picture's side per position of the latents."""
        vae = self.configs.get("vae", {})
        levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0] * 4
        if "temperal_downsample" in vae:  # their spelling
            return int(2 ** len(vae["temperal_downsample"]))
        return int(2 ** (len(levels) - 1))

    @property
    def tile(self) -> int:
        """Pixels of a tile's side."""
        size = self.configs.get("vae", {}).get("sample_size")
        return int(size) if isinstance(size, int) and size > 0 else TILE

    def denoiser(self) -> Mapping[str, Any]:
        """The config of the network that denoises."""
        return next((self.configs[name] for name in DENOISERS if name in self.configs), {})

    def _largest(self) -> int:
        """Elements of the largest tensor."""
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
    """Whether quantisation reaches a component: what denoises and what reads text; never what decodes."""
    return component in DENOISERS or component.startswith("text_encoder")


@lru_cache(maxsize=16)
def networks(weights: tuple[Path, ...], folder: Path, configs: Path | None = None) -> Networks:
    """What a model's checked files say.  folder: of the pipeline, or of the one file; configs: of a single file.

    Raises ModelError for a config that is no JSON.
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
    """The files that loading reads: of a component with variants (fp16, non_ema) those without a variant's name."""
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
