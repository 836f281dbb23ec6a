"""The autoencoder against a late discriminator of patches: who learns when, from what, and how much it weighs."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from training_kit import (
    autoencoder_config,
    child_killed_at_sync,
    fingerprint,
    in_child,
    launch,
    make_images,
    read_log,
    train,
    write_config,
)

from t2i.config import AutoencoderConfig
from t2i.errors import NonFinite
from t2i.nn.patchgan import PatchDiscriminator
from t2i.training.engine import Step
from t2i.training.families import autoencoder as module
from t2i.training.families.autoencoder import build_codec, gradient_ratio
from t2i.training.optimizer import learning_rate
from t2i.training.runs.checkpoint import load_checkpoint
from t2i.training.runs.run_folder import RunFolder
from t2i.training.verify import verify_resume

JOINS = 16  # images; the run has 32, in steps of 4
CHANGES: dict[str, Any] = {
    "loss": {"adversarial": 0.5, "adversarial_from": JOINS},
    "discriminator": {"channels": [4, 8], "rate": 2.0},
    "crop": 8,
    "save_every": 4,
}
NEW = {"d_loss", "d_accuracy_real", "d_accuracy_fake", "d_gradient_norm", "g_loss", "g_weight", "total_loss"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "images")


def config_of(data: Path, **changes: Any) -> AutoencoderConfig:
    return autoencoder_config(data, **CHANGES | changes)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with every checkpoint kept."""
    run = tmp_path_factory.mktemp("straight") / "run"
    train(config_of(data), run)
    return run


def part(run: Path, images_seen: int, network: str, of: str = "model") -> dict[str, Tensor]:
    tensors = load_checkpoint(run / "checkpoints" / f"{images_seen:012d}").tensors[of]
    return {name: tensor for name, tensor in tensors.items() if name.startswith(network)}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    assert one
    return all(torch.equal(one[name], other[name]) for name in one)


# When it joins


def test_before_it_joins_nothing_is_changed(data: Path, straight: Path, tmp_path: Path) -> None:
    """The autoencoder, its average and its optimiser's state are bit for bit those of a run without the term."""
    config = config_of(data)
    plain = config.model_copy(update={"loss": config.loss.model_copy(update={"adversarial": 0.0})})
    train(plain, tmp_path / "plain")
    for of in ("model", "ema", "optimizer"):
        assert equal(part(straight, JOINS, "vae.", of), part(tmp_path / "plain", JOINS, "", of))
        assert not equal(part(straight, JOINS + 4, "vae.", of), part(tmp_path / "plain", JOINS + 4, "", of))
    fresh = {f"discriminator.{k}": v for k, v in build_codec(config).discriminator.state_dict().items()}
    assert equal(part(straight, JOINS, "discriminator."), fresh)
    assert not equal(part(straight, JOINS + 4, "discriminator."), fresh)


def test_its_columns_begin_where_it_joins(straight: Path) -> None:
    for row in read_log(straight):
        assert set(row) & NEW == (set() if row["images"] <= JOINS else NEW)
        assert {"loss", "l1", "gradient", "ssim", "kl", "psnr", "gradient_norm"} <= set(row)


def test_its_weights_depend_on_the_seed_alone(data: Path) -> None:
    codecs = [build_codec(config_of(data, seed=seed)) for seed in (3, 3, 4)]
    one, same, other = (codec.discriminator.state_dict() for codec in codecs)
    assert equal(one, same)
    assert not equal(one, other)


# What a step does


