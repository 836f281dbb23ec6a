"""The DDPM trainer: what it learns, what a batch is, what it exports; that it resumes, on any number of processes."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import data_kit
import diffusers
import pytest
import torch
from safetensors.torch import load_file
from training_kit import SIZE, ddpm_config, fingerprint, launch, make_images, read_log, train, write_config

from t2i.config import DDPMConfig
from t2i.data import tables
from t2i.data.lazy_table import LazyTable
from t2i.data.tables import load_table
from t2i.diffusion.objective import TIMES
from t2i.diffusion.schedule import SCHEDULES
from t2i.errors import ConfigError, DataError, Terminated
from t2i.imaging import images
from t2i.pipelines.class_conditional.ddpm import DDPM
from t2i.randomness import generator
from t2i.training.batch import class_names
from t2i.training.engine import Step
from t2i.training.families import ddpm
from t2i.training.families.ddpm import batch, build_unet
from t2i.training.losses import by_noise_level
from t2i.training.runs.run_folder import RunFolder
from t2i.training.verify import verify_resume


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[DDPMConfig, Path]:
    config, run = ddpm_config(), tmp_path_factory.mktemp("ddpm") / "run"
    train(config, run)
    return config, run


def step_of(config: DDPMConfig, first: int = 0, share: slice | None = None) -> Step:
    return Step(first // config.batch, first, config.batch, share or slice(0, config.batch))


# What it learns


@pytest.mark.parametrize(
    "objective",
    [
        {"schedule": "linear", "predict": "eps", "time": "integers"},
        {"schedule": "cosine", "predict": "v", "time": "uniform", "weight": "min-snr"},
        {"schedule": "cosine", "predict": "x0", "time": "logit-normal"},
        {"schedule": "flow", "predict": "flow", "time": "logit-normal"},
    ],
    ids=lambda o: str(o["predict"]),
)
def test_loss_falls_with_every_objective(objective: dict[str, str], tmp_path: Path) -> None:
    config = ddpm_config(
        images=60 * 16, batch=16, objective=objective, log_every=160, optimizer={"lr": 3e-3}, sample_every=10**6
    )
    train(config, tmp_path / "run")
    losses = [row["loss"] for row in read_log(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0]


def test_weighted_loss_is_logged_beside_the_plain_error(tmp_path: Path) -> None:
    train(ddpm_config(objective={"schedule": "cosine", "predict": "v", "weight": "min-snr"}), tmp_path / "weighted")
    train(ddpm_config(objective={"schedule": "cosine", "predict": "v"}), tmp_path / "plain")
    weighted, plain = read_log(tmp_path / "weighted"), read_log(tmp_path / "plain")
    assert all(row["loss"] == row["mse"] for row in plain)
    assert weighted[0]["mse"] == pytest.approx(plain[0]["mse"], rel=1e-5)  # the same draws, before the first update
    assert all(row["loss"] < row["mse"] for row in weighted)


def test_error_by_noise_level_is_the_mean_of_the_samples_of_each_quarter() -> None:
    """Discrete steps 1 .. T: T / 4 in each quarter; both ends of an interval, and empty quarters."""
    steps = torch.arange(1, 1001).double()
    found = by_noise_level(torch.arange(1, 1001).float(), steps, 1000.0)
    assert [pair[1].item() for pair in found.values()] == [250] * 4
    assert [(pair[0] / pair[1]).item() for pair in found.values()] == [125.5, 375.5, 625.5, 875.5]
    found = by_noise_level(torch.tensor([1.0, 2, 4, 8]), torch.tensor([1e-9, 0.25, 0.2500001, 1.0]), 1.0)
    assert [pair.tolist() for pair in found.values()] == [[3, 2], [4, 1], [0, 0], [8, 1]]


@pytest.mark.parametrize("parts", [1, 2])
def test_noise_levels_are_logged_over_all_samples_since_the_row_before(parts: int, tmp_path: Path) -> None:
    """With weights equal, the quarters' errors weighted by their samples are the mean error; in parts all the same."""
    config = ddpm_config(images=32, batch=8, log_every=16, accumulate=parts, optimizer={"lr": 1e-9})
    train(config, tmp_path / "run")
    schedule = SCHEDULES[config.objective.schedule]()
    for row, steps in zip(read_log(tmp_path / "run"), ((0, 1), (2, 3)), strict=True):
        quarters = []
        for index in steps:
            draw = generator(config.seed, "noise", index)
            torch.randn(8, 3, SIZE, SIZE, generator=draw)
            quarters += (4 * TIMES[config.objective.time](8, schedule, draw) / schedule.T).ceil().tolist()
        counts = [quarters.count(k) for k in (1, 2, 3, 4)]
        known = [(row[f"mse_quarter{k}"], n) for k, n in enumerate(counts, 1) if n]
        assert {f"mse_quarter{k}" for k, n in enumerate(counts, 1) if n} == {name for name in row if "quarter" in name}
        assert sum(value * n for value, n in known) / 16 == pytest.approx(row["mse"], rel=1e-5)


