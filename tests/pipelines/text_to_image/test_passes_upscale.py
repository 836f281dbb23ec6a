"""The second pass: the first picture enlarged by Lanczos and drawn again, in every family that can start from one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing_kit import IMAGE_TO_IMAGE, gap, picture, plain
from family_kit import FAMILIES
from generate_kit import Run
from PIL import Image

from t2i import load
from t2i.imaging import images
from t2i.metadata import recipe

Family = Callable[[str], Path]


def record(path: str) -> recipe.Recipe:
    made = recipe.read(Path(path)).recipe
    assert made is not None
    return made


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_second_pass_is_image_to_image_of_the_enlarged_first(kind: str, family: Family, t2i: Run) -> None:
    words = ("-m", str(family(kind)), "--guidance", "3", "--size", "32", "-s", "5", "-b", "2")
    assert t2i("a horse", *words, "-o", "first/{seed}.png", steps="4").code == 0
    ran = t2i("a horse", *words, "--upscale", "2:0.5", "-o", "second/{seed}.png", steps="4")
    assert ran.code == 0, ran.err
    assert "then 2 times larger, strength 0.5" in ran.err
    enlarged = [images.decode(Path(f"first/{seed}.png")).resize((64, 64), Image.Resampling.LANCZOS) for seed in (5, 6)]
    options: dict[str, Any] = {"image": enlarged, "strength": 0.5, "num_inference_steps": 4, "guidance_scale": 3.0}
    if kind in ("sd3", "flux"):
        options |= {"width": 64, "height": 64}
    theirs = plain(IMAGE_TO_IMAGE[kind], family(kind), [5, 6], **options)
    for seed, drawn in zip((5, 6), theirs, strict=True):
        assert gap(f"second/{seed}.png", drawn) <= 1
    made = record("second/5.png")
    assert (made.width, made.height) == (64, 64)
    assert made.edit == {"size": [32, 32], "upscale": {"factor": 2.0, "strength": 0.5}}


def test_image_k_is_the_same_alone_and_in_a_batch(tiny_pipeline: Path) -> None:
    draw = load(tiny_pipeline)
    together = draw("a horse", seed=7, num_images=3, steps=4, upscale="1.5:0.5")
    alone = draw("a horse", seed=9, steps=4, upscale="1.5:0.5")[0]
    assert alone.size == (48, 48)
    assert np.abs(np.asarray(together[2], np.int16) - np.asarray(alone, np.int16)).max() <= 1
    assert np.abs(np.asarray(together[1], np.int16) - np.asarray(alone, np.int16)).max() > 8


def test_the_size_is_the_nearest_that_the_model_can_draw(t2i: Run) -> None:
    assert t2i("a horse", "--size", "40x32", "--upscale", "1.4", "-o", "a.png", steps="3").code == 0
    assert images.decode(Path("a.png")).size == (56, 48)  # of 56 x 44.8


def test_a_picture_may_be_started_from_and_enlarged(t2i: Run) -> None:
    picture().save("start.png")
    words = ("-i", "start.png", "--strength", "0.5", "--upscale", "2:0.25")
    ran = t2i("a horse", *words, "-s", "1", "-o", "a.png", steps="4")
    assert ran.code == 0, ran.err
    made = record("a.png")
    assert (made.width, made.edit["strength"], made.edit["upscale"]["strength"]) == (64, 0.5, 0.25)
    assert "Denoising strength: 0.5" in made.parameters()
    assert "Hires" not in made.parameters()
    ran = t2i("--from", "a.png", "-o", "b.png", steps="")
    assert (ran.code, "a.png: identical" in ran.err) == (0, True), ran.err


def test_it_is_drawn_again_from_its_record_and_from_a1111s_text(t2i: Run) -> None:
    assert t2i("a horse", "--upscale", "2:0.5", "-s", "3", "-o", "a.png", steps="4").code == 0
    ran = t2i("--from", "a.png", "-o", "b.png", steps="")
    assert (ran.code, "a.png: identical" in ran.err) == (0, True), ran.err
    ran = t2i("--from", "a.png", "--upscale", "1.5:0.5", "-o", "c.png", steps="")
    said = "drawn anew, with another width, height, input image, strength or ControlNet"
    assert (ran.code, said in ran.err) == (0, True), ran.err

    from PIL.PngImagePlugin import PngInfo

    text = record("a.png").parameters()
    assert "Size: 32x32" in text
    assert "Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Lanczos" in text
    about = PngInfo()
    about.add_text("parameters", text)
    images.decode(Path("a.png")).save("plain.png", pnginfo=about)  # our own record is lost
    ran = t2i("--from", "plain.png", "-o", "d.png", steps="")
    assert ran.code == 0, ran.err
    assert "not restored" not in ran.err
    assert record("d.png").image_hash == record("a.png").image_hash


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        ("1", "upscale: got 1, allowed above 1 to 8 times", ""),
        ("9", "upscale: got 9, allowed above 1 to 8 times", ""),
        ("nan", "upscale: got nan, allowed above 1", ""),
        ("big", "upscale: got 'big', expected a number", ""),
        ("2:0", "upscale strength: got 0, allowed above 0", ""),
        ("2:0.1", "upscale strength: 0.1 of 2 steps runs no step", "at least 0.5, or at least 10 steps"),
    ],
)
def test_what_is_refused(t2i: Run, here: Path, value: str, message: str, hint: str) -> None:
    ran = t2i("a horse", "--upscale", value, "-o", "a.png")
    assert (ran.code, list(here.iterdir())) == (2, [])
    assert message in ran.err
    assert hint in ran.err


def test_a_size_beyond_all_bounds_is_refused(t2i: Run) -> None:
    ran = t2i("a horse", "--size", "2048", "--upscale", "8:0.5", "-o", "a.png")
    assert (ran.code, "width of the second pass: got 16384, allowed 1 to 8192" in ran.err) == (2, True), ran.err


def test_progress_goes_from_nothing_to_all_over_both_passes(tiny_pipeline: Path) -> None:
    draw = load(tiny_pipeline).model
    from t2i.pipelines.settings.edit import make_image_inputs

    seen: list[tuple[int, int]] = []
    edit = make_image_inputs(upscale="2:0.5")
    list(draw("a horse", seeds=[1], steps=10, edit=edit, progress=lambda done, total: seen.append((done, total))))
    parts = [done / total for done, total in seen]
    assert parts == sorted(parts)
    assert parts[-1] == 1
    assert min(parts) < 0.2
    assert any(0.5 < part < 1 for part in parts)
