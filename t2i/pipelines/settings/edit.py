"""Image inputs of a drawing: image-to-image, masks, ControlNets, and a second pass at a larger size.

Strength s of N steps: the image gets the noise of the step at which int(N s) are left, and those are run. That is how
diffusers and A1111 count, so `steps` is the schedule's number of steps and not that of the steps that run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.errors import UsageError
from t2i.metadata.jsonable import public_name
from t2i.pipelines.settings import limits
from t2i.pipelines.settings.image_input import ImageInput
from t2i.pipelines.settings.spec_strings import split_image

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | Path | Image

STRENGTH = 0.6  # of image-to-image: mini keeps the shape and changes the style; from 0.8 on little is left
MASKED_STRENGTH = 1.0  # of inpainting: the repainted part need not look like the original
UPSCALE_STRENGTH = 0.4
MAX_FACTOR = 8.0
MAX_SCALE = 10.0
SHAPES = 0.02  # tolerance of the aspect ratios of an image and its mask: a pixel or so of rounding


@dataclass(frozen=True)
class Control:
    """An image for a ControlNet.  net: the ControlNet: a name in `controlnet.CONTROLNETS`, a folder, a Hub id."""

    net: str
    image_input: ImageInput
    scale: float = 1.0


@dataclass(frozen=True)
class Upscale:
    """A second pass: the image enlarged by `factor` and drawn again at this strength."""

    factor: float
    strength: float = UPSCALE_STRENGTH


@dataclass(frozen=True)
class ImageInputs:
    """All image inputs; empty: a prompt alone.  mask: white is repainted.  strength: None: the default."""

    image: ImageInput | None = None
    mask: ImageInput | None = None
    strength: float | None = None
    controls: tuple[Control, ...] = ()
    upscale: Upscale | None = None

    def __bool__(self) -> bool:
        # Identity first, as the faster test: a batch may have a million prompts.
        return self is not NO_IMAGE_INPUTS and self != NO_IMAGE_INPUTS

    def over(self, other: ImageInputs) -> ImageInputs:
        """Return these inputs, with those that are missing here taken from `other`."""
        if self is NO_IMAGE_INPUTS:
            return other
        said = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) not in (None, ())}
        return replace(other, **said)

    def known_strength(self) -> float:
        """Return the strength of image-to-image or inpainting, by default the usual one."""
        if self.strength is not None:
            return self.strength
        return STRENGTH if self.mask is None else MASKED_STRENGTH

    def record(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return the inputs for a recipe: names without folders, hashes of pixels.  size: of the first pass."""
        if not self:
            return {}
        parts: dict[str, Any] = {"size": list(size)}
        if self.image is not None:
            parts |= {"image": _about(self.image), "strength": self.known_strength()}
        if self.mask is not None:
            parts["mask"] = _about(self.mask)
        if self.controls:
            parts["controls"] = [
                {"net": public_name(one.net), "scale": one.scale, **_about(one.image_input)} for one in self.controls
            ]
        if self.upscale is not None:
            parts["upscale"] = {"factor": self.upscale.factor, "strength": self.upscale.strength}
        return parts

    def identity(self) -> dict[str, Any]:
        """Return the inputs as JSON to compare them by: pixels, not the names of files."""
        found: dict[str, Any] = comparable(self.record((0, 0)))
        return found

    def words(self, steps: int) -> str:
        """Describe the inputs on one line."""
        parts = []
        if self.image is not None:
            strength = self.known_strength()
            parts.append(f"from {_name(self.image)}, strength {strength:g} ({_steps(steps, strength)} run)")
        if self.mask is not None:
            parts.append(f"mask {_name(self.mask)}")
        parts += [f"guided by {one.net} {_name(one.image_input)} x {one.scale:g}" for one in self.controls]
        if self.upscale is not None:
            parts.append(f"then {self.upscale.factor:g} times larger, strength {self.upscale.strength:g}")
        return ", ".join(parts)


NO_IMAGE_INPUTS = ImageInputs()


def make_image_inputs(
    image: Picture | None = None,
    mask: Picture | None = None,
    strength: float | None = None,
    control: str | Control | Sequence[str | Control] = (),
    upscale: float | str | Upscale | None = None,
) -> ImageInputs:
    """Make image inputs from a user's values, each checked by itself.

    control: "TYPE:IMAGE" or "TYPE:IMAGE:SCALE".  upscale: 2, or "2:0.3" with its strength.
    Raises UsageError: out of range; ImageError: an image that cannot be read.
    """
    controls = [control] if isinstance(control, str | Control) else control
    if not isinstance(controls, Sequence) or not all(isinstance(one, str | Control) for one in controls):
        raise UsageError(f"control: got {str(control)[:40]!r}, expected TYPE:IMAGE or a Control, or several")
    return ImageInputs(
        image=None if image is None else ImageInput.of(image, "image"),
        mask=None if mask is None else ImageInput.of(mask, "mask"),
        strength=None if strength is None else check_strength("strength", float(strength)),
        controls=tuple(one if isinstance(one, Control) else read_control(one) for one in controls),
        upscale=upscale if isinstance(upscale, Upscale | None) else read_upscale(str(upscale)),
    )


