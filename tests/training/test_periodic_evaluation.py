"""Judging along training: it changes nothing that is learned, its numbers are `t2i eval`'s, the best is kept."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_kit import save_classifier
from safetensors.torch import load_file
from training_kit import (
    SHAPES,
    dcgan_config,
    ddpm_config,
    fingerprint,
    read_log,
    train,
    vae_config,
    write_config,
)

from t2i import config
from t2i.errors import ConfigError, DataError
from t2i.evaluation.features import load_extractor
from t2i.evaluation.image_sources import open_pictures
from t2i.evaluation.reference import load_reference, make_reference, save_reference
from t2i.evaluation.score import score
from t2i.training.periodic_evaluation import PeriodicEvaluation, check_best
from t2i.training.runs.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
MAKERS = {"dcgan": dcgan_config, "ddpm": ddpm_config, "vae": vae_config}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("judging")
    run = save_classifier(folder / "judge-run", classes=("circle", "square", "triangle"))
    made = make_reference(load_extractor(str(run)), config.Source(path=str(SHAPES)), str(run), keep=200)
    path = save_reference(made, folder / "ref.safetensors")
    return {"reference": str(path), "features": str(run), "every": 8, "n": 12, "best": "recall"}


def scores(run: Path) -> list[dict[str, str]]:
    with (run / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("family", MAKERS)
def test_training_is_the_same_with_it_and_the_numbers_are_those_of_eval(
    family: str, wanted: dict[str, Any], tmp_path: Path
) -> None:
    plain, judged = (MAKERS[family](**more) for more in ({}, {"evaluate": wanted}))
    train(plain, tmp_path / "plain")
    train(judged, tmp_path / "judged")
    assert fingerprint(tmp_path / "judged") == fingerprint(tmp_path / "plain")
    rows = scores(tmp_path / "judged")
    assert [row["images"] for row in rows] == ["8", "16", "24", "32"]
    reference, extractor = load_reference(Path(wanted["reference"])), load_extractor(wanted["features"])
    settings = {"steps": 2} if family == "ddpm" else {}
    pictures = open_pictures(str(tmp_path / "judged"), reference.facts.size, count=12, **settings)
    again = score(pictures, reference, extractor, 12)
    assert again is not None
    for name, found in again["metrics"].items():
        assert float(rows[-1][name]) == pytest.approx(found["value"], rel=1e-4), name


def test_the_best_is_kept_and_resuming_changes_nothing(wanted: dict[str, Any], tmp_path: Path) -> None:
    run = ddpm_config(evaluate=wanted | {"best": "frechet"})
    train(run, tmp_path / "straight")
    for until in (12, 20):
        train(run, tmp_path / "run", until=until)
    train(run, tmp_path / "run")
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "straight")
    assert scores(tmp_path / "run") == scores(tmp_path / "straight")
    values = {int(row["images"]): float(row["frechet"]) for row in scores(tmp_path / "run")}
    kept = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert kept["images_seen"] == min(values, key=lambda images: values[images])
    assert kept["value"] == pytest.approx(values[kept["images_seen"]], rel=1e-5)
    weights = "unet/diffusion_pytorch_model.safetensors"
    ours, theirs = (load_file(tmp_path / name / "best" / weights) for name in ("run", "straight"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_may_begin_later_and_change(wanted: dict[str, Any], tmp_path: Path) -> None:
    train(ddpm_config(), tmp_path / "run", until=12)
    train(ddpm_config(evaluate=wanted), tmp_path / "run", until=20)
    train(ddpm_config(evaluate=wanted | {"n": 14}), tmp_path / "run")
    assert [row["images"] for row in scores(tmp_path / "run")] == ["16", "24", "32"]
    entries = json.loads((tmp_path / "run" / "judges.json").read_text())
    assert [(entry["since"], entry["n"]) for entry in entries] == [(16, 12), (24, 14)]
    assert entries[0]["settings"]["steps"] == 2


def test_it_judges_the_end_too(wanted: dict[str, Any], tmp_path: Path) -> None:
    train(ddpm_config(evaluate=wanted | {"every": 24}, images=16), tmp_path / "run")
    assert [row["images"] for row in scores(tmp_path / "run")] == ["16"]


class Model:
    """Saves its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "model").write_text(self.name)


def evaluation_of(folder: Path, **wanted: Any) -> PeriodicEvaluation:
    folder.mkdir(exist_ok=True)
    evaluate = config.Evaluate(reference="ref", **wanted)
    return PeriodicEvaluation(evaluate, RunFolder(folder), None, None, lambda weights: None, {})  # type: ignore[arg-type]


def result(n: int = 12, **metrics: float) -> dict[str, Any]:
    """A score, as far as a run keeps it."""
    numbers = {name: {"value": value, "floor": 0.5} for name, value in metrics.items()}
    same = {"version": 1, "n": n, "seed": 0, "frechet_is": "fcd", "extractor": {}, "reference": {}}
    return same | {"subject": {}, "metrics": numbers, "warnings": ["too few"]}


def best(folder: Path) -> tuple[str, str, int]:
    facts = json.loads((folder / "best" / "best.json").read_text())
    return (folder / "best" / "model").read_text(), facts["metric"], facts["images_seen"]


