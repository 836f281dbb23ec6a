"""`t2i sample`: real calls, what is printed and written, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from test_ddpm_pipeline import NAMES, make

from t2i.cli.main import main


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


def test_no_such_run_is_exit_4(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "runs/never"]) == 4
    assert "runs/never" in capfd.readouterr().err
