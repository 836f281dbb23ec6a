"""The DCGAN trainer: what each side does in a step, what is said of a lost game, exact resume, processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_kit import SIZE, dcgan_config, fingerprint, launch, make_images, read_log, train, write_config

from t2i.cli.main import main
from t2i.config import DCGANConfig, load_config, shipped_config
from t2i.data.tables import load_table
from t2i.errors import ConfigError, DataError, NonFinite
from t2i.imaging import images
from t2i.pipelines.class_conditional.dcgan import DCGAN
from t2i.report.runs import read_warnings
from t2i.training.batch import class_numbers
from t2i.training.engine import Step
from t2i.training.families import dcgan
from t2i.training.families.dcgan import (
    DISCRIMINATOR_SATURATED,
    GENERATOR_COLLAPSED,
    AdversarialPair,
    GameStep,
    recompute_batch_norms,
    warn_of_collapse,
)
from t2i.training.runs.checkpoint import load_checkpoint
from t2i.training.runs.run_folder import RunFolder
from t2i.training.verify import verify_resume

CLASSIC: dict[str, Any] = {
    "label": None,
    "model": {"kind": "classic", "generator": [16, 8], "discriminator": [8, 16], "norm": "batch"},
    "loss": {"game": "bce", "augment": []},
}
ZERO = torch.zeros(4)
WASSERSTEIN: dict[str, Any] = {"model": {"norm": "none"}, "loss": {"game": "wgan-gp"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[DCGANConfig, Path]:
    config, run = dcgan_config(), tmp_path_factory.mktemp("dcgan") / "run"
    train(config, run)
    return config, run


def weights(run: Path, images_seen: int, part: str = "model") -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoints" / f"{images_seen:012d}").tensors[part]


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], network: str) -> bool:
    names = [
        n for n in before if n.startswith(network) and "running" not in n and "_batches" not in n and "._" not in n
    ]
    assert names
    return any(not torch.equal(before[n], after[n]) for n in names)


# What a step does


def test_the_generator_moves_once_in_d_steps(tmp_path: Path) -> None:
    train(dcgan_config(d_steps=2, log_every=8, save_every=4), tmp_path / "run")
    one, two, three = (weights(tmp_path / "run", n) for n in (4, 8, 12))
    assert changed(one, two, "discriminator")
    assert changed(two, three, "discriminator")
    assert changed(one, two, "generator")
    assert not changed(two, three, "generator")
    assert [row["images"] for row in read_log(tmp_path / "run")] == [8, 16, 24, 32]


def test_the_generator_s_turn_leaves_no_gradient_in_the_discriminator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descend, seen = dcgan.Engine.descend, []

    def look(engine: Any, step: Step, name: str) -> None:
        seen.append({n.split(".")[0] for n, p in engine.raw.named_parameters() if p.grad is not None})
        descend(engine, step, name)

    monkeypatch.setattr(dcgan.Engine, "descend", look)
    train(dcgan_config(images=8), tmp_path / "run")
    assert seen == [{"discriminator"}, {"generator"}] * 2


def test_images_and_numbers_depend_on_the_global_index_alone() -> None:
    config = dcgan_config(batch=8)
    labels = class_numbers(load_table(config.data, False), config.label, torch.arange(8))
    networks = AdversarialPair(config, 3).eval()
    whole = GameStep(config, Step(1, 8, 8, slice(0, 8)), networks, labels, torch.device("cpu"))
    half = GameStep(config, Step(1, 8, 8, slice(4, 8)), networks, labels[4:], torch.device("cpu"))
    with torch.no_grad():
        x = whole.generate("latent")
        assert (x[4:] - half.generate("latent")).abs().max() < 1e-6
        assert (whole.discriminate(x, "augment real")[4:] - half.discriminate(x[4:], "augment real")).abs().max() < 1e-4
        assert not torch.equal(x, whole.generate("generator latent"))


@pytest.mark.parametrize("changes", [CLASSIC, WASSERSTEIN, {"loss": {"r1": 1.0}}], ids=["classic", "wgan-gp", "r1"])
def test_every_game_can_be_played(changes: dict[str, Any], tmp_path: Path) -> None:
    train(dcgan_config(**changes), tmp_path / "run")
    assert changed(weights(tmp_path / "run", 12), weights(tmp_path / "run", 32), "generator")
    assert len(DCGAN.from_pretrained(tmp_path / "run", device="cpu")(3)) == 3


def test_the_discriminator_learns_to_tell(tmp_path: Path) -> None:
    """Against a generator that stands still it wins."""
    config = dcgan_config(images=640, sample_every=64, save_every=10_000, loss={"augment": []})
    config = config.model_copy(update={"log_every": 64, "d_steps": 10**6})
    train(config, tmp_path / "run")
    assert (576, DISCRIMINATOR_SATURATED) in read_warnings(tmp_path / "run" / "warnings.csv")
    first, last = read_log(tmp_path / "run")[0], read_log(tmp_path / "run")[-1]
    assert last["d_loss"] < 0.5 * first["d_loss"]
    assert last["d_accuracy_real"] == last["d_accuracy_fake"] == 1


def test_a_picture_for_each_class_is_no_spread() -> None:
    """Over all of the batch the pictures differ as much as independent ones; within a class they do not at all."""
    draw = torch.Generator().manual_seed(0)
    real, labels = torch.randn(64, 3, 8, 8, generator=draw), torch.arange(64) % 5
    of_class = torch.randn(5, 3, 8, 8, generator=draw)[labels]

    def spread(fake: torch.Tensor, labels: torch.Tensor | None) -> float:
        return float(dcgan.step_metrics(ZERO, ZERO, real, fake, labels)["spread"])

    assert spread(of_class, None) > 0.8
    assert spread(of_class, labels) < 1e-6
    assert spread(of_class + 0.5 * torch.randn(64, 3, 8, 8, generator=draw), labels) == pytest.approx(0.5, rel=0.02)
    assert spread(0.5 * real, labels) == pytest.approx(0.5, rel=1e-5)
    few = torch.arange(64)  # no class twice
    assert spread(0.5 * real, few) == pytest.approx(0.5, rel=1e-5)
    by_hand = torch.stack([real[labels == k].var(0) * ((labels == k).sum() - 1) for k in range(5)]).sum(0) / (64 - 5)
    assert dcgan.mean_std(real, labels) == pytest.approx(float(by_hand.sqrt().mean()), rel=1e-5)


def test_a_run_may_end_between_turns_of_the_generator(tmp_path: Path) -> None:
    """Nine steps, four generator updates: the last row has none, and the resumed run still uses the row."""
    for end in (36, 72):
        train(dcgan_config(images=end, d_steps=2, log_every=8, sample_every=20), tmp_path / "run")
    assert [row["images"] for row in read_log(tmp_path / "run") if "g_loss" not in row] == [36]
    assert len([*(tmp_path / "run" / "samples").iterdir()]) == 3


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 11, of either player: the step and its images are named, and what is saved is whole."""
    hinge = dcgan.GAMES["hinge"]
    for broken in (
        hinge._replace(generator=lambda fake: fake.mean() * float("nan")),
        hinge._replace(discriminator=lambda real, fake: real.mean() * float("inf")),
    ):
        run = tmp_path / f"run{broken.generator is hinge.generator}"
        train(dcgan_config(), run, until=12)
        monkeypatch.setitem(dcgan.GAMES, "hinge", broken)
        with pytest.raises(NonFinite, match=r"at step 3, process \[0\], images 12..15"):
            train(dcgan_config(), run)
        monkeypatch.setitem(dcgan.GAMES, "hinge", hinge)
        assert [path.name for path in RunFolder(run).saved()] == [f"{12:012d}"]


