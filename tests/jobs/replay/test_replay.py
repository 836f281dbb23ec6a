"""`t2i generate --from`: an image is made again by its own record, and what cannot be restored is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate_kit import Run, files
from PIL import Image, PngImagePlugin

from t2i.imaging import images
from t2i.jobs.replay.a1111_import import import_settings
from t2i.metadata import recipe
from t2i.metadata.a1111 import parse
from t2i.metadata.recipe import Mark, Recipe


def record(path: str | Path) -> Recipe:
    made = recipe.read(Path(path)).recipe
    assert made is not None
    return made


def imported(path: Path, text: str) -> Path:
    """An image with another tool's text: PNG text, or EXIF in the other formats."""
    picture = Image.new("RGB", (32, 32))
    if path.suffix == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", text)
        picture.save(path, pnginfo=info)
    else:
        from t2i.metadata.embedding import embed

        options = {"exif": embed("JPEG", text)["exif"]}
        picture.save(path, **options)
    return path


# --- our own record ---


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_picture_is_the_same_bit_for_bit(t2i: Run, suffix: str) -> None:
    options = ("-n", "a cat", "-s", "7", "--guidance", "3", "--size", "40x48", "--sampler", "Euler a", "-b", "2")
    first = t2i("a horse", *options, "-o", "first/", "--format", suffix).lines
    assert len(first) == 2
    for path in first:
        ran = t2i("--from", path, "-o", "again/", steps="")
        assert ran.code == 0
        assert f"{path}: identical" in ran.err
        assert record(ran.lines[0]).image_hash == record(path).image_hash
        assert replace(record(ran.lines[0]), scheduler_config={}) == replace(record(path), scheduler_config={})


def test_an_image_of_a_batch_is_drawn_as_in_its_batch(t2i: Run, monkeypatch: Any) -> None:
    from t2i.pipelines.text_to_image.runner import PipelineRunner

    drawn, draw = [], PipelineRunner.draw

    def watch(self: Any, batch: Any, *rest: Any) -> Any:
        drawn.append([job.seed for job in batch])
        return draw(self, batch, *rest)

    many = t2i("a horse", "-b", "5", "-s", "10", "-o", "many/").lines
    monkeypatch.setattr(PipelineRunner, "draw", watch)
    ran = t2i("--from", many[3], "-o", "again/", steps="")
    assert "identical" in ran.err
    assert (len(ran.lines), drawn) == (1, [[13] * 5])
    assert record(ran.lines[0]).batch_index == record(many[3]).batch_index == 3
    ran = t2i("--from", many[3], "--batch-size", "1", "-o", "alone/", steps="")
    assert drawn[1] == [13]
    assert "identical" in ran.err or ("5 at once; here 1 at once" in ran.err and "at most 1 of 255" in ran.err)


def test_several_images_are_made_again_in_their_order(t2i: Run) -> None:
    a = t2i("a horse", "-s", "1", "-o", "a.png").lines[0]
    b = t2i("a cat", "-s", "2", "--guidance", "2", "-o", "b.png").lines[0]
    ran = t2i("--from", b, "--from", a, "-o", "again/", "--json", steps="")
    assert [json.loads(line)["prompt"] for line in ran.lines] == ["a cat", "a horse"]
    assert ran.err.count("identical") == 2


@pytest.mark.parametrize(
    ("options", "changed", "words"),
    [
        (["--steps", "3"], {"steps": 3}, "number of steps"),
        (["-s", "9"], {"seed": 9}, None),
        (["--guidance", "2"], {"guidance": 2.0}, "guidance"),
        (["a dog"], {"prompt": "a dog", "template": "a dog"}, "prompt"),
        (["-n", ""], {"negative_prompt": ""}, "negative prompt"),
        (["-W", "40"], {"width": 40}, "width"),
        (["--size", "40"], {"width": 40, "height": 40}, "width, height"),
        (["--scheduler", "euler"], {"scheduler": "euler"}, "scheduler"),
        (["--dtype", "bfloat16"], {"dtype": "bfloat16"}, "dtype"),
    ],
)
def test_any_option_overrides_and_the_rest_stays(
    t2i: Run,
    options: list[str],
    changed: dict[str, Any],
    words: str | None,
) -> None:
    path = t2i("a horse", "-n", "a cat", "-s", "7", "--guidance", "3", "--sampler", "Euler a", "-o", "a.png").lines[0]
    ran = t2i("--from", path, *options, "-o", "b.png", steps="")
    assert ran.code == 0, ran.err
    told, made = record(path), record(ran.lines[0])
    for name in ("prompt", "negative_prompt", "seed", "steps", "guidance", "width", "height", "scheduler", "dtype"):
        assert getattr(made, name) == changed.get(name, getattr(told, name)), name
    assert "identical" not in ran.err
    assert words is None or f"drawn anew, with another {words}\n" in ran.err


