"""A Stable Diffusion folder of random weights, small enough to draw in a blink."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

MERGES = ("h o", "ho r", "hor s", "hors e</w>", "v a", "va n</w>", "g o", "go g", "gog h</w>", "c a", "ca t</w>")


def save_tokenizer(folder: Path, tokens: int = 16) -> int:
    """A CLIP byte-pair tokenizer with a handful of merges, saved in `folder`.  Returns the size of its vocabulary."""
    import json

    from transformers import CLIPTokenizer

    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [chr(256 + k) for k in range(256 - len(visible))]  # bytes that cannot be seen are shifted, as GPT-2 does
    letters = [chr(code) for code in visible] + hidden
    symbols = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in MERGES)]
    vocabulary = {symbol: k for k, symbol in enumerate([*symbols, "<|startoftext|>", "<|endoftext|>"])}
    raw = folder.parent / "raw-tokenizer"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (raw / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n", encoding="utf-8")
    (raw / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}', encoding="utf-8")
    CLIPTokenizer.from_pretrained(raw, model_max_length=tokens).save_pretrained(folder)
    shutil.rmtree(raw)
    return len(vocabulary)


def tiny_modules(vocabulary: int, tokens: int = 16) -> dict[str, Any]:
    """The networks of a Stable Diffusion pipeline with random weights: 32x32 pixels, 8x8x4 latents, 150,000 numbers."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            mid_block_add_attention=False,
            sample_size=32,
        )
        # Random decoders are grey all over; a stronger last layer makes pictures that differ where they should.
        vae.decoder.conv_out.weight.data.mul_(2)
        config = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokens,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            dtype="float32",
        )
        return {"unet": unet.eval(), "vae": vae.eval(), "text_encoder": CLIPTextModel(config).eval()}


def make_pipeline(folder: Path, kind: str) -> Path:
    """Save the tiny pipeline with the scheduler of a flow model ("flow") or of Stable Diffusion 1 ("epsilon")."""
    from diffusers import DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    scheduler: Any
    if kind == "flow":
        scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    else:
        scheduler = PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        )
    vocabulary = save_tokenizer(folder / "tokenizer")
    StableDiffusionPipeline(
        **tiny_modules(vocabulary),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