def test_weights_depend_on_the_seed_alone() -> None:
    nets = [build_unet(ddpm_config(seed=seed), 3).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(nets[0][k], nets[1][k]) for k in nets[0])
    assert not torch.equal(nets[0]["conv_in.weight"], nets[2]["conv_in.weight"])


# What a batch is


def test_batch_depends_on_the_global_image_index_alone() -> None:
    config = ddpm_config(batch=8, label_drop=0.4)
    table = load_table(config.data, False)
    whole, labels = batch(table, config, step_of(config, 16), 3)
    assert labels is not None
    for share in (slice(0, 4), slice(4, 8), slice(2, 3)):
        x, some = batch(table, config, step_of(config, 16, share), 3)
        assert torch.equal(x, whole[share])
        assert some is not None
        assert torch.equal(some, labels[share])


def test_classes_are_those_of_the_rows_or_the_null_class() -> None:
    """The shape of picture k is k % 3; about two of five labels are dropped."""
    config = ddpm_config(batch=600, label_drop=0.4)
    table = load_table(config.data, False)
    _, labels = batch(table, config, step_of(config), 3)
    assert labels is not None
    rows = table.order(config.seed, 0, 600)
    kept = labels != 3
    assert torch.equal(labels[kept], (rows % 3)[kept])
    assert 0.32 < 1 - kept.double().mean() < 0.48


def test_unconditional_batches_have_no_labels(tmp_path: Path) -> None:
    config = ddpm_config(make_images(tmp_path / "images"))
    x, labels = batch(load_table(config.data, False), config, step_of(config), 0)
    assert labels is None
    assert x.shape == (4, 3, SIZE, SIZE)
    assert x.abs().max() <= 1


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    """FAULTS 16: it could only learn what it learns without."""
    (tmp_path / "data").mkdir()
    make_images(tmp_path / "data" / "horse")
    (tmp_path / "data" / "horse" / "metadata.jsonl").unlink()
    config = ddpm_config(tmp_path / "data", label="label")
    with pytest.raises(DataError, match=r"column 'label' has 1 classes \(horse\); it takes two") as caught:
        train(config, tmp_path / "run")
    assert "--set label=null" in str(caught.value.hint)


def test_missing_classes_are_named(tmp_path: Path) -> None:
    config = ddpm_config(make_images(tmp_path / "images"), label="kind")
    with pytest.raises(DataError, match="no column 'kind' of classes"):
        class_names(config, load_table(config.data, False))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"schedule": "flow", "predict": "eps"}}, "schedule flow goes with predict flow"),
        ({"objective": {"predict": "flow"}}, "schedule flow goes with predict flow"),
        ({"data__size": 9}, "data.size 9 is no multiple of 2"),
        ({"model": {"channels": [16], "attention": [True, True]}}, "channels has 1 levels, attention 2"),
        ({"model": {"channels": [18, 18]}}, "channels 18 is no multiple of 4"),
        ({"model": {"depth": 3}}, "unknown key 'model.depth'"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ddpm_config(**changes)
    assert said in caught.value.message


# What it exports


def test_export_is_the_average_and_knows_its_classes(trained: tuple[DDPMConfig, Path]) -> None:
    _, run = trained
    model = DDPM.from_pretrained(run, device="cpu")
    assert model.classes == ("circle", "square", "triangle")
    assert model.null == 3
    average = load_file(RunFolder(run).saved()[0] / "ema.safetensors")
    for name, value in model.unet.state_dict().items():
        assert torch.equal(value, average[name])


def test_export_of_an_unconditional_run_draws_with_plain_diffusers(tmp_path: Path) -> None:
    train(ddpm_config(make_images(tmp_path / "images")), tmp_path / "run")
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path / "run" / "export")
    pipe.set_progress_bar_config(disable=True)
    (image,) = pipe(num_inference_steps=2).images
    assert image.size == (SIZE, SIZE)


def test_samples_are_drawn_along_the_way(trained: tuple[DDPMConfig, Path], tmp_path: Path) -> None:
    """Of the same latents and classes each time, by the averaged weights of that moment."""
    config, run = trained
    assert [p.name for p in sorted((run / "samples").iterdir())] == [f"{16:012d}.png", f"{32:012d}.png"]
    train(ddpm_config(images=16), tmp_path / "half")
    sheets = []
    for images_seen, exported in ((16, tmp_path / "half"), (32, run)):
        sheets.append(images.decode(run / "samples" / f"{images_seen:012d}.png"))
        drawn = DDPM.from_pretrained(exported, device="cpu")(4, ["circle", "square", "triangle"], config.seed, steps=2)
        again = images.grid(drawn, columns=config.samples.columns)
        assert (images.pixels(sheets[-1]).int() - images.pixels(again).int()).abs().max() <= 1
    assert sheets[0].tobytes() != sheets[1].tobytes()