def test_more_images_count_on_from_the_recorded_seed(t2i: Run) -> None:
    path = t2i("a horse", "-s", "7", "-o", "a.png").lines[0]
    ran = t2i("--from", path, "-b", "3", "-o", "{seed}.png", steps="")
    assert ran.lines == ["7.png", "8.png", "9.png"]
    assert ran.err.count("identical") == 1


def test_the_models_own_scheduler_is_used_where_its_settings_are_special(
    t2i: Run,
    pipeline_copy: Path,
) -> None:
    config = pipeline_copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lower_order_final": False, "use_karras_sigmas": 0}))
    path = t2i("a horse", "-m", str(pipeline_copy), "-s", "1", "-o", "a.png", steps="4").lines[0]
    ran = t2i("--from", path, "-m", str(pipeline_copy), "-o", "b.png", steps="")
    assert "identical" in ran.err
    assert record("b.png").scheduler_config == record(path).scheduler_config


def test_a_difference_says_what_was_different_and_by_how_much(t2i: Run, here: Path) -> None:
    path = Path(t2i("a horse", "-s", "7", "-o", "a.png").lines[0])
    told = record(path)
    versions = {"versions": told.versions | {"torch": "1.2.3"}, "hardware": "NVIDIA H100", "device": "cpu"}
    off = np.asarray(images.decode(path)).copy()
    off[0, 0, 0] ^= 1
    other = Image.fromarray(off)
    made = replace(told, **versions, image_hash=images.pixel_hash(other))
    images.save(other, here / "b.png", recipe=made)
    ran = t2i("--from", "b.png", "-o", "c.png", steps="")
    assert ran.code == 0
    assert f"b.png: differs, made with torch 1.2.3, NVIDIA H100; here torch {told.versions['torch']}" in ran.err
    assert "at most 1 of 255 in a pixel, 0.000 in the mean" in ran.err
    images.save(other, here / "d.jpg", recipe=made)
    assert "by how much is not known" in t2i("--from", "d.jpg", "-o", "e.png", steps="").err


def test_other_weights_under_the_same_name_are_said_with_both_hashes(
    t2i: Run,
    here: Path,
    pipeline_copy: Path,
) -> None:
    path = t2i("a horse", "-s", "7", "-o", "a.png").lines[0]
    told = record(path)
    images.save(images.decode(Path(path)), here / "b.png", recipe=replace(told, weights_hash="f" * 64))
    ran = t2i("--from", "b.png", "-o", "c.png", steps="")
    assert "warning: b.png was made with weights ffffffffff" in ran.err
    assert f"has weights {str(told.weights_hash)[:10]}" in ran.err


def test_a_model_that_is_not_here_is_named_and_may_be_given(t2i: Run, here: Path, tiny_pipeline: Path) -> None:
    path = Path(t2i("a horse", "-s", "7", "-o", "a.png").lines[0])
    images.save(images.decode(path), here / "b.png", recipe=replace(record(path), model="elsewhere"))
    ran = t2i("--from", "b.png", steps="")
    assert (ran.code, ran.out) == (4, "")
    assert "its model 'elsewhere'" in ran.err
    assert "--model FOLDER" in ran.err
    ran = t2i("--from", "b.png", "-m", str(tiny_pipeline), "-o", "c.png", steps="")
    assert (ran.code, "drawn anew, with another model\n" in ran.err) == (0, True)


# --- another tool's text ---

A1111 = """a horse <lora:add_detail:0.8> on a [hill:mountain:0.5]
Negative prompt: blurry
Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 77, Size: 40x48, Model hash: 0123456789, \
Model: dreamshaper_8, Denoising strength: 0.4, Clip skip: 2, Hires upscale: 1.5, Hires upscaler: 4x-UltraSharp, \
Lora hashes: "add_detail: 7c6bad76eb54", Strange thing: 1, Version: v1.10.1"""


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_another_tools_text_is_restored_as_far_as_it_goes(
    t2i: Run,
    here: Path,
    epsilon_pipeline: Path,
    suffix: str,
) -> None:
    path = imported(here / f"a.{suffix}", A1111)
    ran = t2i("--from", path.name, "-m", str(epsilon_pipeline), "-o", "b.png", steps="")
    assert ran.code == 0, ran.err
    made = record("b.png")
    assert made.prompt == "a horse on a [hill:mountain:0.5]"
    assert (made.negative_prompt, made.steps, made.guidance, made.seed) == ("blurry", 3, 6.5, 77)
    assert (made.width, made.height, made.scheduler) == (64, 72, "dpm++2m-karras")  # of 60 x 72
    assert made.edit == {"size": [40, 48], "upscale": {"factor": 1.5, "strength": 0.4}}
    assert made.options == {"clip_skip": 2}
    lost = [line.partition("not restored: ")[2] for line in ran.err.splitlines() if "not restored" in line]
    for words in (
        "LoRA add_detail",
        "prompt editing",
        "the first noise",
        "Hires upscaler: 4x-UltraSharp (of the second pass; it is drawn, from an image enlarged by Lanczos)",
        "Lora hashes",
        "Strange thing: 1",
    ):
        assert sum(line.startswith(words) for line in lost) == 1, (words, lost)
    assert not any("Version" in line or "Steps" in line for line in lost)
    assert "identical" not in ran.err