def read_control(text: str) -> Control:
    """Parse `TYPE:IMAGE` or `TYPE:IMAGE:SCALE`; TYPE may be a folder or a Hub id.

    Raises UsageError, ImageError.
    """
    net, image, scale = split_image(text, "control")
    if not net or not image:
        raise UsageError(
            f"control: got {text[:60]!r}, expected TYPE:IMAGE or TYPE:IMAGE:SCALE", "for example canny:edges.png"
        )
    if not 0 <= scale <= MAX_SCALE:
        raise UsageError(f"control scale: got {scale:g}, allowed 0 to {MAX_SCALE:g}")
    return Control(net, ImageInput.of(image), scale)


def read_upscale(text: str) -> Upscale:
    """Parse `FACTOR` or `FACTOR:STRENGTH`.  Raises UsageError."""
    factor, _, strength = text.partition(":")
    chosen = check_strength("upscale strength", _number("upscale strength", strength)) if strength else UPSCALE_STRENGTH
    times = _number("upscale", factor)
    if not 1 < times <= MAX_FACTOR:
        raise UsageError(f"upscale: got {times:g}, allowed above 1 to {MAX_FACTOR:g} times")
    return Upscale(times, chosen)


def check_strength(name: str, strength: float) -> float:
    """Return the strength.  Raises UsageError unless 0 < strength <= 1."""
    if not 0 < strength <= 1:
        raise UsageError(f"{name}: got {strength:g}, allowed above 0 (little noise) to 1 (ignore the image)")
    return strength


def check_image_inputs(edit: ImageInputs, steps: int | None = None) -> ImageInputs:
    """Return the inputs.  steps: where known.

    Raises UsageError: inputs that exclude each other, or a strength at which no step is run.
    """
    if edit.image is None and edit.mask is not None:
        raise UsageError(f"mask {_name(edit.mask)} without an image to repaint", "give the image: `image`")
    if edit.image is None and edit.strength is not None:
        hint = "give the image: `image`" if edit.upscale is None else "for the second pass it is `upscale=2:0.4`"
        raise UsageError(f"strength {edit.strength:g} without an image to start from", hint)
    if edit.mask is not None and edit.upscale is not None:
        raise UsageError(
            "a second pass would redraw what the mask keeps", "start from the finished image: `image` and `upscale`"
        )
    if edit.image is not None and edit.mask is not None:
        (w, h), (mask_w, mask_h) = edit.image.size, edit.mask.size
        if abs(math.log((w / h) / (mask_w / mask_h))) > SHAPES + 1 / min(w, h, mask_w, mask_h):
            raise UsageError(
                f"mask {_name(edit.mask)} is {mask_w}x{mask_h}, image {_name(edit.image)} {w}x{h}: another shape",
                "give a mask of the image's size",
            )
    if steps is not None:
        if edit.image is not None:
            _check_running("strength", edit.known_strength(), steps)
        if edit.upscale is not None:
            _check_running("upscale strength", edit.upscale.strength, steps)
    return edit


def running(steps: int, strength: float) -> int:
    """Return how many of the schedule's steps are run."""
    return min(int(steps * strength), steps)


def _steps(steps: int, strength: float) -> str:
    count = running(steps, strength)
    return f"{count} step{'s' * (count != 1)}"


def enlarged(size: tuple[int, int], edit: ImageInputs, multiple: int) -> tuple[int, int]:
    """Return the (width, height) of the finished image; size: of the first pass.  Raises UsageError beyond 8192."""
    if edit.upscale is None:
        return size
    factor = edit.upscale.factor
    width, height = (round(side * factor / multiple) * multiple for side in size)
    return limits.check_side("width of the second pass", width), limits.check_side("height of the second pass", height)


def comparable(record: Any) -> Any:
    """Return a recipe's record of inputs without names and sizes; equal ones mean the same."""
    if isinstance(record, Mapping):
        return {key: comparable(value) for key, value in record.items() if key not in ("name", "size")}
    return [comparable(one) for one in record] if isinstance(record, list) else record


def _check_running(name: str, strength: float, steps: int) -> None:
    if running(steps, strength) < 1:
        least = math.ceil(100 / steps) / 100
        raise UsageError(
            f"{name}: {strength:g} of {steps} steps runs no step at all",
            f"at least {least:g}, or at least {math.ceil(1 / strength)} steps",
        )


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{name}: got {text[:40]!r}, expected a number") from None


def _about(image_input: ImageInput) -> dict[str, str]:
    return {"name": image_input.name, "hash": image_input.hash}


def _name(image_input: ImageInput) -> str:
    return image_input.name or "in memory"
