"""Training steps of one U-Net, ours and diffusers', in turns in one process: `python scripts/bench.py train`.

All sides start from the same weights and see the same images, noise and times, so their losses must agree; what
differs is the network's code, the optimiser's kernel, the average and the loop around them. A side is a generator that
makes one step each time it is asked, and yields its loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import diffusers
import torch
from diffusers.training_utils import EMAModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from t2i import images
from t2i.config import Data, DDPMConfig, Optimizer, Source
from t2i.data.tables import load_table
from t2i.diffusion.objective import add_noise
from t2i.diffusion.schedule import linear, timestep
from t2i.nn.unet import UNet2DModel
from t2i.training.ddpm import build_unet
from t2i.training.ema import Ema
from t2i.training.optimizer import adamw

MODELS: dict[str, dict[str, Any]] = {
    "35m": {"channels": (128, 256, 256, 256)},
    "10m": {"channels": (64, 128, 128, 128), "head_size": 32},
    "10m-heads8": {"channels": (64, 128, 128, 128), "head_size": 8},  # diffusers' default size of a head
}
OPTIMIZER = Optimizer(lr=2e-4, betas=(0.9, 0.999), warmup=0)
Draw = Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def ours(unet: UNet2DModel, draw: Draw, bf16: bool) -> Iterator[float]:
    """A step as t2i's engine makes it."""
    device, schedule = unet.device, linear()
    optimizer, ema = adamw(OPTIMIZER, unet, {}), Ema(unet, 50_000)
    seen = 0
    attention = SDPBackend.MATH if device.type == "cpu" else SDPBackend.FLASH_ATTENTION
    while True:
        x0, eps, k = draw()
        x_t = add_noise(x0, eps, k + 1.0, schedule)
        times = timestep(k + 1.0, schedule).to(device, torch.float32)
        with sdpa_kernel([attention, SDPBackend.MATH]), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = unet(x_t, times)
        loss = (out.float() - eps).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += len(x0)
        ema.update(unet, len(x0), seen)
        yield loss.item()


def theirs(unet: Any, draw: Draw, bf16: bool) -> Iterator[float]:
    """A step in the manner of diffusers' example train_unconditional.py, with its EMA."""
    device, scheduler = unet.device, diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=OPTIMIZER.lr, betas=OPTIMIZER.betas, weight_decay=0.0)
    ema = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    while True:
        x0, eps, k = draw()
        noisy = scheduler.add_noise(x0, eps, k.to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = unet(noisy, k.to(device)).sample
        loss = torch.nn.functional.mse_loss(out.float(), eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        yield loss.item()


def measure(model: str, batch: int, steps: int, data: str, device: str) -> dict[str, dict[str, list[float]]]:
    """{side: {"seconds": per step, "loss": per step}}: one step each in turn, the first two left out."""
    config = DDPMConfig(
        images=1,
        batch=batch,
        optimizer=OPTIMIZER,
        data=Data(sources=(Source(path=data),), size=32),
        model={"attention": (False, True, False, False), **MODELS[model]},
    )
    table = load_table(config.data, False).to(torch.device(device))

    def draws() -> Draw:
        draw, place = torch.Generator().manual_seed(0), 0

        def one() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            nonlocal place
            x0 = images.from_uint8(table.images(table.order(0, place, batch)))
            place += batch
            eps = torch.randn(x0.shape, generator=draw).to(device)
            return x0, eps, torch.randint(1000, (batch,), generator=draw)

        return one

    def network() -> UNet2DModel:
        return build_unet(config, 0).to(device)

    def network_of_diffusers() -> Any:
        unet = diffusers.UNet2DModel.from_config(network().config)
        unet.load_state_dict(network().state_dict())
        return unet.to(device)

    sides = {
        "t2i, bf16": ours(network(), draws(), True),
        "diffusers, bf16": theirs(network_of_diffusers(), draws(), True),
        "diffusers, as shipped (float32)": theirs(network_of_diffusers(), draws(), False),
    }
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "loss": []} for name in sides}
    for number in range(steps + 2):
        for name, side in sides.items() if number % 2 else reversed(sides.items()):
            start = time.perf_counter()
            loss = next(side)  # it reads the loss, and so waits for the device
            if number >= 2:
                found[name]["seconds"].append(time.perf_counter() - start)
                found[name]["loss"].append(loss)
    return found


def rows(found: dict[str, dict[str, list[float]]], batch: int) -> list[tuple[str, list[float], str, float | None]]:
    """The table: images/s of each side, our ratio to each other, and how far the losses lie apart."""
    lines: list[tuple[str, list[float], str, float | None]] = []
    for name, side in found.items():
        lines.append((name, [batch / s for s in side["seconds"]], "images/s", None))
    mine, *others = found
    for name in others:
        ratio = [b / a for a, b in zip(found[mine]["seconds"], found[name]["seconds"], strict=True)]
        lines.append((f"{mine} / {name}", ratio, "x", None))
    for name in others:
        apart = [abs(a - b) / b for a, b in zip(found[mine]["loss"], found[name]["loss"], strict=True)]
        lines.append((f"losses of {mine} and {name} apart", apart, "(relative)", None))
        last = [median(found[side]["loss"][-20:]) for side in (mine, name)]
        lines.append((f"last losses, {mine} over {name}", [last[0] / last[1]], "x", None))
    return lines
