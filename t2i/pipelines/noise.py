"""Noise of images: each from its own CPU generator, in float32, whatever device and dtype the networks have.

torch draws other numbers in half precision (where their count is no multiple of 16), and other ones on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from t2i.pipelines.settings.settings import Settings


def make_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Make one CPU generator per image, for its first noise and all later noise."""
    import torch

    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def great_circle(a: torch.Tensor, b: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` points on the great circle from one noise to another, both ends included: (count, ...), float32.

    On it every point has the norm of noise; on the straight line those in the middle are too short
    (Shoemake 1985; White 2016).
    """
    import torch

    a, b = a.double(), b.double()
    angle = torch.arccos(((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1))
    way = torch.linspace(0, 1, count, dtype=torch.float64).view(-1, *[1] * a.dim())
    return ((torch.sin((1 - way) * angle) * a + torch.sin(way * angle) * b) / torch.sin(angle)).float()


def first_noise(pipe: Any, generators: Sequence[torch.Generator], settings: Settings) -> torch.Tensor:
    """Draw standard normal noise (B, C, h, w), on the device and in the dtype of a pipeline with a U-Net."""
    import torch

    scale = pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, settings.height // scale, settings.width // scale)
    # The dtype is named: the default one belongs to the process, and other threads change it while they load.
    noise = torch.cat([torch.randn(shape, generator=generator, dtype=torch.float32) for generator in generators])
    return noise.to(device=pipe.device, dtype=pipe.dtype)


def step_in_float32(scheduler: Any) -> Any:
    """Make the scheduler compute, and draw its noise, in float32 whatever dtype the networks have.

    Returns the scheduler.
    """
    step = scheduler.step

    @functools.wraps(step)  # keeps the signature, by which pipelines decide whether to pass their generators
    def step_float32(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        result = step(model_output.float(), timestep, sample.float(), *args, **kwargs)
        if isinstance(result, tuple):
            return tuple(part.to(sample.dtype) if hasattr(part, "to") else part for part in result)
        result.prev_sample = result.prev_sample.to(sample.dtype)
        return result

    scheduler.step = step_float32
    return scheduler


def draw_in_float32(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of a pipeline draw all its noise in float32, and round it to the dtype that it asks for.

    Image-to-image pipelines draw in the middle of their work (the image's latents, then the noise on them), where
    no argument reaches. The mode applies to this thread alone.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Float32(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function is torch.randn and kwargs.get("dtype") in (torch.float16, torch.bfloat16):
                return function(*args, **kwargs | {"dtype": torch.float32}).to(kwargs["dtype"])
            return function(*args, **kwargs)

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        with Float32():
            return draw(*args, **kwargs)

    return drawn
