"""The VAE trainer: what it learns and reports, exact resume, processes; and its pipeline."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from training_kit import SHAPES, SIZE, fingerprint, launch, make_images, read_log, train, vae_config, write_config

from t2i.cli.main import main
from t2i.config import VAEConfig
from t2i.data.tables import load_table
from t2i.errors import ConfigError, DataError, UsageError
from t2i.imaging import images
from t2i.pipelines.class_conditional.vae import VAE
from t2i.randomness import generator
from t2i.training.elbo import dequantise
from t2i.training.families.vae import measure
from t2i.training.verify import verify_resume

FREE = 0.05  # bits: of some latent numbers more, of some less
HELD_OUT = {"sources": [{"path": str(SHAPES)}], "size": SIZE}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[VAEConfig, Path]:
    config, run = vae_config(measured=40, held_out=HELD_OUT), tmp_path_factory.mktemp("vae") / "run"
    train(config, run)
    return config, run


def evaluation(run: Path) -> list[dict[str, str]]:
    with (run / "evaluation.csv").open(newline="") as f:
        return list(csv.DictReader(f))


# What it learns and says


def test_it_learns_ten_images(tmp_path: Path) -> None:
    data = make_images(tmp_path / "images")
    config = vae_config(data, images=4_000, batch=20, log_every=400, sample_every=4_000, save_every=4_000, ema=100)
    run = train(config, tmp_path / "run").parent
    rows = read_log(run)
    assert rows[-1]["bits_per_dim"] < rows[0]["bits_per_dim"] - 0.5
    model, table = VAE.from_pretrained(run, device="cpu"), load_table(config.data, False)
    x = images.from_uint8(table.images(torch.arange(10)))
    assert (model.reconstruct(x) - x).square().mean() < 0.3 * x.var()


def test_log_has_the_bound_and_its_terms(trained: tuple[VAEConfig, Path]) -> None:
    for row in read_log(trained[1]):
        assert row["bits_per_dim"] == pytest.approx(row["reconstruction"] + row["kl"], abs=1e-4)
        assert row["kl"] > 0


def test_facts_are_of_training_and_held_out_images(trained: tuple[VAEConfig, Path]) -> None:
    config, run = trained
    facts = json.loads((run / "export" / "facts.json").read_text())
    assert facts["images_seen"] == 32
    train_, held_out = facts["train"], facts["held_out"]
    assert train_ == held_out  # the same images here, judged by the same sigma and draws
    assert train_["bits_per_dim"] == pytest.approx(train_["reconstruction"] + train_["kl"])
    model, table = VAE.from_pretrained(run, device="cpu"), load_table(config.data, False)
    errors = [measure(model, config, table, most)[0] for most in (None, config.measured)]
    assert errors[0] != errors[1]
    assert train_["sigma"] == pytest.approx(errors[0] ** 0.5, rel=1e-5)  # over the whole training set
    rows = evaluation(run)
    assert [row["images"] for row in rows] == ["16", "32"]
    assert float(rows[-1]["train_sigma"]) == pytest.approx(errors[1] ** 0.5, rel=1e-4)  # along training, over some
    assert float(rows[-1]["held_out_sigma"]) == float(rows[-1]["train_sigma"])


def test_measured_over_all_images_is_the_sum_over_each(trained: tuple[VAEConfig, Path]) -> None:
    """By hand, with the draws of the first group of 250: the square error and KL of the first images."""
    config, run = trained
    model, table = VAE.from_pretrained(run, device="cpu"), load_table(config.data, False)
    rows = table.spread(40)
    draw = generator(config.seed, "vae measure", 0)
    eps = torch.randn(40, config.model.latent, generator=draw)
    x = dequantise(images.from_uint8(table.images(rows)), torch.rand(40, 3, SIZE, SIZE, generator=draw))
    with torch.no_grad():
        x_hat, mean, log_variance = model.network(x, eps, table.labels(rows, "shape"))
    error, kl = measure(model, config, table, 40)
    assert error == pytest.approx(float((x_hat - x).double().square().mean()), rel=1e-6)
    posterior = Normal(mean.double(), (log_variance.double() / 2).exp())
    assert kl == pytest.approx(float(kl_divergence(posterior, Normal(0.0, 1.0)).sum()) / x.numel(), rel=1e-6)


def test_sigma_may_be_given(tmp_path: Path) -> None:
    config = vae_config(loss={"sigma": 0.5}, measured=20)
    run = train(config, tmp_path / "run").parent
    assert json.loads((run / "export" / "facts.json").read_text())["train"]["sigma"] == 0.5


def test_free_bits_cost_nothing(tmp_path: Path) -> None:
    train(vae_config(loss={"free_bits": 100.0}), tmp_path / "free")
    train(vae_config(loss={"beta": 0.0}), tmp_path / "none")
    free, none = (read_log(tmp_path / name)[-1] for name in ("free", "none"))
    assert free["mse"] == pytest.approx(none["mse"], rel=1e-5)  # the same steps, a constant apart in the loss


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__size": 18}, "no multiple of 4"),
        ({"held_out": HELD_OUT | {"size": 32}}, "held_out.size 32 is not data.size 16"),
        ({"model__groups": 3}, "8 is no multiple of 3 groups"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        vae_config(**changes)


def test_held_out_images_have_the_same_classes(tmp_path: Path) -> None:
    held_out = {"sources": [{"path": str(make_images(tmp_path / "images"))}], "size": SIZE}
    with pytest.raises(DataError, match="no column 'shape' of classes"):
        train(vae_config(held_out=held_out), tmp_path / "run")


# Resume and processes


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"held_out": HELD_OUT, "measured": 20}], ids=str)
def test_resumed_run_equals_the_uninterrupted_one(changes: dict[str, Any], tmp_path: Path) -> None:
    config = vae_config(**changes)
    train(config, tmp_path / "straight")
    for until in (12, 20):
        train(config, tmp_path / "run", until=until)
    train(config, tmp_path / "run")
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "straight")
    assert evaluation(tmp_path / "run") == evaluation(tmp_path / "straight")


def test_verify_resume(tmp_path: Path) -> None:
    assert verify_resume(vae_config(), tmp_path / "v", progress=False).startswith("equal bit")


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_resume(tmp_path: Path) -> None:
    """The variance is of the global batch, and so is what says which latent numbers are free."""
    config = vae_config(batch=8, images=64, log_every=8, loss={"free_bits": FREE})
    path = write_config(config, tmp_path / "config.yaml")
    launch(2, path, tmp_path / "two", family="vae")
    train(config, tmp_path / "one")
    for a, b in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    assert "equal bit for bit" in launch(2, path, tmp_path / "verify", "--verify-resume", family="vae")


# The pipeline


def test_a_run_is_sampled_by_its_folder(trained: tuple[VAEConfig, Path], tmp_path: Path) -> None:
    assert main(["sample", str(trained[1]), "-b", "2", "-s", "3", "--quiet", "-o", str(tmp_path)]) == 0
    model = VAE.from_pretrained(trained[1], device="cpu")
    for k, drawn in enumerate(model.draw([3, 4], torch.tensor([0, 1]))):
        assert images.pixel_hash(images.decode(tmp_path / f"{k:06d}.png")) == images.pixel_hash(drawn)


def test_a_picture_depends_on_its_seed_alone(trained: tuple[VAEConfig, Path]) -> None:
    model = VAE.from_pretrained(trained[1], device="cpu")
    together, alone = model(5, "circle", seed=3), model(1, "circle", seed=6, batch_size=1)
    difference = (images.pixels(together[3]).int() - images.pixels(alone[0]).int()).abs().max()
    assert difference <= 1


def test_the_way_between_seeds_begins_and_ends_at_them(trained: tuple[VAEConfig, Path]) -> None:
    model = VAE.from_pretrained(trained[1], device="cpu")
    way = model.interpolate(1, 9, 4, "square")
    ends = [model(1, "square", seed=seed)[0] for seed in (1, 9)]
    for ours, end in zip((way[0], way[-1]), ends, strict=True):
        assert (images.pixels(ours).int() - images.pixels(end).int()).abs().max() <= 1
    with pytest.raises(UsageError, match="seed 3 twice"):
        model.interpolate(3, 3)
    with pytest.raises(UsageError, match="allowed are circle, square, triangle"):
        model(1, "house")


def test_saved_and_loaded_it_draws_the_same(trained: tuple[VAEConfig, Path], tmp_path: Path) -> None:
    model = VAE.from_pretrained(trained[1], device="cpu")
    model.save_pretrained(tmp_path / "again")
    again = VAE.from_pretrained(tmp_path / "again", device="cpu")
    assert again.classes == model.classes
    assert images.pixel_hash(again(1, seed=2)[0]) == images.pixel_hash(model(1, seed=2)[0])
