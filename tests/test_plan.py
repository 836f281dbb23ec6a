"""`--dry-run` tells what the run will be: each number against the run itself, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_kit import autoencoder_config, make_images, save_autoencoder, text2image_config, train

from t2i.errors import DataError, ModelError
from t2i.training.checkpoint import load_checkpoint
from t2i.training.plan import describe
from t2i.training.run import RunFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images`, ten pictures, and `vae`."""
    folder = tmp_path_factory.mktemp("plan")
    make_images(folder / "images")
    save_autoencoder(folder / "vae")
    return folder


def lines(plan: str) -> dict[str, str]:
    return {line[:8].strip(): line[8:] for line in plan.splitlines()}


def test_plan_of_a_run_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    config = autoencoder_config(
        folder / "images", images=30, data__sources=[{"path": str(folder / "images"), "repeat": 3}]
    )
    plan = lines(describe(config, tmp_path / "run"))
    assert plan["run"].startswith(str(tmp_path / "run"))
    assert plan["data"] == "10 images in 1 sources, 16 x 16 pixels"
    assert plan["epoch"] == "30 visits; the run is 1.0 epochs"
    assert plan["steps"] == "8 of 4 images, 30 images in all"
    assert plan["begins"] == "anew"
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("family", ["autoencoder", "text2image"])
def test_plan_agrees_with_the_run(family: str, folder: Path, tmp_path: Path) -> None:
    """Parameters and the size of a checkpoint, to the rounding of the plan; then where the run would begin."""
    data, run = folder / "images", tmp_path / "run"
    # large enough that the plan's 0.1 M and 1 MB say something
    if family == "autoencoder":
        config = autoencoder_config(data, images=4, model__channels=[32, 96], keep=3)
    else:
        config = text2image_config(data, folder / "vae", images=4, unet__channels=[64, 96], keep=3)
    plan = lines(describe(config, run))
    assert not run.exists()
    train(config, run)
    saved = RunFolder(run).saved()[0]
    model = load_checkpoint(saved).tensors["model"]
    millions = sum(value.numel() for value in model.values()) / 1e6
    total, parts = plan["model"].split("M parameters: ")
    assert abs(float(total) - millions) < 0.06
    assert sum(float(part.split()[-1].rstrip("M")) for part in parts.split(", ")) == pytest.approx(millions, abs=0.15)
    size = sum(p.stat().st_size for p in saved.iterdir()) / 1e6
    megabytes = float(plan["disk"].split()[0])
    assert "3 checkpoints and one being written" in plan["disk"]
    assert megabytes == pytest.approx(4 * size, rel=0.05, abs=0.5)
    assert lines(describe(config, run))["begins"] == f"at 4 images, from {saved}"


def test_plan_fails_where_the_run_would(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data"):
        describe(autoencoder_config(tmp_path / "nothing"), tmp_path / "run")
    with pytest.raises(ModelError, match="no autoencoder in"):
        describe(text2image_config(folder / "images", tmp_path / "nothing"), tmp_path / "run")