# Resume and processes


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"model": {"dropout": 0.3}}], ids=str)
def test_resumed_run_equals_the_uninterrupted_one(
    changes: dict[str, Any], trained: tuple[DDPMConfig, Path], tmp_path: Path
) -> None:
    """Stopped in mid-epoch, resumed from its checkpoint: weights, average, optimiser, log, export."""
    config = ddpm_config(**changes)
    straight = trained[1]
    if changes:
        straight = tmp_path / "straight"
        train(config, straight)
    train(config, tmp_path / "run", until=20)
    train(config, tmp_path / "run")
    assert fingerprint(tmp_path / "run") == fingerprint(straight)


@pytest.mark.parametrize("storage", ["mapped", "stream"])
@pytest.mark.parametrize("threads", [0, 2])
def test_images_decoded_ahead_resume_bit_for_bit(
    storage: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 10: stopped in the middle of the first epoch and of the second, with the next images already decoded."""
    monkeypatch.setattr(tables, "LazyTable", partial(LazyTable, threads=threads))
    data = data_kit.parquet(tmp_path / "ten.parquet", [data_kit.encoded(k) for k in range(10)], group=3)
    config = ddpm_config(data, data__storage=storage, data__shuffle_buffer=4)
    train(config, tmp_path / "straight")
    for until in (4, 16):
        train(config, tmp_path / "run", until=until)
    train(config, tmp_path / "run")
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "straight")
    if storage == "mapped":  # which changes nothing but memory
        train(ddpm_config(data), tmp_path / "memory")
        assert read_log(tmp_path / "memory") == read_log(tmp_path / "run")


def test_terminated_while_samples_are_drawn(
    trained: tuple[DDPMConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 3: the state is saved, and the run ends as one that was not stopped."""
    config, straight = trained
    draw = ddpm.draw_samples

    def terminated(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        draw(*arguments)

    monkeypatch.setattr(ddpm, "draw_samples", terminated)
    with pytest.raises(Terminated, match="terminated at 16 images"):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    assert [p.stem for p in (tmp_path / "run" / "samples").iterdir()] == [f"{16:012d}"]
    train(config, tmp_path / "run")
    assert fingerprint(tmp_path / "run") == fingerprint(straight)


def test_verify_resume_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    said = verify_resume(ddpm_config(), tmp_path / "verify", progress=False)
    assert said.startswith("equal bit for bit: ")
    assert said.endswith("after 32 images, with and without an interruption at 16")
    assert not [*tmp_path.iterdir()]


def test_verify_resume_finds_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An average that a checkpoint forgets is what it is for."""
    from t2i.errors import CheckpointError
    from t2i.training.ema import Ema

    monkeypatch.setattr(Ema, "load", lambda *_: None)
    with pytest.raises(CheckpointError, match="a resumed run differs from the uninterrupted one: ema of "):
        verify_resume(ddpm_config(), tmp_path / "verify", progress=False)


KILLED = """
import os, signal, sys
from pathlib import Path
from t2i.cli.main import main
from t2i.training.runs import checkpoint

sync = checkpoint._sync

def die(path):
    if str(path).endswith("000000000048.partial/ema.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)

checkpoint._sync = die
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["memory", "mapped"])
def test_two_processes_have_the_losses_of_one_and_resume_bit_for_bit(storage: str, tmp_path: Path) -> None:
    """FAULTS 1 and 10: accumulated, in the fifth epoch of ten images, after SIGKILL while a checkpoint is written."""
    data = data_kit.parquet(tmp_path / "ten.parquet", [data_kit.encoded(k) for k in range(10)], group=3)
    config = ddpm_config(data, batch=8, accumulate=2, images=64, save_every=24, data__storage=storage)
    path = write_config(config, tmp_path / "config.yaml")
    (tmp_path / "driver.py").write_text(KILLED)
    train(config, tmp_path / "one")
    launch(2, path, tmp_path / "two")
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    launch(2, path, tmp_path / "killed", driver=tmp_path / "driver.py", code=1)
    left = RunFolder(tmp_path / "killed").checkpoints
    assert sorted(p.name for p in left.iterdir()) == [f"{24:012d}", f"{48:012d}.partial"]
    said = launch(2, path, tmp_path / "killed")
    assert said.count("000000000048.partial: it was not finished") == 1
    assert said.count("at 24 images") == 1
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "two")


@pytest.mark.slow
def test_two_processes_verify_that_they_resume(tmp_path: Path) -> None:
    path = write_config(ddpm_config(batch=8, accumulate=2, images=64), tmp_path / "config.yaml")
    said = launch(2, path, tmp_path / "run", "--verify-resume")
    assert said.count("equal bit for bit") == 1
    assert "after 64 images, with and without an interruption at 32" in said
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
