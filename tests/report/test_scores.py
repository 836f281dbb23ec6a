"""Scores on the report of a run: of evaluation during training, and by `t2i eval score` in the run folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_kit import FLOORS, Page, add_scores, make_run, some_log, write_columns

from t2i.cli.main import main
from t2i.report.runs import read_numbers, read_run


def page_of(*runs: Path, folder: Path) -> Page:
    """The report on these runs, made by the command."""
    assert main(["report", *map(str, runs), "-o", str(folder / "report.html"), "--overwrite"]) == 0
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def judged(folder: Path, **more: Any) -> Path:
    return add_scores(make_run(folder, some_log()), **more)


def test_the_curves_are_the_numbers_of_the_scores_beside_their_floor(tmp_path: Path) -> None:
    page = page_of(judged(tmp_path / "run"), folder=tmp_path)
    plots, table = page.plots(), read_numbers(tmp_path / "run" / "scores.csv")
    frechet = plots["Frechet distance"]
    assert frechet["generated"]["x"] == table["images"].tolist()
    assert frechet["generated"]["y"] == pytest.approx(table["frechet"], rel=1e-5)
    assert frechet["real pictures"]["y"] == [FLOORS["frechet"]] * 2, "one number, and so a line through all moments"
    assert frechet["real pictures"]["x"] == [0, 400]
    both = plots["Precision and recall"]
    assert list(both) == ["precision", "recall", "real pictures, precision", "real pictures, recall"]
    assert both["real pictures, recall"]["y"] == [FLOORS["recall"]] * 2
    assert "Density and coverage" not in plots
    assert "Column" not in page.text, "no floor has a curve of its own"


def test_the_best_and_the_newest_moment_are_said_and_ringed(tmp_path: Path) -> None:
    run = judged(tmp_path / "run", best=320)
    page, table = page_of(run, folder=tmp_path), read_numbers(run / "scores.csv")
    for fact in (
        "fcd[judge@1a2b3c4d]",
        "50,000 pictures of train.parquet (data 0123456789ab)",
        f"Frechet distance {table['frechet'][7]:.4g} after 320 images",
        f"{table['frechet'][9]:.4g} ({table['frechet'][9] / 1.8:.3g} times that of real pictures, 1.8)",
        "sampler ddim, steps 50",
    ):
        assert fact in page.text
    assert page.text.count("Ringed") == 1
    key = next(key for key, plot in page.data["curves"].items() if plot["title"] == "Frechet distance")
    figure = page.html[page.html.index(f'<figure id="{key}">') :].partition("</figure>")[0]
    assert len(re.findall(r"PathCollection", figure)) == 1
    (run / "best" / "best.json").write_text("{")
    assert "Ringed" not in page_of(run, folder=tmp_path).text


def test_runs_of_all_families_share_a_frame_where_they_were_judged_alike(tmp_path: Path) -> None:
    ddpm, vae = judged(tmp_path / "a"), add_scores(make_run(tmp_path / "b", family="vae"), start=30)
    plots = page_of(ddpm, vae, folder=tmp_path).plots()
    assert list(plots["Frechet distance"]) == ["a", "b", "real pictures"]
    assert list(plots["Recall"]) == ["a", "b", "real pictures"]
    other = add_scores(make_run(tmp_path / "c"), n=500)
    page = page_of(ddpm, vae, other, folder=tmp_path)
    frames = [plot for plot in page.data["curves"].values() if plot["title"] == "Frechet distance"]
    labels = [[line["label"] for line in plot["lines"]] for plot in frames]
    assert labels == [["a", "b", "real pictures"], ["generated", "real pictures"]], "of 1,000 pictures, and of 500"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_only_what_was_measured_as_it_is_now_is_shown(tmp_path: Path) -> None:
    run = judged(tmp_path / "run", best=80)
    (entry,) = json.loads((run / "judges.json").read_text())
    (run / "judges.json").write_text(json.dumps([entry, entry | {"since": 200, "n": 5000}]))
    assert read_run(run).scores["images"].tolist() == [200, 240, 280, 320, 360, 400]
    page = page_of(run, folder=tmp_path)
    assert "5,000" in page.text
    assert "after 80 images" not in page.text
    (run / "judges.json").write_text(json.dumps([entry, entry | {"since": 440, "n": 5000}]))  # it went back, and on
    assert len(read_run(run).scores["images"]) == 10
    for damaged in ("[", "{}", "[1]", '[{"since": 40, "n": "x", "reference": 3, "settings": 2}]'):
        (run / "judges.json").write_text(damaged)
        assert "Evaluation during training" in page_of(run, folder=tmp_path).text


def test_a_run_of_an_older_version_says_no_judge_and_one_without_scores_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", some_log())
    assert "Evaluation during training" not in page_of(run, folder=tmp_path).text
    write_columns(run / "scores.csv", {"images": [40], "frechet": [3], "surprise": [7], "frechet_floor": [1]})
    page = page_of(run, folder=tmp_path)
    assert "Evaluation during training" in page.text
    assert page.plots()["Frechet distance"]["generated"]["y"] == [3]
    assert page.plots()["surprise"]["scores/surprise"]["y"] == [7]


def test_plots_are_files_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = add_scores(make_run(tmp_path / "run", {"images": [8, 16], "mse": [2, 1]}))
    assert main(["report", str(run), "--plots", str(tmp_path / "plots")]) == 0
    names = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert {"diffusion-loss.png", "judged-frechet-distance.png", "judged-precision-and-recall-dark.svg"} <= names
    svg = (tmp_path / "plots" / "judged-frechet-distance.svg").read_text(encoding="utf-8")
    assert ">real pictures<" in svg


def score() -> dict[str, Any]:
    """A score as `t2i eval score` writes it, as far as it is shown."""
    numbers = {"value": 12.5, "spread": None, "floor": 2.5, "floor_spread": 0.05, "ratio": 5.0}
    reference = {"data": "train.parquet", "data_hash": "ab" * 32, "count": 50_000, "formats": ["PNG"]}
    return {
        "n": 10_000,
        "seed": 3,
        "t2i": "0.1.0",
        "frechet_is": "fcd[judge@1a2b3c4d]",
        "subject": {"name": "run", "settings": {"steps": 64}},
        "reference": reference,
        "floor": {"n": 10_000},
        "metrics": {"frechet": numbers, "recall": numbers | {"value": 0.375, "floor": 0.75, "ratio": 0.5}},
        "classes": {"cat": {"n": 1000, "accuracy": {"value": 0.25, "floor": 0.8}}},
        "warnings": ["<b>JPEG"],
    }


def test_a_score_in_the_run_folder_stands_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", some_log())
    assert "Scores" not in page_of(run, folder=tmp_path).text
    for path in ("score.json", "scores/steps 64/score.json", "scores/empty/score.json", "scores/other/score.json"):
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_text(json.dumps(score()))
    (run / "scores" / "empty" / "score.json").write_text("")
    (run / "scores" / "other" / "score.json").write_text('{"metrics": [1]}')
    page = page_of(run, folder=tmp_path)
    assert re.findall(r"<h3>(run.*?)</h3>", page.html) == ["run", "run, steps 64"]
    rows = [re.findall(r"<t[hd](?: [^>]*)?>([^<]*)", row) for row in page.html.split("<tr>")]
    assert rows.count(["fcd[judge@1a2b3c4d]", "12.5", "2.5 ± 0.05", "5.00"]) == 2
    assert rows.count(["recall", "0.375", "0.75 ± 0.05", "0.50"]) == 2
    assert rows.count(["cat (N = 1,000), accuracy", "0.25", "0.8", "0.31"]) == 2
    assert "10,000 pictures, seed 3, steps 64; against 50,000 pictures of train.parquet" in page.text
    assert page.html.count("<li>&lt;b&gt;JPEG</li>") == 2
