"""Small pipelines of random weights in the real formats of Stable Diffusion 1, XL, 3 and FLUX.1: 32x32 pixels each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from single_file_kit import clip_config, tiny
from tiny_kit import save_tokenizer

FAMILIES = ("sd15", "sdxl", "sd3", "flux")


def save_family(kind: str, folder: Path) -> Path:
    """Save a whole pipeline folder of one of FAMILIES, with tokenizers of a few words, as diffusers saves it."""
    if kind in ("sd15", "sdxl"):
        names = ("tokenizer", "tokenizer_2") if kind == "sdxl" else ("tokenizer",)
        sizes = [save_tokenizer(folder / name, 77) for name in names]
        pipe = tiny(kind, sizes[0])
        parts = dict(pipe.components) | {name: _clip_tokenizer(folder / name) for name in names}
        options = {"requires_safety_checker": False} if kind == "sd15" else {}
        type(pipe)(**parts, **options).save_pretrained(folder)
    else:
        _SAVERS[kind](folder).save_pretrained(folder)
    return folder


def _clip_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def _t5_tokenizer(folder: Path) -> Any:
    """A T5 tokenizer of single letters: token 0 pads, 1 ends, 2 is unknown."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz,.()0123456789"]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64)
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return T5Tokenizer.from_pretrained(folder)


def _t5(vocabulary: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, dtype="float32")
    ).eval()


def _vae(channels: int) -> Any:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )
    vae.decoder.conv_out.weight.data.mul_(2)
    return vae.eval()


def _save_sd3(folder: Path) -> Any:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    sizes = [save_tokenizer(folder / name, 77) for name in ("tokenizer", "tokenizer_2")]
    t5 = _t5_tokenizer(folder / "tokenizer_3")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8,
                patch_size=1,
                in_channels=16,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                caption_projection_dim=32,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                out_channels=16,
            ).eval(),
            vae=_vae(16),
            text_encoder=CLIPTextModelWithProjection(clip_config(16, sizes[0])).eval(),
            text_encoder_2=CLIPTextModelWithProjection(clip_config(16, sizes[1])).eval(),
            text_encoder_3=_t5(len(t5)),
            tokenizer=_clip_tokenizer(folder / "tokenizer"),
            tokenizer_2=_clip_tokenizer(folder / "tokenizer_2"),
            tokenizer_3=t5,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )


def _save_flux(folder: Path) -> Any:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    size = save_tokenizer(folder / "tokenizer", 77)
    t5 = _t5_tokenizer(folder / "tokenizer_2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FluxPipeline(
            transformer=FluxTransformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                axes_dims_rope=(4, 4, 8),
                guidance_embeds=True,
            ).eval(),
            vae=_vae(4),
            text_encoder=CLIPTextModel(clip_config(32, size)).eval(),
            text_encoder_2=_t5(len(t5)),
            tokenizer=_clip_tokenizer(folder / "tokenizer"),
            tokenizer_2=t5,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        )


_SAVERS = {"sd3": _save_sd3, "flux": _save_flux}