def test_every_image_needs_a_class(tmp_path: Path) -> None:
    config = dcgan_config(make_images(tmp_path / "images"), label="kind")
    with pytest.raises(DataError, match="no column 'kind' of classes"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__generator": [16, 8]}, "model.generator: 2 levels are for 8 pixels, data.size is 16"),
        ({"accumulate": 2}, "accumulate"),
        ({"d_steps": 2}, "log_every: a row has a step of both networks, at least 8 images"),
        ({"loss__game": "wgan-gp", "model__norm": "batch"}, "wgan-gp judges every image alone"),
        (CLASSIC | {"label": "shape"}, "model.kind classic knows no classes"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dcgan_config(**changes)


@pytest.mark.parametrize("size", [32, 64])
def test_classic_is_for_32_and_64_pixels(size: int) -> None:
    """The shipped config as it is, and as its head says for larger images."""
    larger = ["data.size=64", "model.generator=[512, 256, 128, 64]", "model.discriminator=[64, 128, 256, 512]"]
    config = load_config(shipped_config("dcgan-classic"), "dcgan", tuple(larger) if size == 64 else ())
    assert isinstance(config, DCGANConfig)
    networks = AdversarialPair(config, 0).eval()
    x = networks.generator(torch.zeros(1, config.model.latent))
    assert x.shape == (1, 3, size, size)
    assert networks.discriminator(x).shape == (1,)
    kinds = [type(m).__name__ for m in networks.discriminator.modules()]
    assert "BatchNorm2d" in kinds
    assert config.loss.game == "bce"


# What it leaves


def test_export_is_the_averaged_generator_with_its_classes(trained: tuple[DCGANConfig, Path], tmp_path: Path) -> None:
    config, run = trained
    model = DCGAN.from_pretrained(run, device="cpu")
    assert model.classes == ("circle", "square", "triangle")
    average = weights(run, 32, "ema")
    for name, value in model.generator.named_parameters():
        assert torch.equal(value, average[f"generator.{name}"])
    settled = AdversarialPair(config, 3).generator
    settled.load_state_dict({n.removeprefix("generator."): t for n, t in average.items() if n.startswith("generator.")})
    recompute_batch_norms(settled, config, 3, torch.device("cpu"))
    for name, value in model.generator.named_buffers():
        assert torch.equal(value, settled.state_dict()[name])
        assert not torch.equal(value, average[f"generator.{name}"])  # not the average of what the batches had
    (image,) = model(1, "square", seed=3)
    assert image.size == (SIZE, SIZE)
    assert main(["sample", str(run), "-b", "1", "--label", "square", "-s", "3", "--quiet", "-o", str(tmp_path)]) == 0
    assert (images.pixels(images.decode(tmp_path / "000000.png")).int() - images.pixels(image).int()).abs().max() <= 1
    model.save_pretrained(tmp_path / "again")
    again = DCGAN.from_pretrained(tmp_path / "again", device="cpu")
    assert again.classes == model.classes
    assert images.pixel_hash(again(1, "square", seed=3)[0]) == images.pixel_hash(image)
    assert [p.name for p in sorted((run / "samples").iterdir())] == [f"{16:012d}.png", f"{32:012d}.png"]


def test_batch_norms_of_the_average_are_measured() -> None:
    """Over many batches the norm's output has mean 0 and deviation 1 per channel, whatever the averages said before."""
    config = dcgan_config(batch=64, label=None)
    net = AdversarialPair(config, 0).generator
    net.norms[0].running_mean.fill_(7.0)
    recompute_batch_norms(net, config, 0, torch.device("cpu"))
    z = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        h = torch.nn.functional.batch_norm(
            net.project(z).unflatten(1, (-1, 4, 4)), net.norms[0].running_mean, net.norms[0].running_var
        )
    assert h.mean((0, 2, 3)).abs().max() < 0.02
    assert (h.std((0, 2, 3)) - 1).abs().max() < 0.02


def test_a_lost_game_is_said_and_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A row that has no step of the generator has an empty cell."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    good = {"g_loss": "0.5", "d_accuracy_real": 0.8, "d_accuracy_fake": 0.7, "spread": 0.9}
    bad = good | {"g_loss": "", "d_accuracy_real": 1.0, "d_accuracy_fake": 0.995, "spread": 0.1}
    for seen, row in ((10, good), (20, bad)):
        folder.write_log({"images": seen, **row})
        warn_of_collapse(folder, seen - 10)
        said = capfd.readouterr().err
        assert (f"run at 20 images: {DISCRIMINATOR_SATURATED}\n" in said) == (seen == 20)
        assert (f"run at 20 images: {GENERATOR_COLLAPSED}\n" in said) == (seen == 20)
    warn_of_collapse(folder, 20)
    assert capfd.readouterr().err == ""
    assert read_warnings(folder.warnings) == [(20, DISCRIMINATOR_SATURATED), (20, GENERATOR_COLLAPSED)]
    folder.rewind_log(10)  # a run that goes on from there will say it again
    assert read_warnings(folder.warnings) == []


def test_a_young_generator_has_not_collapsed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It begins by drawing alike; what it learns to vary shows in its newest row, before the mean tells."""
    folder = RunFolder(tmp_path)
    for seen, spread in ((10, 0.2), (20, 0.2), (30, 0.6)):
        folder.write_log({"images": seen, "d_accuracy_real": 0.8, "d_accuracy_fake": 0.7, "spread": spread})
    warn_of_collapse(folder, 0)
    assert capfd.readouterr().err == ""


def test_a_critic_has_not_won_by_being_right(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Only the differences of a Wasserstein critic's answers count: where their zero lies means nothing."""
    assert [name for name, game in dcgan.GAMES.items() if not game.winnable] == ["wgan-gp"]
    folder = RunFolder(tmp_path)
    folder.write_log({"images": 10, "d_accuracy_real": 1.0, "d_accuracy_fake": 1.0, "spread": 0.9})
    warn_of_collapse(folder, 0, dcgan.GAMES["wgan-gp"].winnable)
    assert capfd.readouterr().err == ""


# Resume and processes


@pytest.mark.parametrize(
    "changes",
    [{"d_steps": 2, "log_every": 8}, CLASSIC, WASSERSTEIN, {"loss": {"r1": 1.0}}],
    ids=["2", "classic", "wgan-gp", "r1"],
)
def test_resumed_run_equals_the_uninterrupted_one(changes: dict[str, Any], tmp_path: Path) -> None:
    """Both networks, both of their averages and both optimisers' states; stopped between turns of the generator."""
    config = dcgan_config(**changes)
    train(config, tmp_path / "straight")
    train(config, tmp_path / "run", until=20)
    train(config, tmp_path / "run")
    resumed, straight = (fingerprint(tmp_path / name) for name in ("run", "straight"))
    if config.d_steps > 1:  # a row of the log is a mean over the steps since the run was started, or since the last row
        del resumed["log"], straight["log"]
    assert resumed == straight
    for part in ("model", "ema", "optimizer"):
        names = weights(tmp_path / "run", 32, part)
        assert {name.split(".")[0] for name in names} == {"generator", "discriminator"}


def test_verify_resume(tmp_path: Path) -> None:
    assert verify_resume(dcgan_config(d_steps=2, log_every=8), tmp_path / "v", progress=False).startswith("equal bit")


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_resume(tmp_path: Path) -> None:
    """About: each half of the batch has its own batch norm. Resumed they are equal bit for bit."""
    changes: dict[str, Any] = {"batch": 8, "images": 64, "log_every": 8, "loss": {"augment": ["translation"]}}
    config = dcgan_config(**changes)
    path = write_config(config, tmp_path / "config.yaml")
    launch(2, path, tmp_path / "two", family="dcgan")
    train(config, tmp_path / "one")
    one, two = read_log(tmp_path / "one")[0], read_log(tmp_path / "two")[0]
    assert two["d_loss"] == pytest.approx(one["d_loss"], rel=0.1)
    assert "equal bit for bit" in launch(2, path, tmp_path / "verify", "--verify-resume", family="dcgan")
