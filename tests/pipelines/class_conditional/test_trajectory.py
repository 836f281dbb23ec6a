"""The two processes as pictures: what stands in the sheet, the ratios above it, the animation."""

from __future__ import annotations

from pathlib import Path

import pytest
from ddpm_kit import NAMES, SIZE, make
from PIL import Image

from t2i.diffusion.schedule import Flow, linear
from t2i.errors import UsageError
from t2i.imaging import images
from t2i.pipelines.class_conditional.trajectory import SHOWN, decibels, save_trajectory, trajectory

POINTS = [(0.0, "image"), (1.0, "noise"), (0.5, "SNR +0 dB"), (0.51, "SNR +0 dB"), (1 / 11, "SNR +20 dB")]


@pytest.mark.parametrize(("t", "said"), POINTS)
def test_decibels_of_the_straight_line(t: float, said: str) -> None:
    """10 log10(alpha^2 / sigma^2): equal parts are 0 dB, ten to one are 20 dB."""
    assert decibels(Flow(), t) == said


def test_decibels_of_the_papers_schedule() -> None:
    assert decibels(linear(), 1.0) == "SNR +40 dB"  # beta_1 is 1e-4
    assert decibels(linear(), 1000.0) == "SNR -44 dB"


def test_frames_go_from_the_photo_to_noise_and_from_noise_to_the_sample() -> None:
    photo = Image.new("RGB", (20, 12), (200, 30, 30))
    model = make("linear", "eps", NAMES)
    sheet, frames = trajectory(model, seed=3, label="dog", photo=photo, steps=12)
    assert len(frames) == 13 + 13
    assert len({frame.size for frame in frames}) == 1
    first, turn, last = (_left_picture(frame) for frame in (frames[0], frames[12], frames[-1]))
    assert (images.to_tensor([first]) - images.to_tensor([photo.crop((0, 0, SIZE, SIZE))])).abs().max() < 0.01
    assert images.to_tensor([turn]).std() > 0.4  # noise
    (sample,) = model(1, "dog", 3, "ddpm", 12)
    assert (images.to_tensor([last]) - images.to_tensor([sample])).abs().max() < 1.5 / 127.5
    assert sheet.width > SHOWN * SIZE


def _left_picture(frame: Image.Image) -> Image.Image:
    """The left of a frame's two pictures, in its own pixels."""
    side = 96
    right = frame.width - (side + 2)
    box = (right - side, frame.height - side, right, frame.height)
    return frame.crop(box).resize((SIZE, SIZE), 0)


def test_saved_as_a_picture_and_an_animation_and_never_over_another(tmp_path: Path) -> None:
    made = trajectory(make(), steps=4)
    png, webp = save_trajectory(*made, tmp_path)
    with Image.open(webp) as animation:
        assert animation.n_frames >= 2  # type: ignore[attr-defined]
    with Image.open(png) as sheet:
        assert sheet.size == made[0].size
    with pytest.raises(UsageError):
        save_trajectory(*made, tmp_path)
