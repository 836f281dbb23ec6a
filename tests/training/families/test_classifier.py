"""The classifier's loop: it learns, what it says of itself is true, it resumes exactly, on any number of processes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from training_kit import classifier_config, fingerprint, launch, make_images, read_log, train, write_config

from t2i.config import ClassifierConfig
from t2i.data.tables import load_table
from t2i.errors import ConfigError, DataError, Terminated
from t2i.nn.resnet import ResNet
from t2i.report.runs import read_run
from t2i.training.augment import erase, translate
from t2i.training.engine import Step
from t2i.training.families import classifier
from t2i.training.families.classifier import (
    augment,
    classification_loss,
    classification_metrics,
    metrics_by_question,
    predict,
)
from t2i.training.verify import verify_resume

CERTAIN = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], dtype=torch.float64).log()
LABELS = torch.tensor([0, 1, 1, 0])


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# What it says of its answers


def test_accuracy_confusion_and_cross_entropy() -> None:
    facts = classification_metrics(CERTAIN, LABELS)
    assert facts["accuracy"] == 0.75
    assert facts["accuracy_of_class"] == [1.0, 0.5]
    assert facts["confusion"] == [[2, 0], [1, 1]]
    assert facts["cross_entropy"] == pytest.approx(float(F.cross_entropy(CERTAIN, LABELS)))


def test_calibration_error_is_the_distance_of_certainty_and_accuracy() -> None:
    """Four answers in four bins: off by 0.1, 0.8, 0.3 and 0.4."""
    assert classification_metrics(CERTAIN, LABELS)["calibration_error"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.4) / 4)


def test_a_certainty_that_is_kept_is_calibrated() -> None:
    """Three right of four at a certainty of 3/4."""
    logits = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log().repeat(4, 1)
    facts = classification_metrics(logits, torch.tensor([0, 0, 0, 1]))
    assert facts["calibration_error"] == pytest.approx(0, abs=1e-12)


def test_a_class_without_images_has_no_accuracy() -> None:
    facts = classification_metrics(F.pad(CERTAIN, (0, 1), value=-30.0), LABELS)
    assert facts["accuracy_of_class"] == [1.0, 0.5, None]


# Several questions

QUESTIONS = {"first": ("a", "b"), "second": ("x", "y", "z")}
BOTH = torch.cat([CERTAIN, torch.tensor([[3.0, 0, 0], [0, 2, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)], 1)
ASKED = torch.tensor([[0, 0], [-1, 1], [1, 0], [0, -1]])


def test_each_question_is_judged_by_the_pictures_that_answer_it() -> None:
    facts = metrics_by_question(BOTH, ASKED, QUESTIONS)
    assert facts["questions"]["first"] == classification_metrics(CERTAIN[[0, 2, 3]], torch.tensor([0, 1, 0]))
    assert facts["questions"]["second"] == classification_metrics(BOTH[:3, 2:], torch.tensor([0, 1, 0]))
    assert facts["accuracy"] == pytest.approx(5 / 6)
    assert metrics_by_question(CERTAIN, LABELS[:, None], {"only": ("a", "b")}) == classification_metrics(
        CERTAIN, LABELS
    )
    with pytest.raises(DataError, match="no picture with a class of 'second'"):
        metrics_by_question(BOTH, torch.tensor([[0, -1]] * 4), QUESTIONS)


def test_the_loss_of_questions_is_the_sum_of_theirs_and_the_mean_of_its_parts() -> None:
    loss, accuracy = classification_loss(BOTH, ASKED, QUESTIONS, 0.1)
    parts = [(CERTAIN[[0, 2, 3]], torch.tensor([0, 1, 0])), (BOTH[:3, 2:], torch.tensor([0, 1, 0]))]
    sums = [F.cross_entropy(x, y, label_smoothing=0.1, reduction="sum") for x, y in parts]
    assert float(loss) == pytest.approx(float(sum(sums)) / 4)
    assert float(accuracy) == pytest.approx(5 / 6)
    halves = [classification_loss(BOTH[k : k + 2], ASKED[k : k + 2], QUESTIONS, 0.1)[0] for k in (0, 2)]
    assert float(sum(halves)) / 2 == pytest.approx(float(loss))


def test_a_network_learns_two_questions_of_which_one_is_not_always_answered(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "shape": datasets.ClassLabel(names=["circle", "square"]),
            "shade": datasets.ClassLabel(names=["dark", "light"]),
        }
    )
    rows = []
    for k in range(64):
        image, light = Image.new("RGB", (16, 16), (20, 20, 20) if k % 2 else (180, 180, 180)), (k // 2) % 2
        box = (2 + k % 5, 2 + k % 3, 10 + k % 5, 10 + k % 3)
        draw = ImageDraw.Draw(image)
        (draw.rectangle if light else draw.ellipse)(box, fill=(250, 60, 60))
        rows.append({"image": image, "shape": light if k % 4 else None, "shade": 1 - k % 2})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    changes: dict[str, Any] = {"label": ["shape", "shade"], "images": 4_000, "batch": 50, "ema": 200, "log_every": 500}
    changes |= {"augment": {"shift": 1, "erase": 0}, "optimizer": {"lr": 5e-3}, "sample_every": 4_000}
    held_out = {"sources": [{"path": str(tmp_path / "train.parquet")}], "size": 16}
    config = classifier_config(tmp_path / "train.parquet", held_out=held_out, **changes)
    run = train(config, tmp_path / "run").parent
    facts = json.loads((run / "export" / "facts.json").read_text())
    asked = {"shape": ["circle", "square"], "shade": ["dark", "light"]}
    classes = json.loads((run / "export" / "classes.json").read_text())
    assert classes == {"classes": asked["shape"], "questions": asked}
    assert facts["questions"]["shade"]["accuracy"] == 1
    assert facts["questions"]["shape"]["accuracy"] > 0.8
    assert sum(map(sum, facts["questions"]["shape"]["confusion"])) == 48
    assert float(evaluation(run)[-1]["accuracy"]) == pytest.approx(facts["accuracy"], rel=1e-5)
    assert list(read_run(run).confusions) == ["shape", "shade"]


# How images are changed


def test_translation_reads_from_where_it_says() -> None:
    x = numbers(2, 3, 6, 6)
    moved = translate(x, torch.tensor([[1, 0], [0, -2]]))
    assert torch.equal(moved[0, :, :5], x[0, :, 1:])
    assert (moved[0, :, 5] == 0).all()
    assert torch.equal(moved[1, :, :, 2:], x[1, :, :, :4])
    assert (moved[1, :, :, :2] == 0).all()
    assert torch.equal(translate(x, torch.zeros(2, 2, dtype=torch.int64)), x)


def test_erasing_hides_a_square() -> None:
    hidden = erase(torch.ones(1, 1, 8, 8), torch.tensor([[4, 0]]), 4)[0, 0] == 0
    assert hidden.sum() == 8
    assert hidden[2:6, :2].all()
    for side in (1, 3, 4):  # an odd one too
        assert (erase(torch.ones(1, 1, 8, 8), torch.tensor([[4, 4]]), side) == 0).sum() == side**2


def test_augmentation_depends_on_the_global_index_alone() -> None:
    config, x = classifier_config(batch=8), numbers(8, 3, 16, 16)
    whole = augment(x, config, Step(3, 24, 8, slice(0, 8)))
    half = augment(x[4:], config, Step(3, 24, 8, slice(4, 8)))
    assert torch.equal(whole[4:], half)
    assert not torch.equal(whole, augment(x, config, Step(4, 32, 8, slice(0, 8))))
    plain = classifier_config(batch=8, augment={"shift": 0, "erase": 0})
    assert augment(x, plain, Step(3, 24, 8, slice(0, 8))) is x


# The loop


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClassifierConfig, Path]:
    config, run = classifier_config(), tmp_path_factory.mktemp("classifier") / "run"
    train(config, run)
    return config, run


def evaluation(run: Path) -> list[dict[str, str]]:
    with (run / "evaluation.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def test_it_learns_to_tell_shapes_apart(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model": {"channels": [16, 32]}, "augment": {"shift": 1, "erase": 0}, "ema": 200}
    changes |= {"sample_every": 10_000, "save_every": 10_000, "log_every": 500, "optimizer": {"lr": 5e-3}}
    config = classifier_config(images=10_000, batch=50, **changes)
    run = train(config, tmp_path / "run").parent
    facts = json.loads((run / "export" / "facts.json").read_text())
    assert facts["accuracy"] > 0.9
    assert float(evaluation(run)[-1]["accuracy"]) == pytest.approx(facts["accuracy"], rel=1e-5)
    assert read_log(run)[-1]["accuracy"] > read_log(run)[0]["accuracy"]


def test_export_is_what_was_measured(trained: tuple[ClassifierConfig, Path]) -> None:
    config, run = trained
    assert json.loads((run / "export" / "classes.json").read_text()) == {"classes": ["circle", "square", "triangle"]}
    net = ResNet.from_pretrained(run / "export", use_safetensors=True).eval()
    logits, labels = predict(net, config, load_table(config.held_out, False))
    facts = json.loads((run / "export" / "facts.json").read_text())
    found = hashlib.sha256((run / "export" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    assert facts == {"images_seen": 32, "weights_sha256": found} | classification_metrics(logits, labels[:, 0])
    assert [row["images"] for row in evaluation(run)] == ["16", "32"]


def test_other_classes_held_out_are_refused(tmp_path: Path) -> None:
    held_out = {"sources": [{"path": str(make_images(tmp_path / "images"))}], "size": 16}
    with pytest.raises(DataError, match="no column 'shape' of classes"):
        train(classifier_config(held_out=held_out), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out": {"size": 32}}, "held_out.size 32 is not data.size 16"),
        ({"augment": {"shift": 9}}, "augment: at most half of data.size 16"),
        ({"label": []}, "label: a column, or several that differ"),
        ({"label": ["shape", "shape"]}, "label: a column, or several that differ"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        classifier_config(**changes)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}], ids=str)
def test_resumed_run_equals_the_uninterrupted_one(changes: dict[str, Any], tmp_path: Path) -> None:
    config = classifier_config(**changes)
    train(config, tmp_path / "straight")
    for until in (12, 20):
        train(config, tmp_path / "run", until=until)
    train(config, tmp_path / "run")
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "straight")
    assert evaluation(tmp_path / "run") == evaluation(tmp_path / "straight")


def test_terminated_while_it_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 3: the state is saved, and the run ends as one that was not stopped."""
    train(classifier_config(), tmp_path / "straight")

    def terminated(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return classification_metrics(*arguments)

    monkeypatch.setattr(classifier, "classification_metrics", terminated)
    with pytest.raises(Terminated, match="terminated at 16 images") as caught:
        train(classifier_config(), tmp_path / "run")
    assert caught.value.exit_code == 143
    monkeypatch.undo()
    train(classifier_config(), tmp_path / "run", start="resume")
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "straight")
    assert evaluation(tmp_path / "run") == evaluation(tmp_path / "straight")


def test_verify_resume(tmp_path: Path) -> None:
    assert verify_resume(classifier_config(), tmp_path / "v", progress=False).startswith("equal bit")


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(tmp_path: Path) -> None:
    """Their losses differ from those of one process: batch norm sees half of the batch."""
    path = write_config(classifier_config(batch=8, images=64, log_every=8), tmp_path / "config.yaml")
    assert "equal bit for bit" in launch(2, path, tmp_path / "verify", "--verify-resume", family="classifier")
