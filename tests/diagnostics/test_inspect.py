"""`t2i info` says what a file says, kindly and safely, and loads neither torch nor diffusers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from report_kit import make_run, some_log

from t2i.cli.info import info
from t2i.errors import ImageError, ModelError, PartialFailure, UsageError
from t2i.imaging import images
from t2i.metadata.recipe import Mark, Recipe

PICTURE = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
MADE = Recipe(
    prompt="a horse\nin Van Gogh style",
    negative_prompt="blurry",
    template="a {horse|dog}\nin Van Gogh style",
    steps=20,
    sampler="DPM++ 2M",
    schedule_type="Karras",
    scheduler="dpm++2m-karras",
    guidance=3.5,
    seed=41,
    width=64,
    height=48,
    model="owner/name",
    revision="abc",
    weights_hash="0123456789abcdef" * 4,
    versions={"t2i": "0.1.0"},
    image_hash=images.pixel_hash(PICTURE),
)


def call(*args: object) -> Result:
    return CliRunner().invoke(info, [str(arg) for arg in args])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_table_tells_everything_that_makes_the_image_again(suffix: str, tmp_path: Path) -> None:
    path = images.save(PICTURE, tmp_path / f"a{suffix}", recipe=MADE)
    result = call(path)
    assert result.exit_code == 0
    rows = [line.strip() for line in result.output.splitlines()]
    assert rows[0] == str(path)
    for name, value in {
        "prompt": "a horse",
        "template": "a {horse|dog}",
        "negative prompt": "blurry",
        "model": "owner/name, revision abc, weights 0123456789",
        "sampler": "DPM++ 2M Karras (dpm++2m-karras)",
        "steps": "20",
        "guidance": "3.5",
        "seed": "41",
        "size": "64 x 48",
        "computed": "in float32 on cpu",
        "versions": "t2i 0.1.0",
    }.items():
        assert f"{name:<17}{value}" in rows
    assert ("pixels           as drawn" in rows) == (suffix == ".png")  # the others lose some, and say nothing


def test_pixels_that_were_changed_are_said_to_be(tmp_path: Path) -> None:
    other = images.save(PICTURE.rotate(90), tmp_path / "a.png", recipe=MADE)
    assert "changed since they were drawn" in call(other).output
    noise = images.save(Image.effect_noise((64, 64), 50), tmp_path / "b.png", recipe=MADE)
    noise.write_bytes(noise.read_bytes()[:-900])
    assert "pixels           damaged" in call(noise).output
    assert "a horse" in call(noise).output


def test_json_is_one_object_per_line_and_complete(tmp_path: Path) -> None:
    first = images.save(PICTURE, tmp_path / "a.png", recipe=MADE)
    second = images.save(PICTURE, tmp_path / "b.jpg", recipe=MADE)
    lines = [json.loads(line) for line in call("--json", first, second, first).output.splitlines()]
    assert [line["path"] for line in lines] == [str(first), str(second), str(first)]
    for line in lines:
        assert Recipe.from_json(json.dumps(line["recipe"])) == MADE
        assert line["parameters"] == MADE.parameters()
        assert line["settings"]["Seed"] == "41"
        assert line["generated"] is True


def test_the_text_of_another_tool(tmp_path: Path) -> None:
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a cat\nNegative prompt: dog\nSteps: 9, Sampler: Euler a, Seed: 3, Size: 8x8")
    PICTURE.save(tmp_path / "a.png", pnginfo=text)
    rows = dict(line.strip().split(maxsplit=1) for line in call(tmp_path / "a.png").output.splitlines()[1:])
    assert rows == {
        "prompt": "a cat",
        "negative": "prompt  dog",
        "Steps": "9",
        "Sampler": "Euler a",
        "Seed": "3",
        "Size-1": "8",
        "Size-2": "8",
    }


def test_an_image_without_a_record_is_told_kindly(tmp_path: Path) -> None:
    path = images.save(PICTURE, tmp_path / "a.png")
    result = call(path)
    assert isinstance(result.exception, ImageError)
    assert result.exception.exit_code == 1
    assert str(path) in result.exception.message
    assert "does not say how it was made" in result.exception.message
    marked = images.save(PICTURE, tmp_path / "b.png", recipe=Mark())
    assert "made by  a trained model" in call(marked).output
    both = call(path, marked)
    assert isinstance(both.exception, PartialFailure)
    assert "made by  a trained model" in both.output
    assert isinstance(call(path, path).exception, ImageError)
    failed = json.loads(call("--json", path).output)
    assert failed == {"path": str(path), "error": result.exception.message}


def test_two_images_show_what_differs_and_nothing_else(tmp_path: Path) -> None:
    first = images.save(PICTURE, tmp_path / "a.png", recipe=MADE)
    changed = replace(MADE, seed=42, guidance=4.0, versions={"t2i": "0.1.0", "torch": "2.13.0"}, image_hash="f" * 64)
    second = images.save(PICTURE, tmp_path / "b.jpg", recipe=changed)
    lines = call(first, second).output.splitlines()
    assert lines[:2] == [str(first), str(second)]
    assert lines[2:] == [
        "  guidance        3.5",
        "                  4",
        "  seed            41",
        "                  42",
        "  versions.torch  -",
        "                  2.13.0",
        f"  image hash      {images.pixel_hash(PICTURE)[:10]}",
        "                  ffffffffff",
    ]
    told = json.loads(call("--json", first, second).output)
    assert (told["paths"], told["same"]) == ([str(first), str(second)], False)
    assert told["differences"] == {
        "guidance": [3.5, 4.0],
        "seed": [41, 42],
        "versions.torch": [None, "2.13.0"],
        "image_hash": [images.pixel_hash(PICTURE), "f" * 64],
    }


def test_two_images_with_the_same_record_are_said_to_be(tmp_path: Path) -> None:
    first = images.save(PICTURE, tmp_path / "a.png", recipe=MADE)
    second = images.save(PICTURE, tmp_path / "b.webp", recipe=MADE)
    assert call(first, second).output.splitlines()[2:] == ["  the two records are equal"]
    assert json.loads(call("--json", first, second).output)["same"] is True
    turned = images.save(PICTURE.rotate(90), tmp_path / "c.png", recipe=MADE)
    assert call(first, turned).output.splitlines()[2:] == [
        "  pixels  as drawn",
        "          changed since they were drawn",
    ]


def test_our_record_beside_another_tools_text_compares_the_settings_of_both(tmp_path: Path) -> None:
    from PIL import PngImagePlugin

    first = images.save(PICTURE, tmp_path / "a.png", recipe=MADE)
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", MADE.parameters().replace("Seed: 41", "Seed: 5") + ", Clip skip: 2")
    PICTURE.save(tmp_path / "b.png", pnginfo=info)
    told = json.loads(call("--json", first, tmp_path / "b.png").output)
    assert told["differences"] == {"Seed": ["41", "5"], "Clip skip": [None, "2"]}


def test_wrong_arguments(tmp_path: Path) -> None:
    assert isinstance(call(tmp_path / "none.png").exception, UsageError)
    assert isinstance(call(tmp_path).exception, ModelError)
    (tmp_path / "a.png").write_text("no picture")
    assert isinstance(call(tmp_path / "a.png").exception, ImageError)
    assert call().exit_code == 2


def test_a_model_folder(tmp_path: Path) -> None:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "../../outside": ["diffusers", "Evil"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(2_345_000))
    (tmp_path / "unet" / "loop").symlink_to(tmp_path)
    output = call(tmp_path).output
    assert "pipeline  StableDiffusionPipeline (diffusers 0.42.1)" in output
    assert "unet      UNet2DConditionModel, 2.3 MB" in output
    assert "in all    2.3 MB" in output
    assert "Evil" not in output
    facts = json.loads(call("--json", tmp_path).output)
    assert facts["components"] == {"unet": {"class": "UNet2DConditionModel", "bytes": 2_345_000}}


def test_a_run_says_how_far_it_is_and_what_it_made(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first", some_log(), images=1000, autoencoder="/home/someone/runs/mini-autoencoder")
    output = call(run).output
    assert output.splitlines()[0] == str(run)
    for line in (
        "family                      ddpm",
        "images seen                 400 of 1,000 (40\u00a0%)",
        "images/s  ",
    ):
        assert line in output
    assert "–" not in output  # what is not known is left out
    (run / "export").mkdir()
    (run / "export" / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["diffusers", "Net"]}')
    assert "pipeline                    DDPMPipeline" in call(run).output
    facts = json.loads(call("--json", run).output)
    assert (facts["kind"], facts["family"], facts["images_seen"], facts["images"]) == ("run", "ddpm", 400, 1000)
    assert facts["config"]["autoencoder"] == "…/mini-autoencoder"
    assert facts["model"]["pipeline"] == "DDPMPipeline"


def test_the_embedded_model_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = call("mini").output
    assert "pipeline      StableDiffusionPipeline" in output
    assert "unet          UNet2DConditionModel" in output


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"_class_name": 1}', "[" * 10**5, " " * 2_000_000 + "{}"])
def test_a_broken_model_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(text)
    result = call(tmp_path)
    assert isinstance(result.exception, ModelError)
    assert len(result.exception.message) < 1000


def test_a_hostile_record_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    evil = "a\x1b[2J\x1b]0;title\x07\u202ehorse\x9b\r" + "x" * 100_000
    path = images.save(
        PICTURE, tmp_path / "a.png", recipe=Recipe.from_json(MADE.to_json().replace("abc", "\\u001b[1m"))
    )
    assert "\x1b" not in call(path).output
    record = Recipe(**(json.loads(MADE.to_json()) | {"prompt": evil, "template": "", "versions": {"\x1b": "\x1b"}}))
    path = images.save(PICTURE, tmp_path / "b.png", recipe=record)
    for args in ((path,), ("--json", path)):
        output = call(*args).output
        assert not set(output) & set("\x1b\x07\x9b\r\u202e")
    assert len(call(path).output) < 10_000
    assert json.loads(call("--json", path).output)["recipe"]["prompt"] == evil


def test_info_loads_neither_torch_nor_diffusers(tmp_path: Path) -> None:
    path = images.save(PICTURE, tmp_path / "a.png", recipe=MADE)
    code = """if True:
        import sys
        from t2i.cli.main import main
        code = main(["info", sys.argv[1]])
        heavy = {"torch", "diffusers", "transformers", "accelerate", "datasets"} & set(sys.modules)
        sys.exit(f"loaded: {heavy}" if heavy else code)
    """
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "a horse" in done.stdout
