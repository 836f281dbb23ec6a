"""`t2i eval`: numbers that rise and fall as they must, warnings where they mislead, the same on two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ddpm_kit import make
from evaluation_kit import CLASSES, SIZE, picture, save_classifier, save_pictures
from PIL import Image

from t2i.cli.main import main
from t2i.evaluation import features
from t2i.evaluation.metric_table import METRICS
from t2i.evaluation.reference import load_reference
from t2i.evaluation.score import aligned, lines
from t2i.imaging import images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge, real pictures, a reference of them, and others of the same kind."""
    folder = tmp_path_factory.mktemp("eval")
    save_classifier(folder / "judge-run")
    save_pictures(folder / "real", 300)
    save_pictures(folder / "alike", 120, first=1000)
    features, out = ["--features", str(folder / "judge-run")], ["-o", str(folder / "ref.safetensors")]
    assert main(["eval", "reference", "--data", str(folder / "real"), *features, *out, "--quiet"]) == 0
    return folder


def score(place: Path, what: Path | str, *options: str, code: int = 0) -> None:
    features = ["--features", str(place / "judge-run")]
    ref = ["--ref", str(place / "ref.safetensors")]
    assert main(["eval", "score", str(what), *ref, *features, "--quiet", *options]) == code


def judged(place: Path, what: Path | str, capfd: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capfd.readouterr()
    score(place, what, "--json", *options)
    result: dict[str, Any] = json.loads(capfd.readouterr().out)
    return result


def test_real_pictures_are_at_the_floor_and_others_are_not(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Pictures of the same kind score as real ones do; grey noise far worse, in every number that can tell."""
    alike = judged(place, place / "alike", capfd)
    assert set(alike["metrics"]) == set(METRICS)
    frechet = alike["metrics"]["frechet"]
    assert frechet["ratio"] < 2
    assert frechet["ratio"] == pytest.approx(frechet["value"] / frechet["floor"])
    assert frechet["floor_spread"] > 0
    assert abs(alike["metrics"]["kernel"]["value"]) < 4 * alike["metrics"]["kernel"]["spread"] + 1e-6
    assert alike["metrics"]["kernel"]["ratio"] is None
    draw = torch.Generator().manual_seed(0)
    for k in range(60):
        grey = torch.rand(1, 1, SIZE, SIZE, generator=draw).expand(1, 3, -1, -1) * 2 - 1
        images.save(images.from_tensor(grey)[0], place / "noise" / f"{k}.png", overwrite=True)
    noise = judged(place, place / "noise", capfd)
    assert noise["metrics"]["frechet"]["ratio"] > 5
    assert noise["metrics"]["kernel"]["value"] > 3 * alike["metrics"]["kernel"]["floor_spread"]
    assert noise["metrics"]["coverage"]["value"] < noise["metrics"]["coverage"]["floor"] / 2
    assert "the pictures have no classes that the judge knows" in " ".join(noise["warnings"])
    assert "class_accuracy" not in noise["metrics"]


def test_classes_are_told_apart_by_name(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Class accuracy is that of the judge on these pictures; swapped names turn it over, class by class."""
    plain = judged(place, place / "alike", capfd)
    accuracies = {name: plain["classes"][name]["accuracy"]["value"] for name in CLASSES}
    total = sum(accuracies[name] * plain["classes"][name]["n"] for name in CLASSES) / 120
    assert plain["metrics"]["class_accuracy"]["value"] == pytest.approx(total)
    assert plain["classes"]["red"]["frechet"]["floor"] is not None
    swapped = shutil.copytree(place / "alike", place / "swapped")
    (swapped / "red").rename(swapped / "x")
    (swapped / "green").rename(swapped / "red")
    (swapped / "x").rename(swapped / "green")
    turned = judged(place, swapped, capfd)
    assert turned["metrics"]["class_accuracy"]["value"] != plain["metrics"]["class_accuracy"]["value"]
    assert turned["metrics"]["frechet"]["value"] == pytest.approx(plain["metrics"]["frechet"]["value"])
    assert turned["classes"]["red"]["frechet"]["value"] > 2 * plain["classes"]["red"]["frechet"]["value"]


def test_the_reference_itself_is_at_no_distance_and_is_known(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """FAULTS 30: identical sets."""
    same = judged(place, place / "real", capfd)
    assert abs(same["metrics"]["frechet"]["value"]) < 1e-6
    assert same["copies"] == {"in_set": 0, "of_reference": 300}
    assert "the two sets are the same" in " ".join(same["warnings"])
    assert all(pair["picture"] == pair["row"] and pair["distance"] < 1e-3 for pair in same["closest"])
    assert len(same["closest"]) == 8


def test_copies_are_counted(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """FAULTS 30: duplicated pictures."""
    folder = shutil.copytree(place / "alike", tmp_path / "doubled")
    for k in range(7):
        shutil.copy(folder / "red" / "01002.png", folder / "red" / f"again{k}.png")
    result = judged(place, folder, capfd)
    assert result["copies"] == {"in_set": 7, "of_reference": 0}
    assert "7 of the pictures are copies of others" in " ".join(result["warnings"])


@pytest.mark.parametrize(
    ("suffix", "size", "said"),
    [
        ("jpg", SIZE, "the pictures are JPEG, the reference was PNG: compression alone"),
        ("png", 2 * SIZE, "the pictures are 16 pixels, those of the reference 8: both were resampled to 8"),
    ],
)
def test_another_preprocessing_is_labelled(
    suffix: str, size: int, said: str, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """FAULTS 30: JPEG against PNG, and pictures of another size."""
    result = judged(place, save_pictures(tmp_path / "other", 30, 2000, size, suffix), capfd)
    assert said in " ".join(result["warnings"])


def test_few_pictures_are_labelled_and_too_few_refused(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """FAULTS 30: fewer than features, more than the reference has for a floor, fewer than a score needs."""
    assert judged(place, place / "alike", capfd)["warnings"] == []
    few = judged(place, place / "alike", capfd, "--n", "10")
    assert few["n"] == 10
    save_pictures(place / "many", 200, first=5000)
    many = judged(place, place / "many", capfd)
    assert "the floor is that of 150 pictures, not of 200" in " ".join(many["warnings"])
    assert (many["floor"]["n"], many["floor"]["disjoint"]) == (150, False)
    score(place, place / "alike", "--n", "9", code=1)
    assert "at least 10 pictures, got 9" in capfd.readouterr().err
    score(place, place / "alike", "--n", "121", code=1)
    assert "holds 120 pictures, 121 were asked for" in capfd.readouterr().err


def test_fewer_pictures_than_features_are_labelled(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "PIXELS", SIZE)
    ref = place / "pixels.safetensors"
    assert main(["eval", "reference", "--data", str(place / "real"), "--features", "pixels", "-o", str(ref)]) == 0
    assert main(["eval", "score", str(place / "alike"), "--ref", str(ref), "--json", "--quiet"]) == 0
    said = capfd.readouterr()
    assert "120 pictures for 192 features: their covariance is singular" in said.err
    assert "classifier_score" not in json.loads(said.out.splitlines()[-1])["metrics"]


def test_a_model_is_judged_by_what_it_draws(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A model scores like the folder that `t2i sample` fills with the same seeds, with classes from its records."""
    model = place / "model"
    make("linear", "eps", CLASSES).save_pretrained(model)
    drawn = judged(place, model, capfd, "--n", "30", "--seed", "3", "--steps", "2", "--guidance", "1.5")
    sample = ["sample", str(model), "-b", "30", "-s", "3", "--steps", "2", "--guidance", "1.5", "--grid", "--quiet"]
    assert main([*sample, "--batch-size", "100", "-o", str(place / "samples")]) == 0
    stored = judged(place, place / "samples", capfd, "--seed", "3")
    assert drawn["metrics"] == stored["metrics"]
    assert drawn["subject"]["hash"] == stored["subject"]["hash"] is not None
    assert drawn["subject"]["settings"]["steps"] == 2
    assert "class_accuracy" in drawn["metrics"]
    assert drawn["n"] == stored["n"] == 30, "the sheet beside the samples is none of them"


def test_settings_of_pictures_that_are_drawn_already(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    score(place, place / "alike", "--steps", "3", code=2)
    assert "steps: alike holds pictures that are drawn already" in capfd.readouterr().err


def test_sheets_and_the_score_as_files(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The closest pairs above their real neighbours, which must come from the reference's own data."""
    score(place, place / "real", "--data", str(place / "real"), "-o", str(tmp_path))
    result = json.loads((tmp_path / "score.json").read_text())
    with Image.open(tmp_path / "closest.png") as sheet:
        columns = sheet.convert("RGB")
    first = images.enlarge(picture(result["closest"][0]["picture"], 0), 64)
    assert first.size == (64, 64)
    width = columns.width
    above = columns.crop((width - 64, columns.height - 2 * 64 - 2, width, columns.height - 64 - 2))
    below = columns.crop((width - 64, columns.height - 64, width, columns.height))
    assert above.tobytes() == below.tobytes(), "each real picture is its own neighbour"
    assert (tmp_path / "grid.png").is_file()
    capfd.readouterr()
    score(place, place / "alike", "--data", str(place / "alike"), "-o", str(tmp_path / "other"), code=1)
    assert "alike is not the data of the reference" in capfd.readouterr().err


def test_a_reference_of_another_judge_is_refused(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = save_classifier(tmp_path / "judge-run", seed=5)
    ref = str(place / "ref.safetensors")
    assert main(["eval", "score", str(place / "alike"), "--ref", ref, "--features", str(other)]) == 1
    assert "the reference was made with judge-run@" in capfd.readouterr().err
    assert main(["eval", "score", str(place / "alike"), "--ref", ref]) == 2
    assert "--features SPEC" in capfd.readouterr().err


def test_the_table_shows_floor_and_ratio(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = judged(place, place / "alike", capfd)
    score(place, place / "alike")
    said = capfd.readouterr().out.splitlines()
    assert said[1:] == aligned(lines(result)).splitlines()
    hash = load_reference(place / "ref.safetensors").facts.hash[:8]
    assert f"fcd[judge-run@{hash}]" in said[2]
    assert f"{result['metrics']['frechet']['floor']:.4g}" in said[2]
    assert len({len(line) for line in said[1:]}) == 1


@pytest.mark.slow
def test_two_processes_give_the_score_of_one(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = judged(place, save_pictures(place / "more", 230, first=7000), capfd)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    call = ["t2i", "eval", "score", str(place / "more"), "--ref", str(place / "ref.safetensors"), "--json", "--quiet"]
    call += ["--features", str(place / "judge-run")]
    env = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *call], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == one
