"""`t2i eval compare`: one table of equal conditions, curves, a page that needs nothing else; again, it goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from evaluation_kit import CLASSES, save_classifier, save_pictures
from report_kit import Page, make_run, some_log
from test_ddpm_pipeline import make

from t2i.cli.main import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge, a reference, a run of a diffusion model with a hostile name, and a folder of pictures."""
    folder = tmp_path_factory.mktemp("compare")
    save_classifier(folder / "judge-run")
    save_pictures(folder / "real", 120)
    save_pictures(folder / "alike", 60, first=1000)
    make("linear", "eps", CLASSES).save_pretrained(make_run(folder / "a <b>|run", log=some_log()) / "export")
    features, out = ["--features", str(folder / "judge-run")], ["-o", str(folder / "ref.safetensors")]
    assert main(["eval", "reference", "--data", str(folder / "real"), *features, *out, "--quiet"]) == 0
    return folder


def compare(place: Path, output: Path, *options: str, code: int = 0) -> dict[str, Any]:
    ref = ["--ref", str(place / "ref.safetensors"), "--features", str(place / "judge-run")]
    subjects = [str(place / "a <b>|run"), str(place / "alike")]
    call = ["eval", "compare", *subjects, *ref, "--n", "30", "--curve-n", "12", "--quiet", "-o", str(output), *options]
    assert main(call) == code
    result: dict[str, Any] = json.loads((output / "compare.json").read_text())
    return result


def test_a_table_curves_and_a_page(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = compare(place, tmp_path, "--steps", "4,2", "--guidance", "1,2", "--data", str(place / "real"))
    model, folder = result["subjects"]
    assert model["score"]["floor"] == folder["score"]["floor"]
    assert [point["at"] for point in model["curves"]["steps"]] == [2, 4]
    assert [point["at"] for point in model["curves"]["guidance"]] == [1, 2]
    assert folder["curves"] == {}
    assert model["score"]["images_per_second"] > 0
    assert folder["score"]["images_per_second"] is None
    said = capfd.readouterr()
    table = (tmp_path / "compare.md").read_text()
    value = f"{model['score']['metrics']['recall']['value']:.4g}"
    assert re.search(rf"^\| recall \| {value} \|", table, re.MULTILINE)
    assert re.search(rf"^recall +{value} ", said.out, re.MULTILINE)
    assert "| a <b>\\|run | alike | real pictures |" in table
    assert "| images seen | 400 | – |" in table
    page = Page((tmp_path / "index.html").read_text())
    assert not [
        tag
        for tag, attributes in page.tags
        if any("//" in str(v) and not str(v).startswith("data:") for v in attributes.values())
    ]
    assert "<b>|run" in page.text
    plots = page.plots()
    drawn = plots["Quality against sampling steps: Frechet distance"]["a <b>|run"]
    exact = [point["score"]["metrics"]["frechet"]["value"] for point in model["curves"]["steps"]]
    assert drawn["x"] == [2, 4]
    assert drawn["y"] == pytest.approx(exact, rel=1e-5)
    assert sum(name == "img" for name, _ in page.tags) == 4, "two grids, two sheets of the closest pairs"


def test_the_same_command_again_takes_what_is_there(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compare(place, tmp_path, "--steps", "2")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("judged again")

    with monkeypatch.context() as patch:
        patch.setattr("t2i.evaluation.comparison.score", never)
        assert compare(place, tmp_path, "--steps", "2") == first
    again = compare(place, tmp_path, "--steps", "2", "--seed", "1")
    assert again["subjects"][0]["score"]["metrics"] != first["subjects"][0]["score"]["metrics"]


def test_two_of_one_name_and_what_is_no_number(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ref = ["--ref", str(place / "ref.safetensors"), "--features", str(place / "judge-run")]
    twice = [str(place / "alike")] * 2
    assert main(["eval", "compare", *twice, *ref, "-o", str(tmp_path)]) == 2
    assert "two of these are called alike" in capfd.readouterr().err
    assert main(["eval", "compare", twice[0], *ref, "-o", str(tmp_path), "--steps", "2,x"]) == 2
    assert "--steps: got '2,x'" in capfd.readouterr().err
