"""Benchmark sampling with one U-Net, our samplers and diffusers', in turns in one process: `scripts/bench.py sample`.

Random weights: they do not affect the time. Both sample in float32, the default of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from bench_train import MODELS, OPTIMIZER, SIZE, quotients

from t2i.config import Data, DDPMConfig, Source
from t2i.pipelines.class_conditional.ddpm import DDPM
from t2i.pipelines.class_conditional.diffusers_scheduler import make_scheduler
from t2i.training.families.ddpm import build_unet

SAMPLERS = {"ddpm": 1000, "dpm++2m": 20}  # sampler -> steps


def measure(model: str, batch: int, rounds: int, device: str) -> list[tuple[str, list[float], str]]:
    """Return the table: images/s of each sampler on both sides, and our ratio."""
    config = DDPMConfig(
        images=1,
        batch=1,
        optimizer=OPTIMIZER,
        data=Data(sources=(Source(path="t2i:shapes.parquet"),), size=SIZE),
        model={"attention": (False, True, False, False), **MODELS[model]},
    )
    unet = build_unet(config, 0).eval().to(device)
    plain = diffusers.UNet2DModel.from_config(unet.config).eval().to(device)
    plain.load_state_dict(unet.state_dict())
    ours = DDPM(unet, make_scheduler("linear", "eps"))
    lines = []
    for sampler, steps in SAMPLERS.items():
        sides: dict[str, Callable[[], Any]] = {
            "t2i": partial(ours, batch, sampler=sampler, steps=steps, batch_size=batch),
            "diffusers": sampling_of_diffusers(plain, sampler, steps, batch),
        }
        seconds = in_turns(sides, rounds)
        for name, values in seconds.items():
            lines.append(
                (f"{name}, {sampler}, {steps} steps, {batch} at once", [batch / s for s in values], "images/s")
            )
        lines.append((f"t2i / diffusers, {sampler}", quotients(seconds["diffusers"], seconds["t2i"]), "x"))
    return lines


def sampling_of_diffusers(unet: Any, sampler: str, steps: int, batch: int) -> Callable[[], Any]:
    """Return a call of diffusers' own pipeline for ancestral sampling; with its other scheduler for dpm++."""
    scheduler = (
        diffusers.DDPMScheduler(beta_schedule="linear")
        if sampler == "ddpm"
        else diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", timestep_spacing="trailing")
    )
    pipeline = diffusers.DDPMPipeline(unet, scheduler)
    pipeline.scheduler = scheduler  # the constructor converts any scheduler to a DDPMScheduler
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch, num_inference_steps=steps, generator=torch.Generator().manual_seed(0))


def in_turns(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each side in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, draw in sides.items() if number % 2 else reversed(sides.items()):
            start = time.perf_counter()
            draw()
            seconds[name].append(time.perf_counter() - start)
    return seconds
