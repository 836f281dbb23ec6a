"""`t2i sample`: real calls, what is printed and written, and what goes wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ddpm_kit import NAMES, make
from PIL import Image
from training_kit import ddpm_config, train

from t2i.cli.main import main
from t2i.data.sample_image import example
from t2i.imaging import images
from t2i.metadata import recipe
from t2i.nn.dcgan import Generator
from t2i.nn.vae import VAENetwork
from t2i.pipelines.class_conditional.dcgan import DCGAN
from t2i.pipelines.class_conditional.sample_folder import load_model
from t2i.pipelines.class_conditional.vae import VAE
from t2i.pipelines.noise import great_circle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "shapes"
    make("linear", "eps", NAMES).save_pretrained(folder)
    return folder


def test_paths_on_stdout_and_a_sheet(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["sample", str(model), "-b", "3", "--steps", "2", "--label", "dog", "--grid", "-o", str(out)]) == 0
    assert capfd.readouterr().out.split() == [
        str(out / n) for n in ("000000.png", "000001.png", "000002.png", "grid.png")
    ]
    with Image.open(out / "grid.png") as sheet:
        assert sheet.width > 2 * 8


def test_without_output_the_folder_is_named_after_the_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(model), "-b", "1", "--steps", "1", "--quiet"]) == 0
    assert capfd.readouterr().out == "samples/shapes/000000.png\n"


def test_trajectory_and_samples_have_folders_of_their_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In either order: neither finds the other's files in its way."""
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(model), "--trajectory", "--steps", "2"]) == 0
    assert main(["sample", str(model), "-b", "1", "--steps", "1", "--quiet"]) == 0
    assert capfd.readouterr().out.split()[0] == "samples/shapes-trajectory/trajectory.png"


def test_info_tells_how_a_sample_was_made(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(model), "-b", "1", "--steps", "2", "-s", "9", "-o", str(tmp_path)]) == 0
    capfd.readouterr()
    assert main(["info", str(tmp_path / "000000.png")]) == 0
    said = capfd.readouterr().out
    for part in ("horse", "dpm++2m", "9", "shapes"):
        assert part in said


def test_trajectory_writes_a_picture_and_an_animation(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    options = ["--trajectory", "--photo", str(tmp_path / "red.png"), "--steps", "3", "-o", str(tmp_path / "t")]
    assert main(["sample", str(model), *options]) == 0
    assert capfd.readouterr().out.split() == [str(tmp_path / "t" / f"trajectory.{kind}") for kind in ("png", "webp")]


def test_trajectory_of_a_run_dissolves_an_image_of_its_training_data(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first of the class that is drawn; where the data is not, the sample itself, and that is said."""
    config = ddpm_config(images=4)
    train(config, tmp_path / "run")
    found = example(config.data, "shape", "square")
    assert found is not None
    call = ["sample", str(tmp_path / "run"), "--trajectory", "--label", "square", "--steps", "2"]
    assert main([*call, "-o", str(tmp_path / "here")]) == 0
    assert capfd.readouterr().err == ""
    assert distance(dissolved(tmp_path / "here"), found) == 0
    other = example(config.data, "shape", "circle")
    assert other is not None
    assert distance(found, other) > 100  # the test can fail
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("shapes.parquet", "gone.parquet"))
    assert main([*call, "-o", str(tmp_path / "gone")]) == 0
    assert "the training images are not here" in capfd.readouterr().err
    assert distance(dissolved(tmp_path / "gone"), found) > 20


def dissolved(folder: Path) -> Image.Image:
    """The picture at the upper left of a trajectory, in its own pixels."""
    with Image.open(folder / "trajectory.png") as sheet:
        x, y = sheet.width - 11 * 96 - 10 * 2, sheet.height - 3 * 96 - 2 * 2
        return sheet.crop((x, y, x + 96, y + 96)).resize((16, 16), 0)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--label", "cat"], 2, "label: got 'cat', allowed are horse, dog, boat"),
        (["--sampler", "magic"], 2, "sampler: got 'magic'"),
        (["--steps", "0"], 2, "steps: got 0"),
        (["-b", "0"], 2, "got 0"),
        (["-s", "-3"], 2, "seed: got -3"),
        (["--guidance", "nan"], 2, "guidance"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(
    model: Path, options: list[str], code: int, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(model), *options, "-o", str(tmp_path / "out")]) == code
    assert said in capfd.readouterr().err
    assert not list(tmp_path.rglob("*.png"))


def test_terminated_between_two_pictures_the_same_command_makes_what_is_missing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 3: exit 143, nothing half-written; in the end the pictures are those of one go, bit for bit."""
    call = ["sample", str(model), "-b", "5", "--batch-size", "3", "--steps", "2", "--sampler", "ddpm", "--quiet", "-o"]
    save = images.save

    def terminated(image: Image.Image, path: Path, **options: Any) -> Path:
        if path.name == "000001.png":
            os.kill(os.getpid(), signal.SIGTERM)
        return save(image, path, **options)

    monkeypatch.setattr(images, "save", terminated)
    with pytest.raises(SystemExit) as caught:
        main([*call, str(tmp_path / "stopped")])
    assert caught.value.code == 143
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "stopped").iterdir()) == ["000000.png", "sampling.json"]
    for name in ("stopped", "straight"):
        assert main([*call, str(tmp_path / name)]) == 0
    for k in range(5):
        made, expected = ((tmp_path / name / f"{k:06d}.png").read_bytes() for name in ("stopped", "straight"))
        assert made == expected


def test_no_such_run_is_exit_4(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "runs/never"]) == 4
    assert "runs/never" in capfd.readouterr().err


