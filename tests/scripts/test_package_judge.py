"""The embedded judge: packed in float16, measured as it is loaded; the one in the package is what its card says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from training_kit import SHAPES, classifier_config, train

from t2i.data.tables import load_table
from t2i.evaluation.features import JUDGES, load_extractor
from t2i.imaging import images
from t2i.model_files.weight_files import weights_hash
from t2i.nn.resnet import ResNet

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # scripts are run as files, so they are no package

from package_judge import main


def test_the_card_says_what_the_rounded_weights_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = classifier_config(images=400, batch=50, sample_every=10_000)
    export = train(config, tmp_path / "run")
    out = tmp_path / "judge"
    options = [
        "--run",
        str(tmp_path / "run"),
        "--test",
        str(SHAPES),
        "--out",
        str(out),
        "--data-says",
        "shapes",
    ]
    done = CliRunner().invoke(main, [*options, "--machine", "two cores", "--date", "today"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (weights,) = out.glob("*.safetensors")
    assert {t.dtype for t in load_file(weights).values() if t.is_floating_point()} == {torch.float16}
    rounded = ResNet.from_pretrained(out, torch_dtype=torch.float32).eval()
    table = load_table(config.held_out, False)
    with torch.inference_mode():
        answers = rounded(images.from_uint8(table.images(torch.arange(table.count)))).argmax(1)
    accuracy = (answers == table.labels(torch.arange(table.count), "shape")).double().mean()
    card = (out / "README.md").read_text()
    assert f"{accuracy:.2%} of {table.count:,} test images" in card
    assert weights_hash([weights], out) in card
    assert "| shapes |" in card
    assert json.loads((out / "classes.json").read_text()) == json.loads((export / "classes.json").read_text())
    monkeypatch.setitem(JUDGES, "judge", out)
    judge = load_extractor("judge")
    assert (judge.name, judge.size, judge.classes) == ("judge", 16, ("circle", "square", "triangle"))


@pytest.mark.parametrize(("name", "size", "classes"), [("judge", 32, [10]), ("judge64", 64, [7, 5])])
def test_the_judges_in_the_package_are_those_their_cards_tell_of(name: str, size: int, classes: list[int]) -> None:
    """Their hashes never change unnoticed: numbers of different years compare by them."""
    if not (JUDGES[name] / "config.json").is_file():
        pytest.skip(f"this checkout carries no {name}")
    judge = load_extractor(name)
    card = (JUDGES[name] / "README.md").read_text(encoding="utf-8")
    assert re.search(r"sha256 of its weights \| `(\w+)`", card)[1] == judge.hash  # type: ignore[index]
    assert sum(file.stat().st_size for file in JUDGES[name].iterdir()) < 8_000_000
    assert (judge.size, [len(names) for names in judge.questions.values()]) == (size, classes)
