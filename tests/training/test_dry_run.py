"""`--dry-run` tells what the run will be: each number against the run itself, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from training_kit import autoencoder_config, ddpm_config, make_images, save_autoencoder, text2image_config, train

from t2i.config import AutoencoderConfig
from t2i.errors import DataError, ModelError, T2IError
from t2i.training import dry_run as plan_module
from t2i.training.dry_run import _duration, describe
from t2i.training.families.ddpm import estimate_cost
from t2i.training.runs.checkpoint import load_checkpoint
from t2i.training.runs.run_folder import RunFolder


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


def test_plan_tells_batch_rate_work_and_time(folder: Path, tmp_path: Path) -> None:
    rate = {"lr": 1e-3, "warmup": 16, "cooldown": 16}
    config = autoencoder_config(folder / "images", images=64, accumulate=2, optimizer=rate)
    plan = lines(describe(config, tmp_path / "run"))
    assert plan["batch"] == "4 images = 1 processes x 2 parts x 2"
    curve, _, highest = plan["rate"].partition("  up to ")
    assert highest == "0.001"
    assert len(curve) == 40
    assert curve[0] == "▁"
    assert curve[10:31] == "█" * 21
    assert curve[31:] == "".join(sorted(curve[31:], reverse=True))
    assert curve[-1] == "▂"  # an eighth of the rate is left at 62 of 64 images
    assert float(plan["work"].split()[0]) >= 0
    assert "images/s, measured over 5 steps here" in plan["time"]
    assert not [*tmp_path.iterdir()]


def test_plan_of_ddpm_has_all_its_lines_on_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "processes", lambda: SimpleNamespace(num_processes=2))
    config = ddpm_config(images=64, batch=8, accumulate=2, keep=2)
    plan = lines(describe(config, tmp_path / "run", measure=False))
    assert list(plan) == ["run", "data", "epoch", "model", "work", "batch", "steps", "rate", "disk", "time", "begins"]
    assert plan["batch"] == "8 images = 2 processes x 2 parts x 2"
    assert plan["steps"] == "8 of 8 images, 64 images in all"
    assert plan["model"].endswith("U-Net 0.1M")
    with pytest.raises(T2IError, match="batch 10 does not divide over 2 processes, 2 parts each") as caught:
        describe(ddpm_config(batch=10, accumulate=2), tmp_path / "run", measure=False)
    assert caught.value.hint == "--set batch=8"
    assert not [*tmp_path.iterdir()]


def test_flops_are_those_of_the_layers_by_hand() -> None:
    """One level without attention: 3x3 convolutions at full size, counted as 2 * k^2 * c_in * c_out * pixels."""
    from t2i.config import DDPMConfig, build_config

    plain = {"images": 1, "batch": 1, "optimizer": {"lr": 1}, "data": {"path": "nowhere", "size": 8}}
    model = {"channels": [8], "attention": [False], "layers": 1, "groups": 4}
    config = build_config(DDPMConfig, plain | {"model": model})
    pixels, c, emb = 64, 8, 32
    convolutions = [(3, c)] + [(c, c)] * 2 + [(c, c)] * 4 + [(2 * c, c), (c, c)] * 2 + [(c, 3)]
    by_hand = sum(2 * 9 * a * b * pixels for a, b in convolutions)
    by_hand += 2 * sum(2 * 2 * c * c * pixels for _ in range(1))  # the shortcuts of the way up, 1x1
    by_hand += 2 * (c * emb + emb * emb) + 5 * 2 * emb * c  # the time: two layers, and one into each of five blocks
    attention = 4 * 2 * c * c * pixels + 2 * 2 * pixels * pixels * c  # of the middle: q, k, v, out; q k^T and its use
    assert estimate_cost(config).flops == 3 * (by_hand + attention)


def test_work_of_an_autoencoder_s_losses(folder: Path) -> None:
    """Each of them by its own forward pass: the discriminator's counts for the part of the run that it plays."""
    from t2i.nn.efficientnet import EfficientNetLite0
    from t2i.training.cost_estimate import blank, work
    from t2i.training.families.autoencoder import build_codec
    from t2i.training.families.autoencoder import estimate_cost as autoencoder_cost

    def flops(**loss: float) -> int:
        config = autoencoder_config(folder / "images", loss=loss, discriminator={"channels": [4, 8]}, crop=8)
        return autoencoder_cost(config).flops

    x = blank(1, 3, 8, 8)
    net = EfficientNetLite0().eval().to("meta")
    whole = autoencoder_config(folder / "images", loss={"adversarial": 1.0}, discriminator={"channels": [4, 8]})
    discriminator = build_codec(whole).discriminator.to("meta")
    features, patches = work(lambda: net.scales(x)), work(lambda: discriminator(x))
    assert min(features, patches) > 0
    plain = flops()
    assert flops(perceptual=1.0) == plain + 3 * features
    assert flops(adversarial=1.0) == plain + 9 * patches
    assert flops(adversarial=1.0, adversarial_from=24) == plain + round(9 * patches / 4)
    assert flops(adversarial=1.0, adversarial_from=32, perceptual=1.0) == plain + 3 * features
    assert flops(adversarial=1.0, perceptual=1.0) == plain + 4 * features + 9 * patches


def test_time_is_measured_without_and_with_the_discriminator(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 400 images the first 100 at 10 images/s, the others at 5, though the plan itself makes few steps."""
    asked: list[int] = []

    def speed(config: AutoencoderConfig) -> float:
        asked.append(config.loss.adversarial_from)
        return 5.0 if config.loss.adversarial_from == 0 else 10.0

    monkeypatch.setattr(plan_module, "images_per_second", speed)
    loss = {"adversarial": 1.0, "adversarial_from": 100}
    config = autoencoder_config(folder / "images", images=400, loss=loss, discriminator={"channels": [4]})
    said = "70 seconds at 10, then 5 images/s, measured over 5 steps here; samples not counted"
    assert lines(describe(config, tmp_path / "run"))["time"] == said
    assert asked == [2**62, 0]
    for seen, said in ((40, "66 seconds at 10, then 5"), (100, "60 seconds at 5 "), (200, "40 seconds at 5 ")):
        (tmp_path / "run" / "checkpoints" / f"{seen:012d}").mkdir(parents=True)
        assert lines(describe(config, tmp_path / "run"))["time"].startswith(said)
    (tmp_path / "run" / "checkpoints" / f"{400:012d}").mkdir()
    assert lines(describe(config, tmp_path / "run"))["time"].startswith("0 seconds at 5 ")
    never = config.model_copy(update={"loss": config.loss.model_copy(update={"adversarial_from": 500})})
    assert lines(describe(never, tmp_path / "other"))["time"].startswith("40 seconds at 10 ")


def test_a_day_is_told_in_hours() -> None:
    assert [_duration(s) for s in (30, 600, 7200, 400_000)] == ["30 seconds", "10.0 minutes", "2.0 hours", "4.6 days"]


def test_plan_fails_where_the_run_would(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data"):
        describe(autoencoder_config(tmp_path / "nothing"), tmp_path / "run")
    with pytest.raises(ModelError, match="no autoencoder in"):
        describe(text2image_config(folder / "images", tmp_path / "nothing"), tmp_path / "run")
