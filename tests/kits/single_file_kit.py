"""Small models of random weights in one file, under the names that Stable Diffusion's own code gave them.

The inverse of diffusers' conversion, written from the original code's layout: what diffusers reads from such a file
must be the model that went in.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def original_names(pipe: Any) -> dict[str, Any]:
    """The tensors of a Stable Diffusion 1 or XL pipeline under their original names."""
    xl = hasattr(pipe, "text_encoder_2")
    layers = pipe.unet.config.layers_per_block
    state = pipe.unet.state_dict()
    tensors = {f"model.diffusion_model.{_unet(name, layers, state)}": value for name, value in state.items()}
    levels = len(pipe.vae.config.block_out_channels)
    for name, value in pipe.vae.state_dict().items():
        # The original's attention is made of 1x1 convolutions
        matrix = re.search(r"attentions\.0\.to_\w+(\.0)?\.weight$", name)
        tensors[f"first_stage_model.{_vae(name, levels)}"] = value[..., None, None] if matrix else value
    clip = "conditioner.embedders.0.transformer" if xl else "cond_stage_model.transformer"
    for name, value in pipe.text_encoder.state_dict().items():
        tensors[f"{clip}.text_model.{name.removeprefix('text_model.')}"] = value
    if xl:
        tensors |= _open_clip(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")
    return tensors


def save_single_file(pipe: Any, path: Path) -> Path:
    """Write the pipeline's weights as one file, as they are published."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in original_names(pipe).items()}, path)
    return path


def _unet(name: str, layers: int, state: dict[str, Any]) -> str:
    """One name of the U-Net: blocks of the original are numbered through, sampling layers included."""
    for ours, theirs in UNET_TOP.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    if match is None:
        middle = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name)
        assert middle is not None, name
        kind, number, rest = middle[1], int(middle[2]), middle[3]
        return f"middle_block.{2 * number if kind == 'resnets' else 1}.{_resnet(kind, rest)}"
    way, block, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":  # stands after the attention, where the block has one
        place = 2 if any(other.startswith(f"up_blocks.{block}.attentions.") for other in state) else 1
        return f"output_blocks.{(block + 1) * (layers + 1) - 1}.{place}.{rest}"
    index = block * (layers + 1) + number + (1 if way == "down" else 0)
    return f"{'input' if way == 'down' else 'output'}_blocks.{index}.{int(kind == 'attentions')}.{_resnet(kind, rest)}"


def _resnet(kind: str, rest: str) -> str:
    if kind == "resnets":
        for ours, theirs in UNET_RESNET.items():
            if rest.startswith(ours + "."):
                return theirs + rest.removeprefix(ours)
    return rest


def _vae(name: str, levels: int) -> str:
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        head, _, rest = name.partition("mid_block.attentions.0.")
        for ours, theirs in VAE_ATTENTION.items():
            if rest.startswith(ours + "."):
                return f"{head}mid.attn_1.{theirs}{rest.removeprefix(ours)}"
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def _open_clip(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The second text encoder of XL as OpenCLIP names it: query, key and value in one matrix."""
    import torch

    tensors: dict[str, Any] = {}
    for name, value in state.items():
        name = name.removeprefix("text_model.")
        match = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)$", name)
        if match is None:
            top = {
                "embeddings.token_embedding.weight": "token_embedding.weight",
                "embeddings.position_embedding.weight": "positional_embedding",
                "final_layer_norm.weight": "ln_final.weight",
                "final_layer_norm.bias": "ln_final.bias",
                "text_projection.weight": "text_projection",
            }[name]
            tensors[prefix + top] = value.T if top == "text_projection" else value
            continue
        layer, part, what = match[1], match[2], match[3]
        block = f"{prefix}transformer.resblocks.{layer}."
        if part.endswith("q_proj"):
            three = [state[f"text_model.encoder.layers.{layer}.self_attn.{x}_proj.{what}"] for x in "qkv"]
            tensors[f"{block}attn.in_proj_{what}"] = torch.cat(three)
        elif not part.endswith(("k_proj", "v_proj")):
            tensors[f"{block}{OPEN_CLIP[part]}.{what}"] = value
    return tensors


def tiny(kind: str, vocabulary: int) -> Any:
    """A Stable Diffusion 1 ("sd15") or XL ("sdxl") pipeline of random weights and real structure, 32x32 pixels.

    vocabulary: its tokens; there are no tokenizers yet.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        PNDMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    noise: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    xl = kind == "sdxl"
    added: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 24,
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D") if xl else ("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D") if xl else ("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16 + 24 if xl else 16,
            attention_head_dim=2,
            norm_num_groups=8,
            **(added if xl else {}),
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=32,
        )
        vae.decoder.conv_out.weight.data.mul_(2)

        parts: dict[str, Any] = {
            "unet": unet.eval(),
            "vae": vae.eval(),
            "text_encoder": CLIPTextModel(clip_config(16, vocabulary)).eval(),
        }
        if xl:
            second = CLIPTextModelWithProjection(clip_config(24, vocabulary)).eval()
            scheduler = EulerDiscreteScheduler(**noise, steps_offset=1, timestep_spacing="leading")
            parts |= {"text_encoder_2": second, "tokenizer": None, "tokenizer_2": None, "scheduler": scheduler}
            return StableDiffusionXLPipeline(**parts)
    scheduler = PNDMScheduler(**noise, skip_prk_steps=True, steps_offset=1)
    parts |= {"tokenizer": None, "scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def clip_config(width: int, vocabulary: int) -> Any:
    """Of a small CLIP text encoder."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=0,
        dtype="float32",
    )
