"""Classification Accuracy Score: what can be learned from pictures, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluation_kit import SIZE, save_classifier, save_pictures

from t2i.cli.main import main
from t2i.config import Source
from t2i.errors import DataError
from t2i.evaluation.cas import classification_accuracy_score, learn
from t2i.evaluation.image_sets import StoredSet
from t2i.evaluation.image_sources import open_stored


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cas")
    save_pictures(folder / "real", 330)
    save_pictures(folder / "test", 90, first=2000)
    save_pictures(folder / "good", 270, first=4000)
    return folder


def opened(path: Path) -> StoredSet:
    return open_stored(Source(path=str(path)), SIZE)


def test_what_can_be_learned_is_learned_and_what_cannot_is_not(place: Path) -> None:
    """Pictures like the real ones teach as well as they do; the same pictures under turned names teach the opposite."""
    real, test = str(place / "real"), str(place / "test")
    found = classification_accuracy_score(opened(place / "good"), list(range(270)), real, test, SIZE)
    assert found["ceiling"] > 0.8
    assert found["value"] > 0.8
    assert found["ratio"] == pytest.approx(found["value"] / found["ceiling"])
    assert found["learned_from"]["real"] == found["learned_from"]["pictures"] == 270
    for before, after in (("red", "0"), ("green", "red"), ("blue", "green"), ("0", "blue")):
        (place / "good" / before).rename(place / "good" / after)
    turned = classification_accuracy_score(opened(place / "good"), list(range(270)), real, test, SIZE)
    assert turned["value"] < 0.2
    assert turned["ceiling"] == found["ceiling"], "it is a function of the data and the seed"


def test_learning_does_not_touch_the_global_generator_of_who_asks() -> None:
    before = torch.get_rng_state()
    x = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    a, b = (learn(x, torch.zeros(8, dtype=torch.int64), 2, seed, 1).state_dict() for seed in (0, 0))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(torch.get_rng_state(), before)


def test_too_few_or_no_classes_are_refused(place: Path, tmp_path: Path) -> None:
    real, test = str(place / "real"), str(place / "test")
    with pytest.raises(DataError, match="at least 256 pictures with a class of the data, got 255"):
        classification_accuracy_score(opened(place / "real"), list(range(255)), real, test, SIZE)
    other = tmp_path / "other"
    save_pictures(other, 9)
    (other / "red").rename(other / "pink")
    with pytest.raises(DataError, match="has other classes of 'label'"):
        classification_accuracy_score(opened(place / "real"), list(range(300)), real, str(other), SIZE)


def test_it_stands_in_the_score(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    judge = ["--features", str(save_classifier(place / "judge"))]
    ref = str(place / "ref.safetensors")
    assert main(["eval", "reference", "--data", str(place / "real"), *judge, "-o", ref, "--quiet"]) == 0
    call = ["eval", "score", str(place / "real"), "--ref", ref, *judge, "--quiet"]
    capfd.readouterr()
    assert main([*call, "--cas", str(place / "real"), str(place / "test"), "--json"]) == 0
    cas = json.loads(capfd.readouterr().out)["cas"]
    assert 0 <= cas["value"] <= 1
    assert cas["tested_on"]["count"] == 90