# Models that draw in one step, and the way between two seeds


@pytest.fixture(scope="module", params=["dcgan", "vae"])
def one_step(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-step") / request.param
    torch.manual_seed(0)
    if request.param == "dcgan":
        pipe: DCGAN | VAE = DCGAN(Generator("conditional", (16, 8, 8), 6, len(NAMES)), NAMES)
    else:
        pipe = VAE(VAENetwork(16, (8, 16), 6, 4))
    for p in pipe.network.parameters():  # so that noise and classes show
        p.data += 0.3 * torch.randn(p.shape)
    pipe.save_pretrained(folder)
    return folder


def test_every_family_is_sampled(one_step: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(one_step), "-b", "3", "-s", "5", "--grid", "-o", str(tmp_path)]) == 0
    assert len(capfd.readouterr().out.split()) == 4
    drawn = load_model(str(one_step))
    alone = drawn.draw([6], drawn.label_numbers(1, "dog") if drawn.classes else None)
    assert distance(images.decode(tmp_path / "000001.png"), alone[0]) <= 1
    record = recipe.read(tmp_path / "000001.png").recipe
    assert record is not None
    assert (record.seed, record.steps, record.sampler) == (6, 1, one_step.name.upper())
    assert record.prompt == ("dog" if one_step.name == "dcgan" else "")
    assert main(["sample", str(one_step), "-b", "3", "-s", "5", "-o", str(tmp_path)]) == 0  # nothing is missing
    assert main(["sample", str(one_step), "-b", "3", "-s", "6", "-o", str(tmp_path)]) == 2
    assert "other settings: seed was 5, now 6" in capfd.readouterr().err


def test_damaged_weights_draw_no_black_picture(
    one_step: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """FAULTS 27."""
    pipe = load_model(str(one_step))
    for parameter in pipe.network.parameters():  # type: ignore[attr-defined]
        parameter.data.fill_(float("nan"))
    pipe.save_pretrained(tmp_path / "damaged")  # type: ignore[attr-defined]
    for options in ([], ["--interpolate", "1:9"]):
        assert main(["sample", str(tmp_path / "damaged"), *options, "-o", str(tmp_path / "out")]) == 1
        assert "non-finite image" in capfd.readouterr().err
        assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "5"], "steps: a {} draws in one step"),
        (["--sampler", "ddim", "--guidance", "2"], "sampler, guidance: a {} draws in one step"),
        (["--trajectory"], "--trajectory: a {} draws in one step"),
    ],
)
def test_what_only_diffusion_has_is_refused(
    one_step: Path, options: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(one_step), *options, "-o", str(tmp_path / "out")]) == 2
    assert said.format(one_step.name.upper()) in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_text_to_image_model_is_sent_to_generate(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "mini"]) == 1
    assert "t2i generate draws from text" in capfd.readouterr().err


@pytest.mark.parametrize("animation", ["webp", "gif"])
def test_the_way_between_two_seeds(
    model: Path, one_step: Path, animation: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A strip whose ends are the pictures of the two seeds, and a film that goes there and back without a jump."""
    for folder, options in ((model, {"steps": 2}), (one_step, {})):
        out = tmp_path / folder.name
        given = [f"--{name}={value}" for name, value in options.items()]
        call = ["sample", str(folder), "--interpolate", "1:9", "-b", "4", "--animation", animation, *given]
        assert main([*call, "-o", str(out)]) == 0
        strip, film = map(Path, capfd.readouterr().out.split())
        drawn = load_model(str(folder))
        labels = drawn.label_numbers(2, drawn.classes[0]) if drawn.classes else None
        ends = [images.enlarge(end, 96) for end in drawn.draw([1, 9], labels, **drawn.settings(**options))]
        with Image.open(strip) as sheet:
            assert sheet.width == 4 * 96 + 3 * 2
            assert distance(sheet.crop((0, 0, 96, 96)), ends[0]) <= 1
            assert distance(sheet.crop((sheet.width - 96, 0, sheet.width, 96)), ends[1]) <= 1
        with Image.open(film) as frames:
            assert frames.n_frames == 2 * 3 * 6  # type: ignore[attr-defined]
        assert main([*call, "-o", str(out)]) == 2
        assert "exists" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--interpolate", "3:3"], "seed 3 twice"),
        (["--interpolate", "3"], "expected two seeds, for example 1:9"),
        (["--interpolate", "-1:2"], "expected two seeds"),
        (["--interpolate", "1:99999999999999999999"], "allowed 0 to"),
        (["--interpolate", "1:2", "--sampler", "ddpm"], "draws fresh noise in every step"),
        (["--interpolate", "1:2", "--trajectory"], "either --trajectory or --interpolate"),
        (["--trajectory", "--guidance", "2"], "--trajectory shows the ddpm sampler"),
    ],
)
def test_mistakes_about_the_way(
    model: Path, options: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(model), *options, "-o", str(tmp_path / "out")]) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def distance(one: Image.Image, other: Image.Image) -> int:
    """Greatest difference of a value, of 255."""
    return int((images.pixels(one).int() - images.pixels(other).int()).abs().max())


def test_the_great_circle_keeps_the_length() -> None:
    a, b = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    a, b = a / a.norm(), b / b.norm()
    way = great_circle(a, b, 5)
    assert way.dtype == torch.float32
    assert (way.flatten(1).norm(dim=1) - 1).abs().max() < 1e-6
    assert (way[[0, -1]] - torch.stack([a, b])).abs().max() < 1e-6
    steps = (way[1:] - way[:-1]).flatten(1).norm(dim=1)
    assert steps.max() - steps.min() < 1e-6