def test_each_player_learns_in_its_own_turn(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descend, seen = module.Engine.descend, []

    def look(engine: Any, step: Step, name: str = "gradient_norm") -> None:
        seen.append((name, {n.split(".")[0] for n, p in engine.raw.named_parameters() if p.grad is not None}))
        descend(engine, step, name)

    monkeypatch.setattr(module.Engine, "descend", look)
    train(config_of(data, images=24), tmp_path / "run")
    alone = ("gradient_norm", {"vae"})
    assert seen == [alone] * 4 + [("d_gradient_norm", {"discriminator"}), alone] * 2


def test_it_has_a_learning_rate_of_its_own(data: Path, straight: Path) -> None:
    """The first step of Adam moves a weight by the rate, whatever its gradient is."""
    config = config_of(data)
    before, after = (part(straight, seen, "discriminator.features.0.bias") for seen in (JOINS, JOINS + 4))
    moved = max((after[name] - before[name]).abs().max() for name in before)
    assert moved == pytest.approx(2 * learning_rate(config.optimizer, JOINS, config.images), rel=1e-3)


def test_it_learns_to_tell(data: Path, tmp_path: Path) -> None:
    """Against an autoencoder that hardly moves it wins."""
    config = config_of(
        data,
        images=240,
        optimizer={"lr": 1e-6, "warmup": 0},
        discriminator={"channels": [8, 16], "rate": 1e4},
        log_every=20,
        save_every=240,
    )
    train(config, tmp_path / "run")
    first, last = read_log(tmp_path / "run")[1], read_log(tmp_path / "run")[-1]
    assert last["d_loss"] < 0.5 * first["d_loss"]
    assert min(last["d_accuracy_real"], last["d_accuracy_fake"]) > 0.8


def test_total_loss_is_the_sum(straight: Path) -> None:
    for row in read_log(straight):
        terms = row["l1"] + 0.5 * row["gradient"] + 0.1 * (1 - row["ssim"]) + 1e-3 * row["kl"]
        assert row["loss"] == pytest.approx(terms, rel=1e-4)
        if row["images"] > JOINS:
            assert row["total_loss"] == pytest.approx(row["loss"] + row["g_weight"] * row["g_loss"], rel=1e-4)


@pytest.mark.parametrize("wanted", [0.5, 0.1])
def test_its_gradient_has_the_length_that_is_asked_for(
    wanted: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the reconstruction, measured in every step with the weight that is used."""
    lengths: list[tuple[float, float]] = []

    def measured(engine: Any, loss: Tensor, against: Tensor, where: Tensor) -> Tensor:
        ratio = gradient_ratio(engine, loss, against, where)
        others, its = (
            torch.autograd.grad(term, where, retain_graph=True)[0].double().norm().item()
            for term in (loss, wanted * ratio * against)
        )
        lengths.append((its, others))
        return ratio

    monkeypatch.setattr(module, "gradient_ratio", measured)
    train(config_of(data, loss__adversarial=wanted), tmp_path / "run")
    assert len(lengths) == 4
    for its, others in lengths:
        assert its == pytest.approx(wanted * others, rel=1e-4)
        assert others > 0


ONE_PROCESS: Any = SimpleNamespace(accelerator=SimpleNamespace(reduce=lambda x, how: x))


def test_ratio_of_gradients_that_are_known() -> None:
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    x_hat = x + 0
    assert gradient_ratio(ONE_PROCESS, 3 * x_hat.sum(), -0.25 * x_hat.sum(), x_hat) == pytest.approx(12)
    assert gradient_ratio(ONE_PROCESS, 0 * x_hat.sum(), x_hat.sum(), x_hat) == 0
    assert gradient_ratio(ONE_PROCESS, x_hat.sum(), 0 * x_hat.sum(), x_hat).isfinite()


def test_ratio_does_not_underflow_in_float16() -> None:
    """As many patches as two hundred images of 256 pixels have, by a loss that is so much smaller."""
    torch.manual_seed(0)
    net = PatchDiscriminator((16, 32)).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = []
    for half in (False, True):
        x_hat = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=half):
            answer = net(x_hat).float()
        found.append(float(gradient_ratio(ONE_PROCESS, x_hat.square().mean(), -answer.mean() / 2**12, x_hat)))
    assert found[1] == pytest.approx(found[0], rel=0.01)


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_a_loss_that_is_not_finite_stops_before_the_update(
    player: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 11, of either player."""
    hinge = module.GAMES["hinge"]
    broken = hinge._replace(**{player: lambda *logits: logits[0].mean() * math.nan})
    monkeypatch.setitem(module.GAMES, "hinge", broken)
    with pytest.raises(NonFinite, match=r"at step 4, process \[0\], images 16..19"):
        train(config_of(data), tmp_path / "run")
    assert int(RunFolder(tmp_path / "run").saved()[0].name) == JOINS


# What it leaves


def test_export_is_an_autoencoder_alone(straight: Path) -> None:
    vae = AutoencoderKL.from_pretrained(straight / "export")
    assert type(vae) is AutoencoderKL
    average = part(straight, 32, "vae.", "ema")
    assert torch.equal(vae.decoder.conv_in.weight, average["vae.decoder.conv_in.weight"])
    assert {f"vae.{name}" for name in vae.state_dict()} == set(average)
    assert not [path for path in (straight / "export").iterdir() if "discriminator" in path.name]


# Resume and processes


@pytest.mark.parametrize("until", [JOINS - 4, JOINS, JOINS + 8])
def test_resumed_run_equals_the_uninterrupted_one(until: int, data: Path, straight: Path, tmp_path: Path) -> None:
    """Stopped before it joins, as it joins, and after."""
    train(config_of(data), tmp_path / "run", until=until)
    train(config_of(data), tmp_path / "run")
    assert fingerprint(tmp_path / "run") == fingerprint(straight)


@pytest.mark.parametrize("seen", [JOINS, JOINS + 4])
def test_killed_run_equals_the_uninterrupted_one(seen: int, data: Path, straight: Path, tmp_path: Path) -> None:
    """SIGKILL while the last checkpoint without its steps is written, and the first with one; the log is rewound."""
    run, name = tmp_path / "run", f"{seen:012d}"
    assert in_child(child_killed_at_sync, config_of(data), run, name, f"checkpoints/{name}.partial") == -signal.SIGKILL
    train(config_of(data), run)
    assert fingerprint(run) == fingerprint(straight)


def test_verify_resume_looks_at_both_players(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it makes eight steps and the discriminator joins later: it joins early, and is interrupted too."""
    played: list[int] = []
    play = module.play
    monkeypatch.setattr(
        module, "play", lambda engine, step, *rest: played.append(step.first) or play(engine, step, *rest)
    )
    config = config_of(data, loss__adversarial_from=10_000, images=20_000)
    assert verify_resume(config, tmp_path / "v", progress=False).startswith("equal bit")
    assert played == [8, 12, 16, 20, 24, 28, 8, 12, 16, 20, 24, 28]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_resume(data: Path, tmp_path: Path) -> None:
    """Crops, weight and both players' gradients are those of the global batch."""
    config = config_of(data, batch=8, images=64, log_every=8)
    path = write_config(config, tmp_path / "config.yaml")
    launch(2, path, tmp_path / "two", family="autoencoder")
    train(config, tmp_path / "one")
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert len(one) == len(two) == 8
    for a, b in zip(one, two, strict=True):
        del a["psnr"], b["psnr"]  # of a batch, and the mean of two halves
        assert b == pytest.approx(a, rel=2e-4, abs=1e-6)
    assert "equal bit for bit" in launch(2, path, tmp_path / "verify", "--verify-resume", family="autoencoder")
