"""Image-to-image and inpainting: what plain diffusers draws, sizes, seeds, records, and every wrong input's message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing_kit import IMAGE_TO_IMAGE, INPAINTING, gap, half_mask, picture, pixels, plain
from family_kit import FAMILIES
from generate_kit import Run, files
from PIL import Image

from t2i import load
from t2i.imaging import images
from t2i.metadata import recipe
from t2i.pipelines.settings.edit import make_image_inputs
from t2i.pipelines.settings.settings import Job

Family = Callable[[str], Path]


def record(path: str | Path) -> recipe.Recipe:
    made = recipe.read(Path(path)).recipe
    assert made is not None
    return made


# --- the same as plain diffusers ---


@pytest.mark.parametrize("kind", FAMILIES)
def test_image_to_image_draws_what_plain_diffusers_draws(kind: str, family: Family, t2i: Run) -> None:
    picture().save("start.png")
    words = ("-m", str(family(kind)), "--guidance", "3", "-s", "5", "-b", "2", "-o", "out/{seed}.png")
    ran = t2i("a horse", "-i", "start.png", "--strength", "0.5", *words, steps="4")
    assert ran.code == 0, ran.err
    assert "from start.png, strength 0.5 (2 steps run)" in ran.err
    options: dict[str, Any] = {
        "image": [picture()] * 2,
        "strength": 0.5,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
    }
    theirs = plain(IMAGE_TO_IMAGE[kind], family(kind), [5, 6], **options)
    assert gap("out/5.png", theirs[0]) <= 1
    assert gap("out/6.png", theirs[1]) <= 1
    assert np.abs(pixels("out/5.png") - pixels("out/6.png")).max() > 8
    alone = ("-m", str(family(kind)), "--guidance", "3", "-s", "6", "-o", "alone.png")
    assert t2i("a horse", "-i", "start.png", "--strength", "0.5", *alone, steps="4").code == 0
    assert np.abs(pixels("out/6.png") - pixels("alone.png")).max() <= 1


@pytest.mark.parametrize("kind", FAMILIES)
def test_inpainting_draws_what_plain_diffusers_draws_and_keeps_the_rest(kind: str, family: Family, t2i: Run) -> None:
    picture().save("start.png")
    half_mask().save("mask.png")
    words = ("-m", str(family(kind)), "--guidance", "3", "-s", "5", "-b", "2", "-o", "out/{seed}.png")
    ran = t2i("a horse", "-i", "start.png", "--mask", "mask.png", "--strength", "0.8", *words, steps="4")
    assert ran.code == 0, ran.err
    options: dict[str, Any] = {"image": [picture()] * 2, "mask_image": [half_mask()] * 2, "strength": 0.8}
    theirs = plain(INPAINTING[kind], family(kind), [5, 6], num_inference_steps=4, guidance_scale=3.0, **options)
    start = np.asarray(picture(), np.int16)
    for seed, drawn in zip((5, 6), theirs, strict=True):
        ours = pixels(f"out/{seed}.png")
        assert np.abs(ours[:, 16:] - drawn[:, 16:] * 255).max() <= 1
        assert (ours[:, :16] == start[:, :16]).all()
        assert np.abs(ours[:, 16:] - start[:, 16:]).max() > 30


def test_every_scheduler_starts_from_a_picture_as_in_plain_diffusers(epsilon_pipeline: Path) -> None:
    import diffusers
    import torch

    from t2i.pipelines.settings.schedulers import SCHEDULERS, make_scheduler

    draw = load(epsilon_pipeline)
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(epsilon_pipeline)
    pipe.set_progress_bar_config(disable=True)
    own = pipe.scheduler
    for name in SCHEDULERS:
        ours = draw("a horse", seed=5, steps=6, guidance=3, image=picture(), strength=0.5, scheduler=name)[0]
        pipe.scheduler = make_scheduler(name, own)
        generator = [torch.Generator().manual_seed(5)]
        options = {"num_inference_steps": 6, "guidance_scale": 3.0, "strength": 0.5, "output_type": "np"}
        theirs = pipe(["a horse"], image=[picture()], generator=generator, **options).images[0]
        assert np.abs(np.asarray(ours, np.float32) - theirs * 255).max() <= 1, name


@pytest.mark.slow
def test_mini_draws_from_a_picture_what_plain_diffusers_draws(t2i: Run) -> None:
    from t2i.model_files.registry import MINI
    from t2i.pipelines.settings.schedulers import make_scheduler

    assert t2i("a horse", "-m", "mini", "-s", "3", "-o", "start.png", steps="20").code == 0
    ran = t2i("a horse, sketch", "-m", "mini", "-i", "start.png", "-s", "5", "-o", "sketch.png", steps="20")
    assert ran.code == 0, ran.err

    import diffusers
    import torch

    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(MINI)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = make_scheduler("dpm++2m", pipe.scheduler)
    theirs = pipe(
        ["a horse, sketch"],
        image=[images.decode(Path("start.png"))],
        strength=0.6,
        num_inference_steps=20,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(5)],
        output_type="np",
    ).images[0]
    assert gap("sketch.png", theirs) <= 1
    start, sketch = pixels("start.png"), pixels("sketch.png")
    colour = [float((p.max(-1) - p.min(-1)).mean()) for p in (start, sketch)]
    assert colour[1] < colour[0] / 2  # a brown horse became a grey drawing,
    dark = [p.mean(-1) < 128 for p in (start, sketch)]
    assert (dark[0] & dark[1]).sum() > 0.3 * dark[1].sum()  # and stands where it stood


def test_another_task_shares_the_networks_and_lets_them_go_with_their_pipeline(tiny_pipeline: Path) -> None:
    from t2i.pipelines.settings.settings import PipelineTraits
    from t2i.pipelines.text_to_image.passes import ImagePasses

    pipe = load(tiny_pipeline).model.pipe
    passes = ImagePasses(pipe)
    passes.check(make_image_inputs(picture(), half_mask()), PipelineTraits.of(pipe))
    assert not passes._pipes
    passes._pipeline("inpainting", ())
    (other,) = passes._pipes.values()
    assert type(other).__name__ == "StableDiffusionInpaintPipeline"
    assert all(other.components[name] is part for name, part in pipe.components.items() if name != "scheduler")
    passes.adopt(None)
    assert not passes._pipes


# --- one image, one seed ---


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scheduler", ["dpm++2m", "euler-a"])
def test_image_k_is_the_same_alone_and_in_a_batch(tiny_pipeline: Path, scheduler: str, masked: bool) -> None:
    draw = load(tiny_pipeline)
    mask = half_mask() if masked else None
    options: dict[str, Any] = {"steps": 4, "scheduler": scheduler, "image": picture(), "mask": mask, "strength": 0.8}
    together = draw("a horse", seed=7, num_images=4, **options)
    alone = draw("a horse", seed=9, **options)[0]
    assert np.abs(np.asarray(together[2], np.int16) - np.asarray(alone, np.int16)).max() <= 1
    assert np.abs(np.asarray(together[1], np.int16) - np.asarray(alone, np.int16)).max() > 8


def test_strength_says_how_many_steps_run_and_1_forgets_the_picture(tiny_pipeline: Path) -> None:
    draw = load(tiny_pipeline)
    ran = 0
    settings = draw.model.settings(steps=5, edit=make_image_inputs(picture(), strength=0.7))
    pipe = draw.model.runner.passes._pipeline("image-to-image", ())
    unet, forward = pipe.unet, pipe.unet.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal ran
        ran += 1
        return forward(*args, **kwargs)

    unet.forward = counted
    try:
        list(draw.model.draw([Job("a horse", 1)], settings))
    finally:
        unet.forward = forward
    assert ran == 3  # int(5 x 0.7)
    # This model's noise is pure at its first step (a flow), so that another picture changes nothing but rounding.
    one, two = (draw("a horse", seed=1, steps=4, image=p, strength=1)[0] for p in (picture(), picture(shift=3)))
    assert np.abs(np.asarray(one, np.int16) - np.asarray(two, np.int16)).max() <= 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_noise_in_half_precision_is_float32s_noise_rounded(dtype: str) -> None:
    import torch

    from t2i.pipelines.noise import draw_in_float32

    kind = getattr(torch, dtype)

    def prepare() -> torch.Tensor:
        return torch.randn((1, 4, 6, 5), generator=torch.Generator().manual_seed(4), dtype=kind)

    whole = torch.randn((1, 4, 6, 5), generator=torch.Generator().manual_seed(4))
    assert torch.equal(draw_in_float32(prepare)(), whole.to(kind))
    assert not torch.equal(prepare(), whole.to(kind))  # torch itself draws other numbers here


def test_in_half_precision_the_same_seed_gives_the_same_picture_roughly(tiny_pipeline: Path) -> None:
    half, whole = load(tiny_pipeline, dtype="bfloat16"), load(tiny_pipeline)
    options: dict[str, Any] = {"steps": 4, "image": picture((24, 24)), "strength": 0.8}
    a, b, other = (
        np.asarray(draw("a horse", seed=seed, **options)[0], np.float32)
        for draw, seed in ((half, 3), (whole, 3), (whole, 4))
    )
    assert np.abs(a - b).mean() < np.abs(other - b).mean() / 4


# --- sizes and kinds of pictures ---


@pytest.mark.parametrize(
    ("size", "words", "drawn"),
    [
        ((32, 32), (), (32, 32)),
        ((27, 24), (), (24, 24)),  # cut to the multiple of 8
        ((64, 16), (), (64, 16)),  # as many pixels as the model's 32x32
        ((128, 128), (), (32, 32)),
        ((200, 100), (), (40, 16)),
        ((1, 1), (), (8, 8)),
        ((64, 32), ("-W", "48"), (48, 24)),
        ((64, 32), ("-H", "16"), (32, 16)),
        ((64, 32), ("--size", "24x40"), (24, 40)),
    ],
)
def test_a_picture_is_drawn_at_its_own_size_or_at_what_is_said(
    t2i: Run, size: tuple[int, int], words: tuple[str, ...], drawn: tuple[int, int]
) -> None:
    picture(size).save("start.png")
    ran = t2i("a horse", "-i", "start.png", *words, "-o", "a.png")
    assert ran.code == 0, ran.err
    assert images.decode(Path("a.png")).size == drawn
    note = f"note: start.png is {size[0]}x{size[1]}: scaled and cropped to {drawn[0]}x{drawn[1]}"
    assert (note in ran.err) == (size != drawn)


def test_covering_cuts_evenly_and_leaves_a_fitting_picture_alone() -> None:
    from t2i.pipelines.settings.image_input import cover

    wide = picture((40, 16))
    lanczos = Image.Resampling.LANCZOS
    assert cover(wide, (40, 16), lanczos).tobytes() == wide.tobytes()
    assert cover(wide, (16, 16), lanczos).tobytes() == wide.crop((12, 0, 28, 16)).tobytes()
    assert cover(wide, (8, 8), lanczos).tobytes() == wide.crop((12, 0, 28, 16)).resize((8, 8), lanczos).tobytes()
    mask = cover(half_mask((64, 64)), (8, 8), Image.Resampling.NEAREST)
    assert np.unique(np.asarray(mask)).tolist() == [0, 255]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "EXIF"])
def test_any_kind_of_picture_is_taken_as_it_is_seen(t2i: Run, mode: str) -> None:
    if mode == "EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side
        picture((32, 16)).save("start.jpg", exif=exif)
    else:
        picture().convert(mode).save("start.jpg" if mode == "CMYK" else "start.png")
    start = "start.jpg" if mode in ("EXIF", "CMYK") else "start.png"
    ran = t2i("a horse", "-i", start, "-s", "1", "-o", "a.png")
    assert ran.code == 0, ran.err
    seen = images.decode(Path(start))
    assert images.decode(Path("a.png")).size == seen.size == ((16, 32) if mode == "EXIF" else (32, 32))
    assert record("a.png").edit["image"] == {"name": start, "hash": images.pixel_hash(seen)}


def test_a_mask_is_white_from_the_middle_grey_on_and_of_any_size_of_its_shape(t2i: Run) -> None:
    picture().save("start.png")
    grey = Image.new("L", (64, 64), 127)
    grey.paste(128, (0, 0, 64, 16))
    grey.save("mask.png")
    ran = t2i("a horse", "-i", "start.png", "--mask", "mask.png", "-s", "1", "-o", "a.png")
    assert ran.code == 0, ran.err
    changed = np.abs(pixels("a.png") - pixels("start.png")).max(-1) > 0
    assert not changed[8:].any()
    assert changed[:8].mean() > 0.9
    assert "strength 1 (2 steps run), mask mask.png" in ran.err


# --- the record, and drawing again ---


def test_the_record_holds_hashes_and_no_folder_and_a1111s_strength(t2i: Run, here: Path) -> None:
    (here / "secret").mkdir()
    picture().save(here / "secret" / "start.png")
    half_mask().save(here / "secret" / "mask.png")
    words = ("-i", str(here / "secret" / "start.png"), "--mask", "secret/mask.png", "--strength", "0.75")
    ran = t2i("a horse", *words, "-o", "a.png", "--json", steps="4")
    assert ran.code == 0, ran.err
    made = record("a.png")
    assert made.edit == {
        "size": [32, 32],
        "image": {"name": "start.png", "hash": images.pixel_hash(picture())},
        "strength": 0.75,
        "mask": {"name": "mask.png", "hash": images.pixel_hash(half_mask())},
    }
    assert json.loads(ran.out)["edit"] == made.edit
    assert "secret" not in made.to_json() + made.parameters()
    assert "Denoising strength: 0.75" in made.parameters()
    assert recipe.Recipe.from_json(made.to_json()) == made


def test_it_is_drawn_again_from_the_picture_beside_it_or_the_one_given(t2i: Run, here: Path) -> None:
    (here / "set").mkdir()
    picture((40, 32)).save("set/start.png")
    assert t2i("a horse", "-i", "set/start.png", "--strength", "0.5", "-o", "set/a.png", steps="4").code == 0
    ran = t2i("--from", "set/a.png", "-o", "b.png", steps="")
    assert (ran.code, "set/a.png: identical" in ran.err) == (0, True), ran.err

    (here / "set" / "start.png").rename(here / "start.png")  # the working folder will do
    ran = t2i("--from", "set/a.png", "-o", "c.png", steps="")
    assert (ran.code, "set/a.png: identical" in ran.err) == (0, True), ran.err

    (here / "start.png").rename(here / "moved.png")
    picture((40, 32), shift=3).save("start.png")
    ran = t2i("--from", "set/a.png", "-o", "d.png", steps="")
    told, other = (images.pixel_hash(picture((40, 32), shift))[:16] for shift in (0, 3))
    assert ran.code == 2
    assert f"drawn from start.png (pixels {told}), which is neither next to it nor here" in ran.err
    assert f"the start.png there is another image (pixels {other})" in ran.err
    assert "give its place: --image FILE" in ran.err
    ran = t2i("--from", "set/a.png", "-i", "moved.png", "-o", "d.png", steps="")
    assert (ran.code, "set/a.png: identical" in ran.err) == (0, True), ran.err
    ran = t2i("--from", "set/a.png", "-i", "start.png", "-o", "e.png", steps="")
    assert (ran.code, "drawn anew, with another input image, strength or ControlNet" in ran.err) == (0, True)
    ran = t2i("--from", "set/a.png", "-i", "moved.png", "--strength", "0.9", "-o", "f.png", steps="")
    assert record("f.png").edit["strength"] == 0.9


def test_a_record_from_a_stranger_leads_to_no_other_folder(t2i: Run, here: Path) -> None:
    from dataclasses import replace

    picture().save("start.png")
    assert t2i("a horse", "-i", "start.png", "-o", "a.png").code == 0
    made = record("a.png")
    (here / "start.png").rename(here.parent / "start.png")
    about = made.edit["image"] | {"name": "../start.png"}
    images.save(images.decode(Path("a.png")), Path("b.png"), recipe=replace(made, edit=made.edit | {"image": about}))
    ran = t2i("--from", "b.png", "-o", "c.png", steps="")
    assert (ran.code, "drawn from start.png" in ran.err) == (2, True)
    images.save(images.decode(Path("a.png")), Path("d.png"), recipe=replace(made, edit={"image": 3}))
    ran = t2i("--from", "d.png", "-o", "c.png", steps="")
    assert (ran.code, "the record of its input images is damaged" in ran.err) == (1, True)


def test_a1111s_strength_holds_where_the_picture_is_given(t2i: Run) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = "a horse\nSteps: 4, Sampler: Euler, CFG scale: 3, Seed: 7, Size: 32x32, Denoising strength: 0.5, RNG: CPU"
    about = PngInfo()
    about.add_text("parameters", text)
    picture().save("theirs.png", pnginfo=about)
    ran = t2i("--from", "theirs.png", "-o", "a.png", steps="")
    assert "not restored: Denoising strength: 0.5 (image-to-image: the input image is not in the file" in ran.err
    assert record("a.png").edit == {}
    ran = t2i("--from", "theirs.png", "-i", "theirs.png", "-o", "b.png", steps="")
    assert "Denoising" not in ran.err
    assert record("b.png").edit["strength"] == 0.5


# --- rows and batches ---


def test_rows_name_pictures_of_their_own_and_a_batch_knows_them_by_their_pixels(t2i: Run, here: Path) -> None:
    picture().save("one.png")
    picture(shift=2).save("two.png")
    rows = [
        {"prompt": "a horse", "image": "one.png", "strength": 0.5},
        {"prompt": "a horse", "init_image": "two.png", "strength": "0.5"},
        {"prompt": "a horse"},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ran = t2i("--prompts", "rows.jsonl", "-o", "out/", "-s", "1", steps="4")
    assert ran.code == 0, ran.err
    made = files(here / "out")
    names = [name for name in made if name.endswith(".png")]
    assert [record(here / "out" / name).edit.get("image", {}).get("name") for name in names] == [
        "one.png",
        "two.png",
        None,
    ]
    (here / "one.png").rename(here / "renamed.png")
    picture(shift=2).save("one.png")  # another picture under the old name: the first row is to be drawn again
    ran = t2i("--prompts", "rows.jsonl", "-o", "out/", "-s", "1", steps="4")
    assert ran.code == 0, ran.err
    assert "1 images drawn, 2 were there" in ran.err


def test_another_picture_is_another_batch(t2i: Run) -> None:
    picture().save("one.png")
    picture(shift=2).save("two.png")
    picture().save("same.png")
    Path("p.txt").write_text("a horse\n", encoding="utf-8")
    assert t2i("--prompts", "p.txt", "-o", "out/", "-i", "one.png").code == 0
    ran = t2i("--prompts", "p.txt", "-o", "out/", "-i", "two.png")
    assert (ran.code, "holds another batch" in ran.err) == (2, True)
    ran = t2i("--prompts", "p.txt", "-o", "out/", "-i", "same.png")
    assert "0 images drawn, 1 were there" in ran.err


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "nope.png"}, "rows.jsonl, line 1: nope.png: no such file"),
        ({"image": 3}, "image: got '3', expected text"),
        ({"strength": 2}, "strength: got 2, allowed above 0"),
        ({"strength": "much"}, "strength: got 'much', expected a number"),
        ({"upscale": "2:x"}, "upscale strength: got 'x', expected a number"),
        ({"control": ["canny"]}, "control: got 'canny', expected TYPE:IMAGE"),
    ],
)
def test_a_row_that_is_wrong_is_named(t2i: Run, row: dict[str, object], words: str) -> None:
    Path("rows.jsonl").write_text(json.dumps({"prompt": "a horse", **row}), encoding="utf-8")
    ran = t2i("--prompts", "rows.jsonl", "-o", "a.png")
    assert ran.code == (1 if row.get("image") == "nope.png" else 2)
    assert words in ran.err
    assert "line 1" in ran.err


# --- what is refused ---


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("-i", "nope.png"), "nope.png: no such file", ""),
        (("-i", "text.png"), "text.png: text, not an image", ""),
        (("-i", "cut.png"), "cut.png: the image is truncated or damaged", ""),
        (("-i", "huge.png"), "more than 89,000,000 pixels; refused before decoding", ""),
        (("--mask", "mask.png"), "mask mask.png without an image to repaint", "--image"),
        (("--strength", "0.5"), "strength 0.5 without an image to start from", "--image"),
        (("-i", "start.png", "--strength", "0"), "strength: got 0, allowed above 0 (little noise) to 1", ""),
        (("-i", "start.png", "--strength", "1.1"), "strength: got 1.1, allowed above 0", ""),
        (("-i", "start.png", "--strength", "nan"), "strength: got nan, allowed above 0", ""),
        (
            ("-i", "start.png", "--strength", "0.3"),
            "strength: 0.3 of 2 steps runs no step",
            "at least 0.5, or at least 4",
        ),
        (("-i", "start.png", "--mask", "wide.png"), "mask wide.png is 64x32, image start.png 32x32: another", "size"),
        (("-i", "start.png", "--mask", "black.png"), "mask black.png: black all over", "white is repainted"),
        (("-i", "start.png", "--mask", "mask.png", "--upscale", "2"), "a second pass would redraw", "--upscale"),
        (("-i", "start.png", "-W", "33"), "width: got 33, this model needs a multiple of 8", "32"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(
    t2i: Run, here: Path, words: tuple[str, ...], message: str, hint: str
) -> None:
    import struct
    import zlib

    picture().save("start.png")
    half_mask().save("mask.png")
    Image.new("L", (64, 32), 255).save("wide.png")
    Image.new("L", (32, 32), 0).save("black.png")
    Path("text.png").write_text("hello", encoding="utf-8")
    data = Path("start.png").read_bytes()
    Path("cut.png").write_bytes(data[: len(data) // 2])
    head = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    huge = data[:8] + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    Path("huge.png").write_bytes(huge)
    before = files(here)
    ran = t2i("a horse", *words, "-o", "out/a.png")
    unreadable = words[1] in ("nope.png", "text.png", "cut.png", "huge.png")
    assert ran.code == (1 if unreadable else 2)
    assert message in ran.err
    assert hint in ran.err
    assert "Traceback" not in ran.err
    assert files(here) == before
