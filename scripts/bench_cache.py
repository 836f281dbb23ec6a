"""Benchmark step caching, speed and quality: `python scripts/bench.py generate --parts cache`.

On `mini` (or `-m FOLDER`): time, and the distance of images to those without caching. On a small transformer like Flux
with random weights: time alone, since random weights say nothing about quality, nor about how many steps first-block
would skip.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from statistics import median
from typing import Any

import numpy as np

CACHES = ("reuse:2", "reuse:3", "taylor:2")
STEPS = (20, 50)
TEXTS = ("a horse in Van Gogh style", "a dog", "a cat, sketch", "a house, photo", "a ship", "an elephant, pixel art")
Row = tuple[str, list[float], str, float | None]


def measure_cache(options: Namespace) -> list[Row]:
    """Return, for each cache, the relative time and the distances of its images."""
    return [*on_a_model(options), *on_a_transformer(options)]


def on_a_model(options: Namespace) -> list[Row]:
    from t2i.pipelines.text_to_image.pipeline import TextToImage

    plain = TextToImage.load(str(options.model))
    rows: list[Row] = []
    for cache in CACHES:
        model = TextToImage.load(str(options.model), cache=cache)
        for steps in STEPS:
            before = draw(plain, steps, options.guidance)
            after = draw(model, steps, options.guidance)
            again = draw(plain, steps, options.guidance)
            what = f"{cache}, {steps} steps"
            gaps = [np.abs(a - b) for a, b in zip(before[0], after[0], strict=True)]
            part = after[1] / ((before[1] + again[1]) / 2)
            rows += [
                (f"{what}: part of the time, CPU", [part], "", None),
                (f"{what}: mean difference of a picture, of 255", [float(gap.mean()) for gap in gaps], "", None),
                (f"{what}: PSNR of a picture", [float(psnr(gap)) for gap in gaps], "dB", None),
            ]
            print(what, round(median(float(psnr(gap)) for gap in gaps), 1), "dB", file=sys.stderr)
    return rows


def draw(model: Any, steps: int, guidance: float) -> tuple[list[Any], float]:
    """Generate the images of all texts with two seeds, float64 (H, W, 3) each, and return them with the CPU seconds."""
    start = time.process_time()
    results = model(TEXTS, seeds=(0, 1), steps=steps, guidance=guidance)
    pictures = [np.asarray(result.image, np.float64) for result in results]
    return pictures, time.process_time() - start


def psnr(gap: Any) -> float:
    """Return the peak signal-to-noise ratio in dB; 99 for equal images."""
    error = float((gap**2).mean())
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def on_a_transformer(options: Namespace) -> list[Row]:
    import torch

    from t2i.pipelines.text_to_image.step_cache import StepCache, parse_cache

    rows: list[Row] = []
    for name in ("reuse:2", "taylor:2", "first-block:0.1"):
        plain, cached = flux(), flux()
        cache = parse_cache(name)
        assert cache is not None
        hooks = StepCache(cached, cache)
        parts = []
        for _ in range(options.rounds or 3):
            base = one(plain, torch)
            plain.scheduler, cached.scheduler = fresh(plain.scheduler), fresh(cached.scheduler)
            with hooks.drawing():
                parts.append(one(cached, torch) / base)
        rows.append((f"{name}, a random Flux of 18M parameters, 20 steps: part of the time, CPU", parts, "", None))
    return rows


def fresh(scheduler: Any) -> Any:
    return type(scheduler).from_config(scheduler.config)


def one(pipe: Any, torch: Any) -> float:
    start = time.process_time()
    text = torch.ones(1, 32, 64), torch.ones(1, 64)
    pipe(
        prompt_embeds=text[0],
        pooled_prompt_embeds=text[1],
        height=256,
        width=256,
        num_inference_steps=20,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    return time.process_time() - start


def flux() -> Any:
    """Build a FluxPipeline without text encoders or VAE, for 256 image tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(16, 24, 24),
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    none = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxPipeline(scheduler=scheduler, transformer=network, **none)
    pipe.set_progress_bar_config(disable=True)
    return pipe
