"""Previews of an image while it is drawn: the clean latent that a step predicts, decoded by the VAE.

The latent is first shrunk by averaging, so that the VAE decodes at most SIDE pixels and a preview costs the same short
time at any size. The drawing is not changed: no random number is drawn, and the latent is only read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from t2i.errors import UsageError
from t2i.pipelines.text_to_image.step_hooks import observe, predict_x0

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SIDE = 256  # pixels
MOST = 4  # images of a batch that are shown
VAES = ("AutoencoderKL", "AutoencoderDC")  # (B, C, h, w) to (B, 3, H, W), with one scale for all channels


class Preview:
    """Shows the prediction of every Nth step.

    show: takes one image, the first MOST of the batch side by side.
    """

    def __init__(self, every: int, show: Callable[[Image], object]) -> None:
        """Set up previews of every Nth step.  Raises UsageError: out of range."""
        if not 1 <= every <= 1000:
            raise UsageError(f"preview: got {every}, allowed are 1 to 1000 steps")
        self.every = every
        self.show = show

    def watch(self, pipe: Any, width: int, height: int) -> None:
        """Observe the batch that the pipeline draws next, with its fresh scheduler.

        Raises UsageError where the pipeline's latents cannot be shown.
        """
        check(pipe)
        scheduler, steps = pipe.scheduler, 0

        def seen(output: torch.Tensor, timestep: Any, x_t: torch.Tensor) -> None:
            nonlocal steps
            steps += 1
            if steps % self.every == 0:
                x0 = predict_x0(scheduler, output[:MOST], timestep, x_t[:MOST])
                self._show(decode(pipe, unpack(pipe, x0, width, height)))

        observe(scheduler, seen)

    def _show(self, x: torch.Tensor) -> None:
        from t2i.imaging.images import from_tensor, grid

        if x.isfinite().all():  # the step itself raises an error for other values
            images = from_tensor(x)
            self.show(images[0] if len(images) == 1 else grid(images))


def check(pipe: Any) -> None:
    """Raise UsageError where the pipeline's latents cannot be shown."""
    kind = type(getattr(pipe, "vae", None)).__name__
    if kind not in VAES:
        raise UsageError(f"preview: not with a {type(pipe).__name__} (its VAE is {kind})", "leave `preview` out")


def unpack(pipe: Any, x0: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Return (B, C, h, w), also where the pipeline has latents as a sequence of patches (Flux, Chroma)."""
    if x0.dim() == 3:
        x0 = pipe._unpack_latents(x0, height, width, pipe.vae_scale_factor)
    return x0


def decode(pipe: Any, x0: torch.Tensor) -> torch.Tensor:
    """Decode a latent (B, C, h, w), shrunk to at most SIDE pixels: (B, 3, H, W) in [-1, 1]."""
    import torch

    vae = pipe.vae
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    factor = math.ceil(max(x0.shape[-2:]) * scale / SIDE)
    half = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))  # that VAE overflows in half precision
    with torch.no_grad():
        x0 = torch.nn.functional.avg_pool2d(x0, factor) if factor > 1 else x0
        z = x0 / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)
        try:
            if half:
                vae.to(torch.float32)
            return vae.decode(z.to(vae.dtype), return_dict=False)[0].float()
        finally:
            if half:
                vae.to(torch.float16)  # exactly what it was