def test_a_foreign_model_is_looked_up_else_the_default_draws_and_that_is_said(
    t2i: Run,
    here: Path,
    tiny_pipeline: Path,
) -> None:
    path = imported(here / "a.png", A1111.replace("Schedule type: Karras, ", ""))
    ran = t2i("--from", "a.png", "-o", "b.png", steps="")
    assert "the model (dreamshaper_8, hash 0123456789): drawn with tiny; --model sets another" in ran.err
    known = recipe.read(Path(t2i("a horse", "-s", "7", "-o", "c.png").lines[0])).recipe
    assert known is not None
    text = A1111.replace("Schedule type: Karras, ", "").replace("0123456789", str(known.weights_hash)[:10])
    imported(path, text)
    ran = t2i("--from", "a.png", "-o", "d.png", steps="")
    assert (ran.code, "the model (" in ran.err) == (0, False)
    imported(path, A1111.replace("dreamshaper_8", "sd15/dreamshaper_8"))
    assert "the model (sd15/dreamshaper_8" in t2i("--from", "a.png", "-o", "e.png", steps="").err
    for name, digits in (("v1-5-pruned-emaonly", "x"), ("anything", "6ce0161689")):
        imported(path, A1111.replace("dreamshaper_8", name).replace("0123456789", digits))
        assert "'sd15' is not in the cache" in t2i("--from", "a.png", "--offline", steps="").err


def test_values_that_cannot_be_are_lost_and_said() -> None:
    text = "a\nSteps: 0, Sampler: Nothing, CFG scale: nan, Seed: -1, Size: 99999x8, Model: \x1b[2J, RNG: CPU"
    found = import_settings(parse(text))
    assert found.values == {"negative_prompt": "", "height": 8}
    assert [line.partition(":")[0] for line in found.lost] == ["Steps", "CFG scale", "Seed", "Size-1", "Sampler"]


def test_our_own_text_without_our_json_still_goes(t2i: Run, here: Path) -> None:
    path = Path(t2i("a horse", "-s", "7", "-o", "a.png").lines[0])
    imported(here / "b.png", str(recipe.read(path).parameters))
    ran = t2i("--from", "b.png", "-o", "c.png", steps="")
    assert "not restored" not in ran.err
    assert record("c.png").image_hash == record(path).image_hash


# --- what goes wrong ---


def test_what_carries_no_record_is_a_clear_error(t2i: Run, here: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    images.save(picture, here / "none.png")
    images.save(picture, here / "mark.png", recipe=Mark())
    (here / "text.png").write_text("no picture")
    imported(here / "words.png", "only a prompt")
    info = PngImagePlugin.PngInfo()
    info.add_itxt("t2i", "{broken")
    picture.save(here / "broken.png", pnginfo=info)
    for name, code, words in (
        ("absent.png", 2, "no such file"),
        ("none.png", 1, "does not say how it was made"),
        ("mark.png", 1, "does not say how it was made"),
        ("text.png", 1, "text.png"),
        ("words.png", 1, "no settings"),
        ("broken.png", 1, "not valid JSON"),
    ):
        ran = t2i("--from", name, steps="")
        assert (ran.code, ran.out) == (code, ""), name
        assert words in ran.err, (name, ran.err)
        assert "Traceback" not in ran.err
    assert not [name for name in files(here) if name.startswith("outputs")]


def test_a_damaged_record_of_ours_falls_back_to_the_text_and_says_so(t2i: Run, here: Path) -> None:
    path = Path(t2i("a horse", "-s", "7", "-o", "a.png").lines[0])
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", str(recipe.read(path).parameters))
    info.add_itxt("t2i", "{broken")
    images.decode(path).save(here / "b.png", pnginfo=info)
    ran = t2i("--from", "b.png", "-o", "c.png", steps="")
    assert (ran.code, "our own record (the t2i record is not valid JSON" in ran.err) == (0, True)


def test_a_hostile_record_asks_for_no_impossible_batch(t2i: Run, here: Path) -> None:
    path = Path(t2i("a horse", "-s", "7", "-o", "a.png").lines[0])
    hostile = replace(record(path), batch_size=10**12, batch_index=5)
    images.save(images.decode(path), here / "b.png", recipe=hostile)
    ran = t2i("--from", "b.png", "-o", "c.png", steps="")
    assert (ran.code, len(ran.lines)) == (0, 1)
    images.save(images.decode(path), here / "d.png", recipe=replace(record(path), steps=10**9))
    ran = t2i("--from", "d.png", steps="")
    assert (ran.code, "--from d.png: steps: got 1000000000" in ran.err) == (2, True)
