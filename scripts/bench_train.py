"""Benchmark training steps of one U-Net, ours and diffusers', in turns: `python scripts/bench.py train`.

Each side is a process of its own, as its users run it, and waits while another has its turn. t2i's side and diffusers'
start from the same weights and see the same images, noise and times, so their losses must agree; the differences are
the network's code, the optimizer's kernel, the EMA, the loop around them and memory management. Where
denoising-diffusion-pytorch is installed, its nearest U-Net (same widths, other blocks) and loop run beside them. A side
steps as a generator: one step per request, whose loss it yields.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import MagicMock, patch

import diffusers
import torch
from diffusers.training_utils import EMAModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from t2i.config import Data, DDPMConfig, Optimizer, Source
from t2i.data.tables import load_table
from t2i.diffusion.objective import add_noise
from t2i.diffusion.schedule import linear, timestep
from t2i.imaging import images
from t2i.nn.unet import UNet2DModel
from t2i.training.ema import Ema
from t2i.training.families.ddpm import build_unet
from t2i.training.memory import keep_freed_memory
from t2i.training.optimizer import adamw

MODELS: dict[str, dict[str, Any]] = {
    "35m": {"channels": (128, 256, 256, 256)},
    "10m": {"channels": (64, 128, 128, 128), "head_size": 32},
    "10m-heads8": {"channels": (64, 128, 128, 128), "head_size": 8},  # diffusers' default size of a head
}
SIZE = 32  # pixels per side
OPTIMIZER = Optimizer(lr=2e-4, betas=(0.9, 0.999), warmup=0)
PAUSE = 0.3  # seconds before a turn, in which the threads of the previous side go to sleep
Draw = Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def ours(unet: UNet2DModel, draw: Draw, bf16: bool) -> Iterator[float]:
    """Step like t2i's engine."""
    device, schedule = unet.device, linear()
    optimizer, ema = adamw(OPTIMIZER, unet, {}), Ema(unet, 50_000)
    seen = 0
    if device.type == "cpu":
        keep_freed_memory()
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
    """Step like diffusers' example train_unconditional.py, with its EMA."""
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