def test_the_best_is_the_first_of_equals_among_those_measured_alike(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = evaluation_of(tmp_path / "run", best="recall")
    one.record_score(8, result(recall=1 / 3, frechet=5), Model("a"))
    one.record_score(16, result(recall=1 / 3, frechet=2), Model("b"))  # no better, though written as 0.333333
    assert best(tmp_path / "run") == ("a", "recall", 8)
    one.record_score(24, result(14, recall=0.25, frechet=3), Model("c"))  # of more pictures: another number
    assert best(tmp_path / "run") == ("c", "recall", 24)
    one.record_score(32, result(14, recall=0.2, frechet=4), Model("d"))
    assert best(tmp_path / "run") == ("c", "recall", 24)
    other = evaluation_of(tmp_path / "run", best="frechet")
    other.record_score(
        40, result(14, recall=0.2, frechet=3.5), Model("e")
    )  # the folder holds what was best by another number
    assert best(tmp_path / "run") == ("e", "frechet", 40)
    other.record_score(48, result(14, recall=0.2), Model("f"))
    assert best(tmp_path / "run") == ("e", "frechet", 40)
    said = capfd.readouterr().err
    assert said.count("too few") == 2, "each warning once"
    assert "no best weights kept: frechet cannot be computed" in said
    rows = scores(tmp_path / "run")
    assert rows[0]["frechet_floor"] == rows[0]["recall_floor"] == "0.5"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "judges.json", "scores.csv"]


@pytest.mark.parametrize("moment", ["scores", "model", "rename"])
def test_killed_while_it_keeps_the_best(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the scores are written, in the model, before it takes the old one's place: resumed, all is as if not."""
    folder = RunFolder(tmp_path / "run")
    evaluation_of(folder.path, best="recall").record_score(8, result(recall=0.25), Model("a"))

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    point = {
        "scores": (PeriodicEvaluation, "_write_best"),
        "model": (Model, "save_pretrained"),
        "rename": (Path, "rename"),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(*point, die)
        with pytest.raises(KeyboardInterrupt):
            evaluation_of(folder.path, best="recall").record_score(16, result(recall=0.5), Model("b"))
    assert best(folder.path) == ("a", "recall", 8)
    folder.rewind_log(12)  # what resuming from the checkpoint before does
    evaluation_of(folder.path, best="recall").record_score(16, result(recall=0.5), Model("b"))
    assert best(folder.path) == ("b", "recall", 16)
    assert [row["images"] for row in scores(folder.path)] == ["8", "16"]
    assert sorted(path.name for path in folder.path.iterdir()) == ["best", "judges.json", "scores.csv"]


def test_a_best_that_cannot_be_told_is_said_before_training(wanted: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.best: Input should be 'frechet', .* got 'fid'"):
        ddpm_config(evaluate=wanted | {"best": "fid"})
    with pytest.raises(ConfigError, match="class_accuracy needs a model with classes"):
        train(ddpm_config(evaluate=wanted | {"best": "class_accuracy"}, label=None), tmp_path / "run")
    assert not (tmp_path / "run" / "log.csv").exists()
    judge = load_extractor("pixels")
    with pytest.raises(ConfigError, match=r"pixels@.* has no classes, and so no classifier_score"):
        check_best("classifier_score", judge, labelled=True)
    check_best("frechet", judge, labelled=False)


@pytest.mark.slow
def test_two_processes_judge_as_one_does(wanted: dict[str, Any], tmp_path: Path) -> None:
    """Started by torchrun: the same scores and losses to rounding, `best/` once; training as without."""
    judged = ddpm_config(evaluate=wanted | {"best": "frechet", "every": 16})
    train(judged, tmp_path / "one")
    for name, made in (("two", judged), ("plain", ddpm_config())):
        path = write_config(made, tmp_path / f"{name}.yaml")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
        call = ["t2i", "train", "ddpm", str(path), "--run", str(tmp_path / name), "--quiet"]
        env = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, *call], env=env, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    assert fingerprint(tmp_path / "two") == fingerprint(tmp_path / "plain")
    for a, b in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    for a, b in zip(scores(tmp_path / "one"), scores(tmp_path / "two"), strict=True):
        # a picture may differ by 1/255 here and there, since other batches round otherwise
        assert {name: float(value) for name, value in b.items()} == pytest.approx(
            {name: float(value) for name, value in a.items()}, rel=1e-3, abs=1e-3
        )
    kept = [json.loads((tmp_path / name / "best" / "best.json").read_text()) for name in ("one", "two")]
    assert kept[1]["images_seen"] == kept[0]["images_seen"]
    assert sorted(path.name for path in (tmp_path / "two").glob("best*")) == ["best"]
    assert (tmp_path / "two" / "best" / "model_index.json").is_file()


def test_another_judge_than_the_references_is_said_before_training(wanted: dict[str, Any], tmp_path: Path) -> None:
    other = save_classifier(tmp_path / "judge-run", seed=3)
    with pytest.raises(DataError, match="the reference was made with judge-run@"):
        train(ddpm_config(evaluate=wanted | {"features": str(other)}), tmp_path / "run")
    assert not (tmp_path / "run" / "log.csv").exists()
    assert PeriodicEvaluation.create(None, ddpm_config(), lambda weights: None) is None  # type: ignore[arg-type]
