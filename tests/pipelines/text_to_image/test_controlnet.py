"""ControlNets in the real formats of four families: what plain diffusers draws, their files' checks, and messages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing_kit import GUIDED, GUIDED_IMAGE_TO_IMAGE, gap, half_mask, picture, pixels, plain, save_control
from family_kit import FAMILIES
from generate_kit import Run, files

from t2i import load
from t2i.imaging import images
from t2i.metadata import recipe
from t2i.pipelines.settings.edit import Control
from t2i.pipelines.settings.image_input import ImageInput
from t2i.pipelines.text_to_image.controlnet import CONTROLNETS, KINDS

Family = Callable[[str], Path]


@pytest.fixture(scope="session")
def control(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A ControlNet of random weights for a family's pipeline, made when first asked for: read it, never write to it."""
    from functools import cache

    folder = tmp_path_factory.mktemp("controls")
    return cache(lambda kind: save_control(family(kind), folder / f"control-{kind}"))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_guided_drawing_is_what_plain_diffusers_draws(
    kind: str, family: Family, control: Family, t2i: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture((32, 32), 3).save("map.png")
    words = ("-m", str(family(kind)), "--guidance", "3", "--size", "32", "-s", "5", "-b", "2", "-o", "out/{seed}.png")
    ran = t2i("a horse", "--control", f"{control(kind)}:map.png:0.7", *words)
    assert ran.code == 0, ran.err
    assert "guided by" in ran.err
    name = "image" if kind in ("sd15", "sdxl") else "control_image"
    options: dict[str, Any] = {
        name: picture((32, 32), 3),
        "controlnet_conditioning_scale": 0.7,
        "num_inference_steps": 2,
    }
    with monkeypatch.context() as patch:
        if kind == "sd3":  # it draws the map's latents from the global generator; ours takes their mean
            from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

            patch.setattr(DiagonalGaussianDistribution, "sample", DiagonalGaussianDistribution.mode)
        theirs = plain(GUIDED[kind], family(kind), [5, 6], control=control(kind), guidance_scale=3.0, **options)
    assert gap("out/5.png", theirs[0]) <= 1
    assert gap("out/6.png", theirs[1]) <= 1
    alone = ("-m", str(family(kind)), "--guidance", "3", "--size", "32", "-s", "6", "-o")
    ran = t2i("a horse", "--control", f"{control(kind)}:map.png:0.7", *alone, "alone/{seed}.png")
    assert np.abs(pixels("alone/6.png") - pixels("out/6.png")).max() <= 1, ran.err
    assert t2i("a horse", *alone, "free/{seed}.png").code == 0
    assert np.abs(pixels("free/6.png") - pixels("out/6.png")).max() > 5  # it does guide
    made = recipe.read(Path("out/5.png")).recipe
    assert made is not None
    about = {"name": "map.png", "hash": images.pixel_hash(picture((32, 32), 3))}
    assert made.edit == {"size": [32, 32], "controls": [{"net": f"control-{kind}", "scale": 0.7, **about}]}
    assert str(control(kind).parent) not in made.to_json()


@pytest.mark.parametrize("kind", GUIDED_IMAGE_TO_IMAGE)
def test_guided_image_to_image_is_what_plain_diffusers_draws(
    kind: str, family: Family, control: Family, t2i: Run
) -> None:
    picture().save("start.png")
    picture((64, 64), 3).save("map.png")  # scaled to what is drawn
    words = ("-m", str(family(kind)), "--guidance", "3", "-s", "5", "-o", "a.png")
    ran = t2i(
        "a horse", "-i", "start.png", "--strength", "0.5", "--control", f"{control(kind)}:map.png", *words, steps="4"
    )
    assert ran.code == 0, ran.err
    small = picture((64, 64), 3).resize((32, 32), 1)
    options: dict[str, Any] = {
        "image": [picture()],
        "control_image": small,
        "strength": 0.5,
        "controlnet_conditioning_scale": 1.0,
    }
    theirs = plain(
        GUIDED_IMAGE_TO_IMAGE[kind],
        family(kind),
        [5],
        control=control(kind),
        num_inference_steps=4,
        guidance_scale=3.0,
        **options,
    )
    assert gap("a.png", theirs[0]) <= 1


def test_two_controls_guide_together_and_each_image_is_the_same_alone(family: Family, control: Family) -> None:
    draw = load(family("sd15"))
    one, two = (
        Control(str(control("sd15")), ImageInput.of(picture(shift=shift)), scale)
        for shift, scale in ((1, 0.5), (4, 0.8))
    )
    both = draw("a horse", seed=1, num_images=3, steps=2, control=[one, two], width=32, height=32)
    alone = draw("a horse", seed=3, steps=2, control=[one, two], width=32, height=32)[0]
    single = draw("a horse", seed=3, steps=2, control=one, width=32, height=32)[0]
    assert np.abs(np.asarray(both[2], np.int16) - np.asarray(alone, np.int16)).max() <= 1
    assert np.abs(np.asarray(single, np.int16) - np.asarray(alone, np.int16)).max() > 2
    assert [about["scale"] for about in alone.recipe.edit["controls"]] == [0.5, 0.8]


def test_a_guided_mask_keeps_what_it_does_not_cover(family: Family, control: Family, t2i: Run) -> None:
    picture().save("start.png")
    half_mask().save("mask.png")
    picture(shift=3).save("map.png")
    words = ("-i", "start.png", "--mask", "mask.png", "--control", f"{control('sd15')}:map.png")
    ran = t2i("a horse", "-m", str(family("sd15")), *words, "-s", "1", "-o", "a.png")
    assert ran.code == 0, ran.err
    changed = np.abs(pixels("a.png") - pixels("start.png")).max(-1) > 0
    assert not changed[:, :16].any()
    assert changed[:, 16:].mean() > 0.9


def test_it_is_guided_again_from_its_record(family: Family, control: Family, t2i: Run, here: Path) -> None:
    shutil.copytree(control("sd15"), here / "edges")
    picture(shift=3).save("map.png")
    words = ("-m", str(family("sd15")), "--size", "32")
    assert t2i("a horse", "--control", "./edges:map.png:0.5", *words, "-o", "a.png").code == 0
    ran = t2i("--from", "a.png", "-m", str(family("sd15")), "-o", "b.png", steps="")
    assert (ran.code, "a.png: identical" in ran.err) == (0, True), ran.err


@pytest.mark.parametrize(
    ("text", "net", "name", "scale"),
    [
        ("canny:a.png", "canny", "a.png", 1.0),
        ("canny:a.png:0.5", "canny", "a.png", 0.5),
        ("owner/name:a.png:2", "owner/name", "a.png", 2.0),
        ("canny:b:0.5", "canny", "b:0.5", 1.0),  # a file of just that name
        ("./folder:a.png", "./folder", "a.png", 1.0),
    ],
)
def test_how_a_control_is_written(here: Path, text: str, net: str, name: str, scale: float) -> None:
    from t2i.pipelines.settings.edit import read_control

    picture().save("a.png")
    if "b:" in text:
        picture().save("b:0.5", "PNG")
    found = read_control(text)
    assert (found.net, found.image_input.name, found.scale) == (net, name, scale)


def test_every_family_has_known_controls_of_the_class_that_guides_it() -> None:
    assert CONTROLNETS.keys() == KINDS.keys()
    for known in CONTROLNETS.values():
        assert "canny" in known
        assert all(id.count("/") == 1 for id in known.values())


# --- what is refused ---


def test_what_a_control_may_be_is_said_where_it_is_not_known(t2i: Run, family: Family) -> None:
    picture().save("map.png")

    def run(code: int, control: str, kind: str = "sd15") -> str:
        ran = t2i("a horse", "-m", str(family(kind)), "--size", "32", "--control", control, "-o", "a.png")
        assert (ran.code, "Traceback" in ran.err) == (code, False), ran.err
        return ran.err

    said = run(2, "edges:map.png")
    assert "control 'edges': no folder, and no type known for this model" in said
    assert "types: canny, depth, pose, scribble, tile" in said
    assert "types: canny, pose, tile;" in run(2, "depth:map.png", "sd3")
    assert "expected TYPE:IMAGE" in run(2, "canny")
    assert "nope.png: no such file" in run(1, "canny:nope.png")
    assert "control scale: got 11, allowed 0 to 10" in run(2, "canny:map.png:11")
    said = run(4, "canny:map.png")
    assert "'lllyasviel/control_v11p_sd15_canny' is not in the cache" in said
    assert "hf download lllyasviel/control_v11p_sd15_canny config.json" in said
    assert "InstantX/FLUX.1-dev-Controlnet-Canny" in run(4, "canny:map.png", "flux")


def test_a_control_of_another_base_model_is_refused(t2i: Run, family: Family, control: Family, here: Path) -> None:
    picture().save("map.png")
    words: tuple[str, ...] = ("--size", "32", "-o", "a.png")
    ran = t2i("a horse", "-m", str(family("sd15")), "--control", f"{control('flux')}:map.png", *words)
    assert (ran.code, "is a FluxControlNetModel, this model is guided by a ControlNetModel" in ran.err) == (2, True)
    ran = t2i("a horse", "-m", str(family("sdxl")), "--control", f"{control('sd15')}:map.png", *words)
    assert (ran.code, "was made for another base model (cross_attention_dim" in ran.err) == (2, True), ran.err
    picture().save("start.png")
    words += ("-i", "start.png")
    ran = t2i("a horse", "-m", str(family("sd3")), "--control", f"{control('sd3')}:map.png", *words)
    assert ran.code == 2
    assert "this model (stable-diffusion-3) has no image-to-image with --control" in ran.err
    assert "it has text-to-image, text-to-image with --control, image-to-image, inpainting" in ran.err
    assert files(here) == ["map.png", "start.png"]


def test_a_controls_files_are_checked_before_they_are_loaded(
    t2i: Run, family: Family, control: Family, here: Path
) -> None:
    picture().save("map.png")
    weights = "diffusion_pytorch_model.safetensors"

    def run(damage: Callable[[Path], object]) -> str:
        folder = here / "net"
        shutil.copytree(control("sd15"), folder)
        damage(folder)
        ran = t2i("a horse", "-m", str(family("sd15")), "--size", "32", "--control", "./net:map.png", "-o", "a.png")
        shutil.rmtree(folder)
        assert (ran.code, "Traceback" in ran.err) == (1, False), ran.err
        return ran.err

    assert "no config.json names its class" in run(lambda folder: (folder / "config.json").unlink())
    assert f"{weights} is empty" in run(lambda folder: (folder / weights).write_bytes(b""))
    assert "is a pickle" in run(lambda folder: (folder / weights).write_bytes(b"\x80\x04" + b"x" * 64))
    assert "only pickled weights" in run(
        lambda folder: (folder / weights).rename(folder / "diffusion_pytorch_model.bin")
    )
    assert "carries its own code" in run(lambda folder: (folder / "net.py").write_text("boom"))
    assert "carries its own code ('auto_map'" in run(lambda folder: _add(folder / "config.json", "auto_map"))
    assert "cut short" in run(lambda folder: (folder / weights).write_bytes((folder / weights).read_bytes()[:-40]))


def _add(path: Path, key: str) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {key: {}}), encoding="utf-8")