def peer(diffusion: Any, draw: Draw, bf16: bool) -> Iterator[float]:
    """Step like denoising-diffusion-pytorch's Trainer: its U-Net, its loss, Adam, and its EMA."""
    from ema_pytorch import EMA

    device = next(diffusion.parameters()).device
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=OPTIMIZER.lr, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10).to(device)
    while True:
        x0, eps, k = draw()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = diffusion.p_losses(x0, k.to(device), noise=eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        yield loss.item()


@dataclass(frozen=True)
class Side:
    """One side of the comparison: its network and its step.  same: its losses must equal ours."""

    network: Callable[[], Any]
    step: Callable[[Any, Draw, bool], Iterator[float]]
    bf16: bool = True
    same: bool = True


def make_sides(model: str, batch: int, data: str, device: str) -> tuple[dict[str, Side], Callable[[], Draw]]:
    """Return all sides by name, ours first, and a function that gives each its own stream of the same batches."""
    config = DDPMConfig(
        images=1,
        batch=batch,
        optimizer=OPTIMIZER,
        data=Data(sources=(Source(path=data),), size=SIZE),
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

    def network_of_peer() -> Any:
        # Its trainer and its metrics import torchvision; network and loss, which alone are measured, do not need it.
        absent = [n for n in ("torchvision", "pytorch_fid") if not find_spec(n)]
        parts = [n + part for n in absent for part in ("", ".transforms", ".utils", ".fid_score", ".inception")]
        with patch.dict(sys.modules, {name: MagicMock() for name in parts}):
            from denoising_diffusion_pytorch import GaussianDiffusion, Unet

        widths = config.model.channels
        unet = Unet(widths[0], dim_mults=tuple(c // widths[0] for c in widths))
        return GaussianDiffusion(unet, image_size=SIZE, objective="pred_noise", beta_schedule="linear").to(device)

    sides = {
        "t2i, bf16": Side(network, ours),
        "diffusers, bf16": Side(network_of_diffusers, theirs),
        "diffusers, as shipped (float32)": Side(network_of_diffusers, theirs, bf16=False),
    }
    if find_spec("denoising_diffusion_pytorch"):
        sides["denoising-diffusion-pytorch, bf16"] = Side(network_of_peer, peer, same=False)
        sides["denoising-diffusion-pytorch, as shipped (float32)"] = Side(network_of_peer, peer, False, same=False)
    return sides, draws


def serve(turns: Connection, model: str, batch: int, data: str, device: str, name: str) -> None:
    """Run one side as a process: at every message make a step, and answer with its seconds and its loss."""
    sides, draws = make_sides(model, batch, data, device)
    side = sides[name]
    steps = side.step(side.network(), draws(), side.bf16)
    while turns.recv():
        start = time.perf_counter()
        loss = next(steps)  # reading the loss waits for the device
        turns.send((time.perf_counter() - start, loss))


def measure(model: str, batch: int, steps: int, data: str, device: str) -> list[tuple[str, list[float], str]]:
    """Return the table: one step of each side in turn, the first two left out.

    Images/s, our ratio to each other side, the relative difference of the losses, and our rate relative to a ceiling of
    convolutions alone: the rate at which this machine computes a plain bf16 convolution, over the work of a training
    image.
    """
    sides, _ = make_sides(model, batch, data, device)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    work = {name: flops(side.network(), device) for name, side in sides.items()}
    context, turns, running = get_context("spawn"), {}, []
    for name in sides:
        turns[name], theirs_of_pipe = context.Pipe()
        words = (theirs_of_pipe, model, batch, data, device, name)
        running.append(context.Process(target=serve, args=words, daemon=True))
        running[-1].start()
    for number in range(steps + 2):
        for name in turns if number % 2 else reversed(turns):
            time.sleep(PAUSE)
            turns[name].send(True)
            elapsed, loss = turns[name].recv()
            if number >= 2:
                seconds[name].append(elapsed)
                losses[name].append(loss)
    for turn in turns.values():
        turn.send(False)
    for process in running:  # before the next measurement, which needs the machine for itself
        process.join()
    rates = {name: [batch / s for s in seconds[name]] for name in sides}
    lines = [(f"{name}, {work[name] / 1e9:.1f} GFLOP", rates[name], "images/s") for name in sides]
    mine, *others = sides
    lines += [(f"{mine} / {name}", quotients(seconds[name], seconds[mine]), "x") for name in others]
    for name in (name for name in others if sides[name].same):
        apart = [abs(q - 1) for q in quotients(losses[mine], losses[name])]
        lines.append((f"losses of {mine} and {name} apart", apart, "(relative)"))
        lines.append((f"the same, over the last {len(apart[-20:])} steps", apart[-20:], "(relative)"))
    ceiling = [rate / work[mine] for rate in convolution(batch, MODELS[model]["channels"][1], device)]
    lines.append((f"ceiling: {mine} if all were plain convolution", ceiling, "images/s"))
    lines.append((f"{mine} / ceiling", [rate / max(ceiling) for rate in rates[mine]], "x"))
    return lines


def quotients(a: list[float], b: list[float]) -> list[float]:
    return [x / y for x, y in zip(a, b, strict=True)]


def flops(network: Any, device: str) -> int:
    """Return the floating-point operations of one image, forward and backward, as torch counts them."""
    x, t = torch.zeros(1, 3, SIZE, SIZE, device=device), torch.zeros(1, device=device)
    with FlopCounterMode(display=False) as counter:
        if isinstance(network, UNet2DModel | diffusers.UNet2DModel):
            out = network(x, t)
            (out if isinstance(out, torch.Tensor) else out.sample).sum().backward()
        else:
            network.p_losses(x, t.long()).backward()
    return int(counter.get_total_flops())


def convolution(batch: int, channels: int, device: str) -> list[float]:
    """Measure FLOP/s of a 3 x 3 bf16 convolution in the middle of the network, forward and backward, five times."""
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1).to(
        device, torch.bfloat16, memory_format=torch.channels_last
    )
    x = torch.randn(batch, channels, 16, 16, device=device, dtype=torch.bfloat16, requires_grad=True)
    x = x.to(memory_format=torch.channels_last)
    work = 3 * 2 * batch * 16 * 16 * channels**2 * 9
    rates = []
    for number in range(6):
        start = time.perf_counter()
        for _ in range(10):
            conv(x).sum().backward()
        conv.weight.grad[0, 0, 0, 0].item()  # waits for the device
        if number > 0:
            rates.append(10 * work / (time.perf_counter() - start))
    return rates


def peak(model: str, batch: int, data: str, device: str, name: str) -> int:
    """Return the peak memory of this process for three steps of one side, in bytes: on a GPU that of its allocator."""
    sides, draws = make_sides(model, batch, data, device)
    side = sides[name]
    steps = side.step(side.network(), draws(), side.bf16)
    for _ in range(3):
        next(steps)
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(torch.cuda.max_memory_allocated())


if __name__ == "__main__":  # called by `bench.py memory`, in a fresh process for each side
    print(peak(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]))
