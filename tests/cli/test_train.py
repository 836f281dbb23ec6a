"""`t2i train` as it is typed: real processes, what goes to stdout and stderr, exit codes, launchers, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_kit import (
    TRAINED,
    fingerprint,
    makers_over,
    read_log,
    train,
    write_config,
)

from t2i.cli.main import main
from t2i.config import shipped_config
from t2i.training.runs.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"}
# torchrun reads even its script's options (and takes --run for a short form of its own), unless -- ends its own.
T2I = [sys.executable, "-m", "t2i"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "t2i"]
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Make]:
    """A config of each family, over the same ten images."""
    return makers_over(tmp_path_factory.mktemp("data"))


def call(command: list[str], *words: str | Path, cwd: Path, env: dict[str, str] = ENV) -> Any:
    """Run a command to its end."""
    return subprocess.run(
        [*command, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=900, check=False
    )


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


# Results and words


def test_the_result_is_on_stdout_and_the_words_on_stderr(makers: dict[str, Make], tmp_path: Path) -> None:
    """The run is named after its config; --set changes it; the same command again has nothing left to do but export."""
    write_config(makers["autoencoder"](), tmp_path / "small.yaml")
    words = ["train", "autoencoder", "small.yaml", "--set", "images=8", "--set", "optimizer.lr=1e-4"]
    done = call(T2I, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "runs/small/export\n"
    assert "8/8" in done.stderr.replace(".00", "")  # the bar
    assert "torchvision" not in done.stderr
    assert "Warning" not in done.stderr
    run = tmp_path / "runs" / "small"
    assert {p.name for p in run.iterdir()} == {"checkpoints", "config.yaml", "environment.json", "export", "log.csv"}
    assert [row["lr"] for row in read_log(run)] == [1e-4 / 8, 1e-4 * 5 / 8]
    # as the same thing in Python, on the same machine: bit for bit
    train(makers["autoencoder"](images=8, optimizer__lr=1e-4), tmp_path / "python")
    assert fingerprint(run) == fingerprint(tmp_path / "python")


def test_quiet_says_nothing(makers: dict[str, Make], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write_config(makers["text2image"](), tmp_path / "c.yaml")
    words = ["train", "text2image", str(config), "--run", str(tmp_path / "run"), "--set", "images=4", "--quiet"]
    assert main(words) == 0
    assert capfd.readouterr() == (f"{tmp_path / 'run' / 'export'}\n", "")


@pytest.mark.parametrize("family", TRAINED)
def test_dry_run_tells_and_writes_nothing(
    family: str,
    makers: dict[str, Make],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = write_config(makers[family](), tmp_path / "c.yaml")
    monkeypatch.chdir(tmp_path)
    assert main(["train", family, str(config), "--dry-run", "--set", "keep=1"]) == 0
    out = capfd.readouterr().out
    for part in ("M parameters", "8 of 4 images, 32 images in all", "MB for 1 checkpoints", "10 images in 1 sources"):
        assert part in out
    assert files(tmp_path) == ["c.yaml"]


def test_without_config_the_one_behind_mini_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its data is not here, and the message says which it is."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "autoencoder"]) == 1
    assert "no such data: data/mini/pacs.parquet" in capfd.readouterr().err
    assert shipped_config("mini-autoencoder").is_file()


def test_config_by_name_flags_and_verification(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config that comes with t2i needs no path; --verify-resume leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    small = ["--set", "model.channels=[16]", "--set", "model.attention=[false]", "--set", "batch=4", "--quiet"]
    small += ["--set", "model.groups=4", "--set", "model.head_size=null"]
    assert main(["train", "ddpm", "ddpm-smoke", "--verify-resume", *small]) == 0
    assert capfd.readouterr().out.startswith("equal bit for bit: ")
    assert not [*(tmp_path / "runs").iterdir()]


def test_unknown_config_names_its_neighbour(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ddpm", "ddpm-smok"]) == 2
    said = "error: no config 'ddpm-smok': no such file, and none of that name comes with t2i\n"
    assert capfd.readouterr().err == said + "hint: did you mean ddpm-smoke?\n"


# What goes wrong


def test_wrong_keys_and_values_exit_2_in_a_moment(makers: dict[str, Make], tmp_path: Path) -> None:
    """FAULTS 20, in a real process; the key's path, its nearest neighbour, nothing written, no traceback."""
    write_config(makers["autoencoder"](), tmp_path / "c.yaml")
    cases = {
        "optimizer.lrr=1": "unknown key 'optimizer.lrr', did you mean 'lr'?",
        "batch=many": "batch: Input should be a valid integer",
        "images=0": "images: Input should be greater than 0, got 0",
    }
    for override, message in cases.items():
        done = call(T2I, "train", "autoencoder", "c.yaml", "--set", override, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
    assert files(tmp_path) == ["c.yaml"]


ERRORS: dict[str, tuple[str, list[str], int, list[str]]] = {
    # family, further words, exit code, what is said
    "missing data": (
        "autoencoder",
        ["--set", "data.sources=[{path: nowhere}]"],
        1,
        ["no such data: nowhere", "an image folder, a parquet file", "describe how to make its data"],
    ),
    "missing autoencoder": (
        "text2image",
        ["--set", "autoencoder=runs/nowhere"],
        1,
        ["no autoencoder in runs/nowhere", "t2i train autoencoder"],
    ),
    "nothing to resume": ("autoencoder", ["--resume"], 1, ["no checkpoint in", "leave --resume out"]),
    "resume and fresh": ("autoencoder", ["--resume", "--fresh"], 2, ["--resume and --fresh exclude each other"]),
    "config of another family": ("autoencoder", ["--set", "family=text2image"], 2, ["t2i train text2image"]),
    "a caption column that is not there": (
        "text2image",
        ["--set", "captions={column: words}"],
        1,
        ["no column 'words'", "'style', 'object'"],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_the_cause_and_the_way_out(
    name: str,
    makers: dict[str, Make],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing goes to stdout, no traceback to stderr, and no checkpoint is made."""
    family, words, code, said = ERRORS[name]
    write_config(makers[family](), tmp_path / "c.yaml")
    monkeypatch.chdir(tmp_path)
    assert main(["train", family, "c.yaml", *words, "--quiet"]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("error: ")
    for part in said:
        assert part in err
    assert not [*tmp_path.rglob("checkpoints/*")]


def test_resume_fresh_and_force(
    makers: dict[str, Make], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three ways to say what shall become of a run that is there."""
    write_config(makers["autoencoder"](), tmp_path / "c.yaml")
    monkeypatch.chdir(tmp_path)
    base = ["train", "autoencoder", "c.yaml", "--quiet", "--run", "run", "--set", "images=4"]
    assert main(base) == 0
    assert main([*base, "--set", "images=8", "--resume"]) == 0
    assert [int(p.name) for p in RunFolder(Path("run")).saved()] == [8, 4]
    capfd.readouterr()
    changed = [*base, "--set", "images=8", "--set", "loss.l1=0.5"]
    assert main(changed) == 1
    assert "loss.l1: 1.0 -> 0.5" in capfd.readouterr().err
    assert main([*changed, "--force", "--set", "images=12"]) == 0
    assert [int(p.name) for p in RunFolder(Path("run")).saved()] == [12, 8, 4]
    assert main([*changed, "--fresh"]) == 0
    assert [int(p.name) for p in RunFolder(Path("run")).saved()] == [8]
    (aside,) = tmp_path.glob("run.*")
    assert len(RunFolder(aside).saved()) == 3


# Signals and launchers


@pytest.mark.slow
def test_sigterm_saves_exits_143_and_the_same_command_goes_on(makers: dict[str, Make], tmp_path: Path) -> None:
    """FAULTS 3, in a real process: the end equals an uninterrupted run's, bit for bit."""
    config = makers["text2image"](images=4_000_000, save_every=10**6, sample_every=10**6)
    write_config(config, tmp_path / "c.yaml")
    command = [*T2I, "train", "text2image", "c.yaml", "--run", "run", "--quiet"]
    child = subprocess.Popen(command, cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, text=True)
    wait_for_log(tmp_path / "run", child)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 143, said
    assert "the state is saved" in said
    assert "Traceback" not in said
    (saved,) = RunFolder(tmp_path / "run").saved()
    seen = int(saved.name)
    end = seen + 8
    config = makers["text2image"](images=end, save_every=10**6, sample_every=10**6)
    train(config, tmp_path / "run", start="resume", force=True)  # forced: it is shorter than it was said to be
    train(config, tmp_path / "straight")
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "straight")


def wait_for_log(run: Path, child: subprocess.Popen[str]) -> None:
    """Until the run has logged something."""
    for _ in range(6000):
        if (run / "log.csv").is_file() and (run / "log.csv").read_text().count("\n") > 2:
            return
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("the run does not begin")


@pytest.mark.slow
def test_accelerate_launch_from_the_repository_root(makers: dict[str, Make], tmp_path: Path) -> None:
    """Accelerate runs the folder t2i/; its modules must not hide those of other packages."""
    config = write_config(makers["text2image"](), tmp_path / "c.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "t2i"]
    env = {key: value for key, value in ENV.items() if key not in ("PYTHONPATH", "ACCELERATE_USE_CPU")}
    words = ["train", "text2image", config, "--run", tmp_path / "run", "--set", "images=4"]
    done = call(launch, *words, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run' / 'export'}\n"
    train(makers["text2image"](images=4), tmp_path / "plain")
    assert read_log(tmp_path / "run") == read_log(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in TRAINED if name != "dcgan"])  # batch norm follows the local batch
def test_two_processes_do_what_one_does(family: str, makers: dict[str, Make], tmp_path: Path) -> None:
    """The same global batches, whatever the number of processes: logged losses to 1e-4.

    Begun with --fresh over an old run, which must be moved aside once.
    """
    config = write_config(makers[family](), tmp_path / "c.yaml")
    (tmp_path / "two").mkdir()
    words = ["train", family, config, "--run", tmp_path / "two", "--fresh", "--set", "images=16"]
    done = call(TORCHRUN, *words, cwd=tmp_path, env=ENV | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two' / 'export'}\n"
    assert len([*tmp_path.glob("two.*")]) == 1
    train(makers[family](images=16), tmp_path / "one")
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [row["images"] for row in two] == [4, 8, 12, 16]
    for a, b in zip(one, two, strict=True):
        a.pop("psnr", None), b.pop("psnr", None)  # of each process's mean square: not a mean over images
        assert b == pytest.approx(a, rel=1e-4)
    assert [p.name for p in RunFolder(tmp_path / "two").saved()] == [
        p.name for p in RunFolder(tmp_path / "one").saved()
    ]
    # and one process goes on with what two began
    train(makers[family](images=20), tmp_path / "two")
    train(makers[family](images=20), tmp_path / "one")
    assert read_log(tmp_path / "two")[-1]["loss"] == pytest.approx(read_log(tmp_path / "one")[-1]["loss"], rel=1e-3)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both_in_order(makers: dict[str, Make], tmp_path: Path) -> None:
    """None waits for the other for ever, and the state is saved whole."""
    import psutil

    write_config(makers["autoencoder"](images=4_000_000, save_every=10**6, sample_every=10**6), tmp_path / "c.yaml")
    command = [*TORCHRUN, "train", "autoencoder", "c.yaml", "--run", "run", "--quiet"]
    env = ENV | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    wait_for_log(tmp_path / "run", child)
    (second,) = [p for p in psutil.Process(child.pid).children() if p.environ().get("RANK") == "1"]
    second.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 1  # the launcher's own code
    assert "the state is saved" in said
    folder = RunFolder(tmp_path / "run")
    whole = folder.newest()
    assert whole is not None
    assert whole.state["images_seen"] == int(folder.saved()[0].name)
    assert read_log(tmp_path / "run")[-1]["images"] == whole.state["images_seen"]


OUT_OF_MEMORY = """
import sys
import torch
from t2i.cli.main import main
from t2i.training.engine import Engine

update = Engine.update

def fails(engine, step, *arguments, **terms):
    if engine.rank == 1 and step.index == 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    update(engine, step, *arguments, **terms)

Engine.update = fails
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_out_of_memory_on_one_of_two_processes_stops_both(makers: dict[str, Make], tmp_path: Path) -> None:
    """FAULTS 12: the cause and the way out are said, none hangs, and the run goes on from what was saved."""
    write_config(makers["ddpm"](save_every=4), tmp_path / "c.yaml")
    (tmp_path / "driver.py").write_text(OUT_OF_MEMORY)
    command = [*TORCHRUN[: TORCHRUN.index("-m", 3)], "--", "driver.py"]
    words = ["train", "ddpm", "c.yaml", "--run", "run", "--quiet"]
    done = call(command, *words, cwd=tmp_path, env=ENV | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 1  # the launcher's own code
    assert "out of memory at batch 4, taken in 1 parts" in done.stderr
    assert "--set accumulate=2" in done.stderr
    assert RunFolder(tmp_path / "run").saved()[0].name == f"{12:012d}"
    train(makers["ddpm"](save_every=4), tmp_path / "run", start="resume")
    assert read_log(tmp_path / "run")[-1]["images"] == 32
