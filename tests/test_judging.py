"""Judging along training: it changes nothing that is learned, its numbers are `t2i eval`'s, the best is kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_kit import save_classifier
from safetensors.torch import load_file
from training_kit import SHAPES, dcgan_config, ddpm_config, fingerprint, train, vae_config

from t2i import config
from t2i.errors import DataError
from t2i.evaluation.features import load_extractor
from t2i.evaluation.pictures import open_pictures
from t2i.evaluation.reference import load_reference, make_reference, save_reference
from t2i.evaluation.score import score
from t2i.training.judging import Judging

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


def test_another_judge_than_the_references_is_said_before_training(wanted: dict[str, Any], tmp_path: Path) -> None:
    other = save_classifier(tmp_path / "judge-run", seed=3)
    with pytest.raises(DataError, match="the reference was made with judge-run@"):
        train(ddpm_config(evaluate=wanted | {"features": str(other)}), tmp_path / "run")
    assert not (tmp_path / "run" / "log.csv").exists()
    assert Judging.of(None, ddpm_config(), lambda weights: None) is None  # type: ignore[arg-type]
