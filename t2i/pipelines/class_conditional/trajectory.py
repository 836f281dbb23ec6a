"""A figure of the forward and the reverse process: noise added to an image, a sample denoised.

Ho et al. 2020, figure 2. Time runs from left to right in all rows; the column labels are the
signal-to-noise ratio (SNR) in decibels, 10 log10(alpha^2 / sigma^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from t2i.diffusion.objective import add_noise
from t2i.diffusion.samplers import factors
from t2i.diffusion.schedule import Schedule
from t2i.imaging import images
from t2i.metadata.recipe import Mark

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i.pipelines.class_conditional.ddpm import DDPM

SHOWN = 11  # images of a row
SCALE = 96  # least pixels per side of an image


def trajectory(
    model: DDPM, seed: int = 0, label: str | int | None = None, photo: Image | None = None, steps: int = 100
) -> tuple[Image, list[Image]]:
    """Draw a sheet and the frames of an animation.

    photo: an image for the forward process, cropped to the model's size; none: the sample itself.
    Rows of the sheet: the forward process x_t; the reverse process x_t, from noise at the right to the sample at the
    left; and the network's prediction of x0.
    """
    numbers = model.label_numbers(1, label)
    walk = list(model.walk([seed], numbers, "ddpm", steps))
    noise = torch.randn(walk[0][1].shape, generator=torch.Generator().manual_seed(seed)).to(walk[0][1])
    first = model.schedule.T
    reverse = [(first, noise), *((s, x_s) for s, x_s, _ in walk)]
    guesses = [x0 for _, _, x0 in walk] + [walk[-1][1]]
    x0 = walk[-1][1] if photo is None else _prepare(photo, noise)
    forward = [(t, add_noise(x0, noise, torch.tensor(t), model.schedule)) for t, _ in reverse]
    shown = [round(k * (len(reverse) - 1) / (SHOWN - 1)) for k in range(SHOWN)]
    rows = [[forward[k][1] for k in reversed(shown)], [reverse[k][1] for k in reversed(shown)]]
    rows.append([guesses[k] for k in reversed(shown)])
    labels = [decibels(model.schedule, reverse[k][0]) for k in reversed(shown)]
    cells = [images.enlarge(image, SCALE) for row in rows for image in images.from_tensor(torch.cat(row).cpu())]
    names = ["noise added", "noise removed", "guess of x0"]
    sheet = images.grid(cells, columns=SHOWN, row_labels=names, column_labels=labels)
    return sheet, _frames(model.schedule, forward[::-1], reverse, guesses)


def decibels(schedule: Schedule, t: float) -> str:
    """Return the signal-to-noise ratio at t as a label."""
    alpha, sigma = factors(schedule, t)
    if not sigma:
        return "image"
    return f"SNR {round(20 * math.log10(alpha / sigma)):+d} dB" if alpha else "noise"  # rounded first: no "-0"


def save_trajectory(sheet: Image, frames: Sequence[Image], folder: Path, animation: str = "webp") -> list[Path]:
    """Save trajectory.png and an animation, webp or gif, in a folder.  Raises UsageError where they exist."""
    png = images.save(sheet, folder / "trajectory.png", recipe=Mark())
    return [png, images.save_animation(frames, folder / f"trajectory.{animation}")]


def _frames(
    schedule: Schedule, forward: list[tuple[float, Tensor]], reverse: list[tuple[float, Tensor]], guesses: list[Tensor]
) -> list[Image]:
    """Make frames of the forward process, then of the reverse process with the prediction of x0 next to it."""
    frames = []
    for t, x_t in forward:
        frames.append(_frame([x_t, x_t], ["noise added", decibels(schedule, t)]))
    for (t, x_t), x0 in zip(reverse, guesses, strict=True):
        frames.append(_frame([x_t, x0], [f"noise removed, {decibels(schedule, t)}", "guess of x0"]))
    size = (max(f.width for f in frames), max(f.height for f in frames))
    return [_pad(frame, size) for frame in frames]


def _frame(x: list[Tensor], labels: list[str]) -> Image:
    cells = [images.enlarge(image, SCALE) for image in images.from_tensor(torch.cat(x).cpu())]
    return images.grid(cells, columns=2, column_labels=labels)


def _pad(image: Image, size: tuple[int, int]) -> Image:
    from PIL import Image as module

    sheet = module.new("RGB", size, "white")
    sheet.paste(image, (size[0] - image.width, size[1] - image.height))
    return sheet


def _prepare(photo: Image, like: Tensor) -> Tensor:
    return images.to_tensor([images.fit(photo, like.shape[-1])]).to(like)
