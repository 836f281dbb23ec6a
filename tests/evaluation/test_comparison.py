"""`t2i eval compare`: one table of equal conditions, curves, a page that needs nothing else; again, it goes on."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ddpm_kit import make
from evaluation_kit import CLASSES, SIZE, make_place
from report_kit import Page, make_run, some_log

from t2i.cli.main import main
from t2i.evaluation import comparison
from t2i.evaluation.image_sets import GeneratedSet
from t2i.evaluation.image_sources import open_pictures
from t2i.evaluation.score_files import shown
from t2i.report.compare_table import _run, warnings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a hostile name for the run of the diffusion model."""
    return make_place(tmp_path_factory.mktemp("compare"), "a <b>|run")


def compare(place: Path, output: Path, *options: str, code: int = 0) -> dict[str, Any]:
    ref = ["--ref", str(place / "ref.safetensors"), "--features", str(place / "judge-run")]
    subjects = [str(place / "a <b>|run"), str(place / "alike")]
    call = ["eval", "compare", *subjects, *ref, "--n", "30", "--curve-n", "12", "--quiet", "-o", str(output), *options]
    assert main(call) == code
    if code:
        return {}
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
    drawn = plots["Frechet distance against sampling steps"]["a <b>|run"]
    exact = [point["score"]["metrics"]["frechet"]["value"] for point in model["curves"]["steps"]]
    assert drawn["x"] == [2, 4]
    assert drawn["y"] == pytest.approx(exact, rel=1e-5)
    floor = model["curves"]["steps"][0]["score"]["metrics"]["frechet"]["floor"]
    assert plots["Frechet distance against sampling steps"]["real pictures"]["y"] == pytest.approx(
        [floor] * 2, rel=1e-5
    )
    speed = [point["score"]["images_per_second"] for point in model["curves"]["guidance"]]
    assert plots["Images per second against guidance"]["a <b>|run"]["y"] == pytest.approx(speed, rel=1e-5)
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


def test_killed_anywhere_it_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a score and before its sheets, then in a curve: nothing is judged twice, and nothing is missing."""
    whole = compare(place, tmp_path / "whole", "--steps", "2,4")
    score, judged = comparison.score, []

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def judge(*words: Any) -> Any:
        judged.append(words)
        return die() if len(judged) == 2 else score(*words)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "save_score", die)
        compare(place, tmp_path / "again", "--steps", "2,4", code=130)
    monkeypatch.setattr(comparison, "score", judge)
    compare(place, tmp_path / "again", "--steps", "2,4", code=130)
    again = compare(place, tmp_path / "again", "--steps", "2,4")
    assert len(judged) == 4, "of the curve the first, the second twice; the folder"
    for a, b in zip(whole["subjects"], again["subjects"], strict=True):
        assert a["score"]["metrics"] == b["score"]["metrics"]
        assert [p["score"]["metrics"] for p in a["curves"].get("steps", ())] == [
            p["score"]["metrics"] for p in b["curves"].get("steps", ())
        ]
        grids = [(tmp_path / name / a["name"] / "grid.png").read_bytes() for name in ("whole", "again")]
        assert grids[0] == grids[1]
    compare(place, tmp_path / "again", "--steps", "2,4", "--data", str(place / "real"))
    assert (tmp_path / "again" / "alike" / "closest.png").is_file(), "asked for later"
    assert len(judged) == 4
    compare(place, tmp_path / "again", "--seed", "1")
    assert not (tmp_path / "again" / "alike" / "closest.png").exists(), "of another score"


def test_names_and_the_points_that_a_model_has(place: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run-0.1", log=some_log())
    make("flow", "flow").save_pretrained(run / "best")
    (run / "best" / "best.json").write_text(json.dumps({"images_seen": 200}))
    names = [comparison._name(str(path)) for path in (run, run / "best", place / "ref.safetensors")]
    assert names == ["run-0.1", "run-0.1-best", "ref"]
    assert comparison._name("owner/model") == "owner-model"
    best, whole = (_run({"path": str(path)}) for path in (run / "best", run))
    assert best is not None
    assert whole is not None
    assert (best.images_seen, whole.images_seen) == (200, 400)
    assert best.seconds == pytest.approx(whole.seconds / 2)
    plan = comparison.ComparisonPlan(10, steps=(2, 1000, 2000), guidance=(1, 2))
    some = comparison._points(GeneratedSet(make("linear", "eps", CLASSES), 10, SIZE), plan)
    assert some == {"steps": [2, 1000], "guidance": (1, 2)}
    assert comparison._points(GeneratedSet(make("flow", "flow"), 10, SIZE), plan) == {"steps": [2, 1000]}


def test_a_sheet_of_a_sorted_folder_shows_all_its_classes(place: Path) -> None:
    pictures = open_pictures(str(place / "alike"), SIZE)
    assert pictures.labels(range(20)) == ["blue"] * 20
    assert Counter(pictures.labels(shown(pictures))) == {"blue": 14, "green": 13, "red": 13}


def test_a_warning_about_several_is_said_once() -> None:
    subjects = [{"name": name, "score": {"warnings": said}} for name, said in (("a", ["x"]), ("b", ["y", "x"]))]
    assert warnings({"subjects": subjects}) == ["a, b: x", "b: y"]


def test_two_of_one_name_and_what_is_no_number(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ref = ["--ref", str(place / "ref.safetensors"), "--features", str(place / "judge-run")]
    twice = [str(place / "alike")] * 2
    assert main(["eval", "compare", *twice, *ref, "-o", str(tmp_path)]) == 2
    assert "two of these are called alike" in capfd.readouterr().err
    assert main(["eval", "compare", twice[0], *ref, "-o", str(tmp_path), "--steps", "2,x"]) == 2
    assert "--steps: got '2,x'" in capfd.readouterr().err
