"""Inspect a LoRA file by names, shapes and metadata; no tensors are read but the scalars called alpha."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

TEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
FAMILIES = {*TEXT_WIDTHS.values(), "Stable Diffusion 3", "FLUX.1"}  # that are recognised for sure
# (names that only files of this family have, the family)
NAMES = (
    (r"single_transformer_blocks|single_blocks|double_blocks", "FLUX.1"),
    (r"joint_blocks|x_block|context_block", "Stable Diffusion 3"),
)
IN_UNET = re.compile(r"(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)")
DEEP = re.compile(r"transformer_blocks[._][1-9]")  # Stable Diffusion 1 has one such block at each place
DOWN = re.compile(r"(lora_A|lora_down|lora\.down|lora_linear_layer\.down|_lora\.down)(\.\w+)*\.weight$")
CROSS = re.compile(r"attn2[._](processor[._])?to_[kv][._].*(lora_A|down)")
PARTS = (
    ("the second text encoder", r"(lora_te2_|text_encoder_2\.)"),
    ("the text encoder", r"(lora_te1?_|text_encoder\.)"),
    ("down blocks", r"(down_blocks|input_blocks)"),
    ("the middle block", r"(mid_block|middle_block)"),
    ("up blocks", r"(up_blocks|output_blocks)"),
    ("single blocks", r"(single_transformer_blocks|single_blocks)"),
    ("joint blocks", r"(transformer_blocks|double_blocks|joint_blocks)"),
)
SHORT_TAGS = 10


@dataclass(frozen=True)
class LoraFacts:
    """Facts about a LoRA file.  ranks, blocks: {value: number of layers}.  alphas: as in the file."""

    family: str
    format: str
    tensors: int
    parameters: int
    ranks: dict[int, int]
    alphas: list[float]
    blocks: dict[str, int]
    dtypes: list[str]
    bytes: int
    base_model: str | None
    tags: dict[str, int]
    metadata: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        return asdict(self) | {"ranks": {str(rank): count for rank, count in self.ranks.items()}}


def family(shapes: Shapes) -> str:
    """Guess by names and widths for which models these tensors are made."""
    for pattern, name in NAMES:
        if any(re.search(pattern, key) for key in shapes):
            return name
    if any(IN_UNET.search(key) for key in shapes):
        widths = {shape[1] for key, shape in shapes.items() if CROSS.search(key) and len(shape) > 1}
        for width in widths & TEXT_WIDTHS.keys():
            return TEXT_WIDTHS[width]
        if any(DEEP.search(key) for key in shapes if IN_UNET.search(key)) or _has_second_encoder(shapes):
            return "Stable Diffusion XL"
        return f"a U-Net that reads text {min(widths)} wide" if widths else "a Stable Diffusion U-Net"
    if any(re.search(r"\btransformer_blocks\.", key) for key in shapes):
        wide = any(len(shape) > 1 and shape[1] % 3072 == 0 for key, shape in shapes.items() if DOWN.search(key))
        return "FLUX.1" if wide else "Stable Diffusion 3"
    if any(key.startswith(("lora_te", "text_encoder")) for key in shapes):
        return "Stable Diffusion XL" if _has_second_encoder(shapes) else "a CLIP text encoder"
    return "something unknown here"


def pipeline_family(pipe: Any) -> str:
    """Return the family of a loaded pipeline, in the same words as `family`."""
    kind = type(pipe).__name__
    for start, name in (
        ("StableDiffusionXL", "Stable Diffusion XL"),
        ("StableDiffusion3", "Stable Diffusion 3"),
        ("Flux2", "FLUX.2"),
        ("Flux", "FLUX.1"),
    ):
        if kind.startswith(start):
            return name
    width = getattr(getattr(getattr(pipe, "unet", None), "config", None), "cross_attention_dim", None)
    if kind.startswith("StableDiffusion") and isinstance(width, int):
        return TEXT_WIDTHS.get(width, f"a U-Net that reads text {width} wide")
    return kind.removesuffix("Pipeline")


def facts(path: Path) -> LoraFacts:
    """Read all facts about a verified .safetensors file."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: Counter[str] = Counter()
    alphas: set[float] = set()
    with safe_open(path, framework="pt") as file:
        metadata = {str(key): str(value) for key, value in (file.metadata() or {}).items()}
        for key in list(file.keys()):
            piece = file.get_slice(key)
            shapes[key] = tuple(piece.get_shape())
            dtypes[str(piece.get_dtype())] += 1
            if key.endswith("alpha") and math.prod(shapes[key]) == 1:
                alphas.add(round(float(file.get_tensor(key).reshape(())), 6))
    ranks = Counter(shape[0] for key, shape in shapes.items() if DOWN.search(key) and shape)
    adapter = _read_json(metadata.get("lora_adapter_metadata"))
    alphas |= {float(value) for key, value in adapter.items() if key.endswith(".lora_alpha") and _is_number(value)}
    layers = Counter(_part(key) for key in shapes if DOWN.search(key))
    return LoraFacts(
        family=family(shapes),
        format=_format(shapes),
        tensors=len(shapes),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        ranks=dict(sorted(ranks.items())),
        alphas=sorted(alphas),
        blocks={name: layers[name] for name in [*(part for part, _ in PARTS), "other"] if layers[name]},
        dtypes=[name for name, _ in dtypes.most_common()],
        bytes=path.stat().st_size,
        base_model=metadata.get("ss_base_model_version") or metadata.get("ss_sd_model_name"),
        tags=_tags(metadata.get("ss_tag_frequency")),
        metadata={key: value for key, value in metadata.items() if key != "ss_tag_frequency"},
    )


def _format(shapes: Shapes) -> str:
    if any(key.startswith(("lora_unet_", "lora_te")) for key in shapes):
        return "kohya"
    if any(".lora_A" in key or ".lora_B" in key for key in shapes):
        return "diffusers (peft)"
    if any("lokr_" in key or "hada_" in key for key in shapes):
        return "LyCORIS"
    if any("lora" in key.lower() for key in shapes):
        return "diffusers (old names)"
    return "no LoRA"


def _part(key: str) -> str:
    return next((name for name, pattern in PARTS if re.search(pattern, key)), "other")


def _has_second_encoder(shapes: Shapes) -> bool:
    return any(key.startswith(("lora_te2_", "text_encoder_2.")) for key in shapes)


def _tags(text: str | None) -> dict[str, int]:
    """Return the most frequent tags of kohya's training data, over all its folders."""
    counted: Counter[str] = Counter()
    for folder in _read_json(text).values():
        if isinstance(folder, dict):
            counted.update(
                {str(tag).strip(): n for tag, n in folder.items() if isinstance(n, int) and str(tag).strip()}
            )
    return dict(counted.most_common(SHORT_TAGS))


def _read_json(text: str | None) -> dict[str, Any]:
    try:
        data = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
