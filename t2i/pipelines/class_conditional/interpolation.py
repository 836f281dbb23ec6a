"""Interpolation between two seeds: a strip of images, and an animation there and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.imaging import images
from t2i.metadata.recipe import Mark

if TYPE_CHECKING:
    from t2i.pipelines.class_conditional.protocol import ImageModel

BETWEEN = 6  # frames of the animation from one image of the strip to the next
SCALE = 96  # least pixels per side of an image


def save_interpolation(
    model: ImageModel,
    ends: tuple[int, int],
    count: int,
    label: str | int | None,
    folder: Path,
    animation: str = "webp",
    **settings: Any,
) -> list[Path]:
    """Save interpolation.png, `count` images from seed to seed, and interpolation.webp (or .gif) in a folder.

    label: None: the first class, where there are any.  settings: further arguments of the model's `interpolate`.
    Raises UsageError: one seed twice, no such class or setting, files that exist.
    """
    frames = model.interpolate(*ends, (count - 1) * BETWEEN + 1, label, **settings)
    frames = [images.enlarge(frame, SCALE) for frame in frames]
    strip = images.grid(frames[::BETWEEN], columns=count)
    png = images.save(strip, folder / "interpolation.png", recipe=Mark())
    path = folder / f"interpolation.{animation}"
    return [png, images.save_animation([*frames, *frames[-2:0:-1]], path, hold=60)]
