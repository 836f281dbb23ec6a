"""The run folder, and the promise it serves: a run that was stopped, by whatever, ends as one that was not."""

from __future__ import annotations

import getpass
import json
import os
import platform
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_kit import (
    TRAINED,
    autoencoder_config,
    child_killed_at_prune,
    child_killed_at_sync,
    child_with_small_disk,
    fingerprint,
    in_child,
    make_images,
    makers_over,
    read_log,
    train,
)

import t2i
from t2i.config import Run, load_config
from t2i.errors import CheckpointError, Terminated
from t2i.training.engine import Engine
from t2i.training.runs.environment import idle_cores
from t2i.training.runs.run_folder import Launch, RunFolder

Make = Callable[..., Any]  # changes -> config


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Make]:
    """A config of each family, over the same ten images."""
    return makers_over(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def straight(makers: dict[str, Make], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What an uninterrupted run of each family ends with."""
    found = {}
    for family in TRAINED:
        run = tmp_path_factory.mktemp("straight") / family
        assert train(makers[family](), run) == run / "export"
        assert [int(p.name) for p in RunFolder(run).saved()] == [32, 24, 12]
        found[family] = fingerprint(run)
    return found


@pytest.fixture
def settings(makers: dict[str, Make]) -> Any:
    return makers["autoencoder"]()


def begun(settings: Run, path: Path) -> RunFolder:
    """A run folder with a checkpoint, or what passes for one before it is opened."""
    folder = RunFolder(path)
    folder.begin(settings, Launch("auto"))
    (folder.checkpoints / "000000000012").mkdir(parents=True)
    return folder


# One run, stopped and resumed


@pytest.mark.parametrize("family", TRAINED)
def test_the_same_run_twice_is_the_same(
    family: str, makers: dict[str, Make], straight: dict[str, Any], tmp_path: Path
) -> None:
    """And the fingerprint can fail: another seed gives another run."""
    train(makers[family](), tmp_path / "again")
    assert fingerprint(tmp_path / "again") == straight[family]
    train(makers[family](seed=8), tmp_path / "other")
    other = fingerprint(tmp_path / "other")
    assert all(other[part] != straight[family][part] for part in ("model", "ema", "optimizer", "log", "export"))


@pytest.mark.parametrize("family", TRAINED)
def test_a_run_made_longer_equals_one_that_was_long_from_the_start(
    family: str, makers: dict[str, Make], straight: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped at a checkpoint, in mid-epoch, then beyond the first epoch; intervals may change meanwhile."""
    run = tmp_path / "run"
    train(makers[family](images=8), run)
    train(makers[family](images=20, save_every=1000, sample_every=7, keep=1), run)
    assert [int(p.name) for p in RunFolder(run).saved()] == [20]
    train(makers[family](), run)
    assert fingerprint(run) == straight[family]


@pytest.mark.parametrize("family", TRAINED)
def test_resumes_bit_for_bit_in_bf16(family: str, makers: dict[str, Make], tmp_path: Path) -> None:
    """As the published runs train where the hardware computes in it."""
    train(makers[family](precision="bf16", images=20), tmp_path / "straight")
    train(makers[family](precision="bf16", images=12), tmp_path / "stopped")
    train(makers[family](precision="bf16", images=20), tmp_path / "stopped")
    assert fingerprint(tmp_path / "stopped") == fingerprint(tmp_path / "straight")
    state = fingerprint(tmp_path / "straight")["state"]
    assert state["precision"] == "bf16"


@pytest.mark.parametrize("family", TRAINED)
def test_terminated_and_resumed(
    family: str,
    makers: dict[str, Make],
    straight: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS 3: SIGTERM in the first step and in mid-epoch of the second epoch."""
    advance = Engine.advance

    def terminate_at(images: int) -> Callable[..., None]:
        def updated(engine: Engine, *arguments: Any, **terms: Any) -> None:
            advance(engine, *arguments, **terms)
            if engine.images_seen == images:
                os.kill(os.getpid(), signal.SIGTERM)

        return updated

    for images in (4, 16):
        monkeypatch.setattr(Engine, "advance", terminate_at(images))
        with pytest.raises(Terminated, match=f"terminated at {images} images"):
            train(makers[family](), tmp_path / "run")
        assert not (tmp_path / "run" / "export").exists()
    monkeypatch.undo()
    train(makers[family](), tmp_path / "run", start="resume")
    assert fingerprint(tmp_path / "run") == straight[family]


SECOND = "000000000024"
POINTS = {
    "after the first file": f"checkpoints/{SECOND}.partial/model.safetensors",
    "before the rename": f"checkpoints/{SECOND}.partial",
    "after the rename": "checkpoints",
}


@pytest.mark.parametrize(
    ("family", "point"),
    [
        *(("autoencoder", point) for point in POINTS),
        ("ddpm", "after the first file"),
        ("text2image", "before the rename"),
    ],
)
def test_killed_while_a_checkpoint_is_written_and_resumed(
    family: str,
    point: str,
    makers: dict[str, Make],
    straight: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """FAULTS 1: the unfinished one is named and passed over, and the end is that of an uninterrupted run."""
    run = tmp_path / "run"
    assert in_child(child_killed_at_sync, makers[family](), run, SECOND, POINTS[point]) == -signal.SIGKILL
    whole = point == "after the rename"
    assert sorted(p.name for p in RunFolder(run).checkpoints.iterdir()) == [
        "000000000012",
        SECOND if whole else f"{SECOND}.partial",
    ]
    capfd.readouterr()
    train(makers[family](), run)
    said = capfd.readouterr().err
    assert (f"{SECOND}.partial: it was not finished" in said) != whole
    assert f"resuming {run} at {24 if whole else 12} images" in said
    assert fingerprint(run) == straight[family]
    assert not [*run.rglob("*.partial"), *run.rglob("*.tmp")]


def test_killed_between_rename_and_prune(makers: dict[str, Make], straight: dict[str, Any], tmp_path: Path) -> None:
    """FAULTS 2: both checkpoints are usable, and the next save prunes."""
    run = tmp_path / "run"
    assert in_child(child_killed_at_prune, makers["autoencoder"](keep=1), run) == -signal.SIGKILL
    assert [int(p.name) for p in RunFolder(run).saved()] == [24, 12]
    (run / "checkpoints" / SECOND / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    older = RunFolder(run).newest(said.append)
    assert older is not None
    assert older.state["images_seen"] == 12
    train(makers["autoencoder"](keep=1), run)
    assert [int(p.name) for p in RunFolder(run).saved()] == [32]
    assert fingerprint(run) == straight["autoencoder"]


def test_disk_full(makers: dict[str, Make], straight: dict[str, Any], tmp_path: Path) -> None:
    """FAULTS 4: says how much it needs; nothing half-written stays, the old checkpoint does, and it goes on later."""
    run, said = tmp_path / "run", tmp_path / "said"
    train(makers["autoencoder"](images=12), run)
    limit = (run / "checkpoints" / "000000000012" / "model.safetensors").stat().st_size - 1
    assert in_child(child_with_small_disk, makers["autoencoder"](), run, limit, said) == 0
    kind, message, hint = said.read_text().splitlines()
    assert kind == "CheckpointError"
    assert "cannot save checkpoint" in message
    assert "File too large" in message
    needed = sum(p.stat().st_size for p in (run / "checkpoints" / "000000000012").glob("*.safetensors"))
    assert f"it needs {needed / 1e6:.1f} MB" in message
    assert "free some space" in hint
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["000000000012"]
    train(makers["autoencoder"](), run)
    assert fingerprint(run) == straight["autoencoder"]


def test_damaged_checkpoint_is_named_and_the_one_before_taken(
    makers: dict[str, Make], straight: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """FAULTS 5: the rows of the log that come again are not there twice, and the end is the same."""
    run = tmp_path / "run"
    train(makers["autoencoder"](), run)
    for name in ("000000000032", SECOND):
        file = run / "checkpoints" / name / "optimizer.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    capfd.readouterr()
    train(makers["autoencoder"](), run)
    said = capfd.readouterr().err
    assert said.count("checksum mismatch: optimizer.safetensors") == 2
    assert "at 12 images" in said
    assert fingerprint(run) == straight["autoencoder"]


# Which run is it?


def test_config_is_kept_and_reads_back(settings: Run, tmp_path: Path) -> None:
    begun(settings, tmp_path / "run")
    assert load_config(tmp_path / "run" / "config.yaml", "autoencoder") == settings


def test_changed_config_is_shown_and_refused(makers: dict[str, Make], tmp_path: Path) -> None:
    """FAULTS 8: each key with both values; --force accepts."""
    folder = begun(makers["autoencoder"](), tmp_path / "run")
    changed = makers["autoencoder"](batch=8, optimizer__lr=5e-4, model__channels=[8, 8])
    with pytest.raises(CheckpointError) as caught:
        folder.begin(changed, Launch("auto"))
    lines = caught.value.message.splitlines()
    assert lines[1:] == [
        "  batch: 4 -> 8",
        "  model.channels: [8, 16] -> [8, 8]",
        "  optimizer.lr: 0.001 -> 0.0005",
    ]
    for suggestion in ("--force", "--fresh", "--run"):
        assert suggestion in str(caught.value.hint)
    assert load_config(folder.config, "autoencoder") == makers["autoencoder"]()
    folder.begin(changed, Launch("auto", force=True))  # which the engine keeps, once the checkpoint fits it


def test_intervals_and_a_longer_duration_are_no_change(makers: dict[str, Make], tmp_path: Path) -> None:
    folder = begun(makers["text2image"](), tmp_path / "run")
    longer = makers["text2image"](images=64, log_every=1, sample_every=2, save_every=3, keep=1, latents="elsewhere")
    folder.begin(longer, Launch("resume"))  # refuses nothing
    with pytest.raises(CheckpointError, match=r"images: 32 -> 64|batch"):
        folder.begin(makers["text2image"](images=64, batch=8), Launch("resume"))


def test_a_shorter_duration_is_a_change(makers: dict[str, Make], tmp_path: Path) -> None:
    folder = begun(makers["autoencoder"](), tmp_path / "run")
    with pytest.raises(CheckpointError, match="images: 32 -> 16"):
        folder.begin(makers["autoencoder"](images=16), Launch("auto"))


def test_a_longer_duration_is_a_change_where_the_rate_depends_on_it(makers: dict[str, Make], tmp_path: Path) -> None:
    folder = begun(makers["autoencoder"](optimizer__decay="cosine"), tmp_path / "run")
    with pytest.raises(CheckpointError, match="images: 32 -> 64"):
        folder.begin(makers["autoencoder"](optimizer__decay="cosine", images=64), Launch("auto"))


def test_config_may_change_before_the_first_checkpoint(makers: dict[str, Make], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(makers["autoencoder"](), Launch("auto"))
    folder.begin(makers["autoencoder"](batch=8), Launch("auto"))
    assert load_config(folder.config, "autoencoder") == makers["autoencoder"](batch=8)


def test_other_images_are_refused(makers: dict[str, Make], tmp_path: Path) -> None:
    """FAULTS 8: the config is the same, the folder it names holds other pictures."""
    from PIL import Image

    data = make_images(tmp_path / "images")
    config = autoencoder_config(data, images=8)
    train(config, tmp_path / "run")
    Image.new("RGB", (16, 16), "red").save(data / "03.png")
    longer = autoencoder_config(data, images=12)
    with pytest.raises(CheckpointError, match="trained on other data"):
        train(longer, tmp_path / "run")
    train(longer, tmp_path / "run", force=True)
    assert [int(p.name) for p in RunFolder(tmp_path / "run").saved()] == [12, 8]


def test_resume_with_nothing_there_is_an_error(settings: Run, tmp_path: Path) -> None:
    """FAULTS 9: never a silent new run; stray files are no checkpoint, and nothing is written."""
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    (folder.checkpoints / "notes").write_text("mine")
    (folder.checkpoints / "000000000012.partial").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint in") as caught:
        folder.begin(settings, Launch("resume"))
    assert "--resume" in str(caught.value.hint)
    assert not folder.config.exists()


def test_fresh_moves_the_old_run_aside(
    makers: dict[str, Make], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = begun(makers["autoencoder"](), tmp_path / "run")
    folder.begin(makers["autoencoder"](batch=8), Launch("fresh"))
    (aside,) = tmp_path.glob("run.*")
    assert f"moved the old run to {aside}" in capfd.readouterr().err
    assert (aside / "checkpoints" / "000000000012").is_dir()
    assert load_config(aside / "config.yaml", "autoencoder") == makers["autoencoder"]()
    assert not folder.saved()
    assert load_config(folder.config, "autoencoder") == makers["autoencoder"](batch=8)


def test_fresh_twice_within_a_second_keeps_both(settings: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20260131-120000")
    for k in range(3):
        folder = begun(settings, tmp_path / "run")
        (folder.path / "mark").write_text(str(k))
        folder.begin(settings, Launch("fresh"))
    assert sorted((p / "mark").read_text() for p in tmp_path.glob("run.*")) == ["0", "1", "2"]


def test_fresh_with_nothing_there_is_a_start(settings: Run, tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").begin(settings, Launch("fresh"))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


# The log


def write_rows(folder: RunFolder, images: list[int]) -> None:
    for seen in images:
        folder.write_log({"images": seen, "loss": f"{seen / 7:.6g}", "images_per_second": "1"})


def test_rewound_log_has_no_row_twice(tmp_path: Path) -> None:
    tmp_path.joinpath("run").mkdir()
    folder = RunFolder(tmp_path / "run")
    write_rows(folder, [4, 8, 12, 16])
    folder.rewind_log(12)
    write_rows(folder, [16, 20])
    assert [row["images"] for row in read_log(folder.path)] == [4, 8, 12, 16, 20]
    assert [row["loss"] for row in read_log(folder.path)] == pytest.approx([4 / 7, 8 / 7, 12 / 7, 16 / 7, 20 / 7], 1e-5)


@pytest.mark.parametrize("end", ["16,2.2", "16,", "1", "16"])
def test_half_a_row_at_the_end_is_dropped(tmp_path: Path, end: str) -> None:
    """What a process leaves that dies while it writes."""
    tmp_path.joinpath("run").mkdir()
    folder = RunFolder(tmp_path / "run")
    write_rows(folder, [4, 8, 12])
    with folder.log.open("a") as f:
        f.write(end)
    folder.rewind_log(16)
    assert [row["images"] for row in read_log(folder.path)] == [4, 8, 12]


def test_no_log_to_rewind(tmp_path: Path) -> None:
    RunFolder(tmp_path).rewind_log(12)
    assert not RunFolder(tmp_path).log.exists()


def test_a_log_of_an_older_version_gets_the_new_columns(tmp_path: Path) -> None:
    """A run goes on with a version that logs more, or less: the file stays one table, and rewinds as one."""
    tmp_path.joinpath("run").mkdir()
    folder = RunFolder(tmp_path / "run")
    write_rows(folder, [4, 8])
    folder.write_log({"images": 12, "loss": "0.5", "mse_quarter1": "0.25", "images_per_second": "2"})
    write_rows(folder, [16])
    folder.write_log({"images": 20, "loss": "0.4", "mse_quarter1": "", "images_per_second": "2"})
    lines = folder.log.read_text().splitlines()
    assert lines[0] == "images,loss,images_per_second,mse_quarter1"
    assert [line.count(",") for line in lines] == [3] * 6
    assert lines[3:] == ["12,0.5,2,0.25", "16,2.28571,1,", "20,0.4,2,"]
    folder.rewind_log(16)
    assert folder.log.read_text().splitlines() == lines[:5]
    assert [row["mse_quarter1"] for row in folder.read_log()] == ["", "", "0.25", ""]


# What computed it


def test_the_environment_is_recorded_once_and_again_when_it_changes(
    settings: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(settings, run, until=12)
    train(settings, run, until=16)
    (first,) = json.loads((run / "environment.json").read_text())
    assert first["since"] == 0
    assert (first["torch"], first["t2i"]) == (torch.__version__, t2i.__version__)
    assert (first["processes"], first["precision"]) == (1, "no")
    assert first["device"]
    for secret in (getpass.getuser(), platform.node(), str(Path.home()), str(tmp_path)):
        assert secret not in [str(value) for value in first.values()]
    assert "/" not in "".join(value for key, value in first.items() if key != "device" and isinstance(value, str))
    monkeypatch.setattr("t2i.training.runs.environment.device_name", lambda _: "another machine")
    train(settings, run, until=24)
    entries = json.loads((run / "environment.json").read_text())
    assert entries == [first, {**first, "since": 16, "device": "another machine"}]
    (run / "environment.json").write_text("[")  # damaged: nothing depends on it
    train(settings, run)
    assert [entry["since"] for entry in json.loads((run / "environment.json").read_text())] == [24]


@pytest.mark.parametrize(
    ("device", "processes", "threads", "env", "said"),
    [
        (
            "cpu",
            1,
            1,
            {"ACCELERATE_MIXED_PRECISION": "no"},
            "1 thread of 8 cores; accelerate launch --cpu, or OMP_NUM_THREADS=8",
        ),
        ("cpu", 2, 1, {"ACCELERATE_MIXED_PRECISION": "no"}, "OMP_NUM_THREADS=4"),
        ("cpu", 8, 1, {"ACCELERATE_MIXED_PRECISION": "no"}, None),
        ("cpu", 1, 8, {"ACCELERATE_MIXED_PRECISION": "no"}, None),
        ("cuda", 1, 1, {"ACCELERATE_MIXED_PRECISION": "no"}, None),
        ("cpu", 1, 1, {}, None),  # the user's own choice
    ],
)
def test_cores_that_a_launcher_leaves_idle_are_told(
    device: str, processes: int, threads: int, env: dict[str, str], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    note = idle_cores(torch.device(device), processes, threads, env)
    assert note is None if said is None else note is not None and said in note
