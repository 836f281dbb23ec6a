"""The engine with the smallest of networks: rates, log, checkpoints, non-finite numbers, signals."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from training_kit import read_log

from t2i.config import Optimizer, Run
from t2i.errors import CheckpointError, NonFinite, OutOfMemory, T2IError, Terminated
from t2i.training import engine as module
from t2i.training.device import choose_precision
from t2i.training.ema import ema_decay
from t2i.training.engine import Engine, Step
from t2i.training.memory import advice
from t2i.training.optimizer import learning_rate, state_tensors
from t2i.training.runs import trackers
from t2i.training.runs.checkpoint import load_checkpoint, tensors_hash
from t2i.training.runs.run_folder import Launch, RunFolder

ROOT = Path(__file__).parents[2]
TARGET = torch.tensor([[1.0, -2.0, 0.5]])


def config(**changes: Any) -> Run:
    base: dict[str, Any] = {"images": 40, "batch": 4, "precision": "no", "ema": 8, "log_every": 4, "save_every": 12}
    base["optimizer"] = Optimizer(**{"lr": 0.1, **changes.pop("optimizer", {})})
    return Run(**(base | {"keep": 9} | changes))


def data(step: Step) -> Tensor:
    """(B, 3): a function of the global image index."""
    index = torch.arange(step.first, step.first + step.batch, dtype=torch.float32)
    return torch.stack([index.sin(), index.cos(), (3 * index).sin()], 1)


def start(settings: Run, path: Path, **options: Any) -> Engine:
    """An engine over a linear layer, as a loop makes it."""
    folder = RunFolder(path)
    data_hash, rates = options.pop("data_hash", "data"), options.pop("rates", None)
    width = options.pop("width", 3)
    launch = Launch(progress=False, **options)
    folder.begin(settings, launch)
    torch.manual_seed(0)
    net = nn.Linear(width, 1)
    return Engine(settings, folder, net, data_hash, launch, rates)


Hook = Callable[[Step, Tensor], Tensor | None]  # may give another loss


def loop(engine: Engine, before_update: Hook = lambda *_: None) -> Iterator[tuple[Step, Tensor]]:
    """Linear regression; yields each step and its loss after the update."""
    for step in engine.steps():
        x = data(step)[step.share]
        loss = (engine.module(x) - x @ TARGET.T).square().mean()
        other = before_update(step, loss)
        engine.update(step, loss if other is None else other)
        yield step, loss.detach()


def run_all(engine: Engine, before_update: Hook = lambda *_: None) -> list[float]:
    return [loss.item() for _, loss in loop(engine, before_update)]


def weights(engine: Engine) -> str:
    return tensors_hash([*engine.raw.state_dict().items(), *((f"ema.{k}", v) for k, v in engine.ema.values.items())])


# The rate


def test_warm_up_is_linear_in_images() -> None:
    o = Optimizer(lr=2.0, warmup=100)
    assert [learning_rate(o, seen, 10**6) for seen in (0, 49, 99, 100, 5000)] == [0.02, 1.0, 2.0, 2.0, 2.0]


def test_cosine_ends_at_zero() -> None:
    o = Optimizer(lr=2.0, decay="cosine")
    rates = [learning_rate(o, seen, 1000) for seen in (0, 250, 500, 750, 1000, 1200)]
    expected = [2.0, 1 + math.cos(math.pi / 4), 1.0, 1 - math.cos(math.pi / 4), 0.0, 0.0]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_cooldown_falls_to_zero_at_the_end_and_leaves_the_rest() -> None:
    optimizer = Optimizer(lr=0.1, cooldown=20)
    rates = [learning_rate(optimizer, k, 100) for k in range(0, 101, 10)]
    assert rates == pytest.approx([0.1] * 9 + [0.05, 0.0])
    assert [learning_rate(optimizer, k, 200) for k in range(0, 181, 10)] == pytest.approx([0.1] * 19)


def test_no_decay_and_no_warm_up_is_constant() -> None:
    o = Optimizer(lr=0.3)
    assert {learning_rate(o, seen, 1000) for seen in (0, 1, 999, 5000)} == {0.3}


def test_rate_follows_images_not_steps(tmp_path: Path) -> None:
    """The optimiser really uses it, and at the same image it is the same for every batch."""
    used: dict[int, dict[int, float]] = {}
    for batch in (2, 4, 8):
        settings = config(images=32, batch=batch, optimizer={"lr": 0.1, "warmup": 16, "decay": "cosine"})
        engine = start(settings, tmp_path / str(batch))
        used[batch] = {step.first: engine.optimizer.param_groups[0]["lr"] for step, _ in loop(engine)}
    for first in (0, 8, 16, 24):
        expected = 0.1 * min(1, (first + 1) / 16) * 0.5 * (1 + math.cos(math.pi * first / 32))
        assert [used[batch][first] for batch in used] == pytest.approx([expected] * 3, rel=1e-12)


def test_parameters_named_by_their_beginning_learn_at_a_factor_of_the_rate(tmp_path: Path) -> None:
    """And the others at the rate itself; the factor changes how far a step goes, not what is clipped."""
    moved = {}
    for factor in (1.0, 0.25):
        engine = start(config(images=4), tmp_path / str(factor), rates={"bias": factor})
        before = {name: p.detach().clone() for name, p in engine.raw.named_parameters()}
        run_all(engine)
        moved[factor] = {name: p.detach() - before[name] for name, p in engine.raw.named_parameters()}
    assert torch.equal(moved[1.0]["weight"], moved[0.25]["weight"])
    assert (0.25 * moved[1.0]["bias"] - moved[0.25]["bias"]).abs().max() < 1e-7


def test_a_run_with_factors_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = start(config(), tmp_path / "whole", rates={"bias": 0.25})
    run_all(whole)
    run_all(start(config(images=24), tmp_path / "parts", rates={"bias": 0.25}))
    rest = start(config(), tmp_path / "parts", rates={"bias": 0.25})
    assert rest.images_seen == 24
    run_all(rest)
    assert weights(rest) == weights(whole)


# Steps, update, log


def test_steps_cover_the_images(tmp_path: Path) -> None:
    engine = start(config(images=10, batch=4), tmp_path / "run")
    steps = [step for step, _ in loop(engine)]
    assert [(s.index, s.first, s.batch, s.share) for s in steps] == [(k, 4 * k, 4, slice(0, 4)) for k in range(3)]
    assert engine.images_seen == 12


def test_update_is_clipped_adamw_and_average(tmp_path: Path) -> None:
    """Against torch written out by hand."""
    settings = config(optimizer={"lr": 0.05, "clip": 0.5, "weight_decay": 0.1, "warmup": 8})
    engine = start(settings, tmp_path / "run")
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(net.parameters(), 0.05, (0.9, 0.99), weight_decay=0.1)
    average = {name: value.clone() for name, value in net.state_dict().items()}
    for step, loss in loop(engine):
        optimizer.param_groups[0]["lr"] = 0.05 * min(1, (step.first + 1) / 8)
        optimizer.zero_grad()
        x = data(step)
        expected = (net(x) - x @ TARGET.T).square().mean()
        expected.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        beta = ema_decay(4, step.first + 4, 8)
        for name, value in net.state_dict().items():
            average[name] = beta * average[name] + (1 - beta) * value
            assert (engine.raw.state_dict()[name] - value).abs().max() < 1e-6
            assert (engine.ema.values[name] - average[name]).abs().max() < 1e-6
        assert abs(loss - expected.detach()) < 1e-6


def test_log_rows_are_means_over_their_images(tmp_path: Path) -> None:
    engine = start(config(log_every=8), tmp_path / "run")
    losses = run_all(engine)
    rows = read_log(tmp_path / "run")
    assert [row["images"] for row in rows] == [8, 16, 24, 32, 40]
    assert [row["loss"] for row in rows] == pytest.approx(
        [sum(losses[k : k + 2]) / 2 for k in range(0, 10, 2)], rel=1e-5
    )
    assert set(rows[0]) == {"images", "loss", "gradient_norm", "lr"}


def test_loop_must_update_each_step(tmp_path: Path) -> None:
    engine = start(config(), tmp_path / "run")
    with pytest.raises(AssertionError, match="update"):
        for _ in engine.steps():
            pass


def test_saves_when_an_interval_is_crossed_and_at_the_end(tmp_path: Path) -> None:
    run_all(start(config(images=38, batch=4, save_every=10), tmp_path / "run"))
    assert [int(p.name) for p in RunFolder(tmp_path / "run").saved()] == [40, 32, 20, 12]


def test_state_says_what_the_run_was(tmp_path: Path) -> None:
    run_all(start(config(), tmp_path / "run"))
    state = load_checkpoint(RunFolder(tmp_path / "run").saved()[0]).state
    assert state["images_seen"] == 40
    assert state["data_hash"] == "data"
    assert (state["batch"], state["processes"], state["precision"]) == (4, 1, "no")
    assert state["torch"] == torch.__version__


def test_precision_is_what_the_hardware_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision("no") == "no"
    assert choose_precision("bf16") == "bf16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for supported, chosen in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda s=supported: s, raising=False)
        assert choose_precision("auto") == chosen


def test_one_program_trains_in_one_precision_after_the_other(tmp_path: Path) -> None:
    """A notebook does this; bf16 rounds the network's computations, and its weights stay float32."""
    losses = {}
    for k, precision in enumerate(("no", "bf16", "no")):
        engine = start(config(precision=precision), tmp_path / str(k))
        losses[k] = run_all(engine)
        assert engine.precision == precision
        assert {p.dtype for p in engine.raw.parameters()} == {torch.float32}
        assert all(t.dtype == torch.float32 for t in state_tensors(engine.optimizer, engine.raw).values())
    assert losses[0] == losses[2]
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05, abs=0.05)


def test_batch_must_divide_over_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 3))
    with pytest.raises(T2IError, match="batch 4 does not divide over 3 processes") as caught:
        start(config(batch=4), tmp_path / "run")
    assert caught.value.hint == "--set batch=3"


# Resuming


@pytest.mark.parametrize(("at", "resumed"), [(8, 0), (20, 12), (28, 24)])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, at: int, resumed: int) -> None:
    """Left before the first checkpoint or between two; model, average, optimiser and log are equal bit for bit."""
    straight = start(config(), tmp_path / "straight")
    run_all(straight)
    first = start(config(), tmp_path / "stopped")
    for _ in loop(first):  # leaves as a killed process does: nothing is saved beyond the last checkpoint
        if first.images_seen == at:
            break
    second = start(config(), tmp_path / "stopped")
    assert second.images_seen == resumed
    run_all(second)
    assert weights(second) == weights(straight)
    a, b = (load_checkpoint(RunFolder(tmp_path / name).saved()[0]) for name in ("straight", "stopped"))
    assert tensors_hash(a.tensors["optimizer"].items()) == tensors_hash(b.tensors["optimizer"].items())
    assert a.state == b.state
    assert read_log(tmp_path / "stopped") == read_log(tmp_path / "straight")


def test_log_of_a_run_that_never_saved_is_begun_anew(tmp_path: Path) -> None:
    engine = start(config(save_every=1000), tmp_path / "run")
    for _ in loop(engine):
        if engine.images_seen == 20:
            break
    assert len(read_log(tmp_path / "run")) == 4
    run_all(start(config(save_every=1000), tmp_path / "run"))
    assert [row["images"] for row in read_log(tmp_path / "run")] == list(range(4, 41, 4))


def test_other_data_is_refused(tmp_path: Path) -> None:
    """FAULTS 8."""
    run_all(start(config(images=12), tmp_path / "run"))
    with pytest.raises(CheckpointError, match="trained on other data: data, now changed") as caught:
        start(config(), tmp_path / "run", data_hash="changed")
    assert "--force" in str(caught.value.hint)
    assert start(config(), tmp_path / "run", data_hash="changed", force=True).images_seen == 12


def test_optimizer_state_that_lacks_a_parameter_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 7: a whole checkpoint, but of a writer that forgot a moment."""
    engine = start(config(images=12), tmp_path / "run")
    run_all(engine)
    full = state_tensors(engine.optimizer, engine.raw)
    del full["weight.exp_avg"]
    monkeypatch.setattr(module, "state_tensors", lambda *_: full)
    engine.save()
    with pytest.raises(CheckpointError, match=r"optimizer part has no weight\.exp_avg"):
        start(config(), tmp_path / "run")


def test_average_that_lacks_a_parameter_is_refused_by_name(tmp_path: Path) -> None:
    """FAULTS 7: never silently fresh."""
    engine = start(config(images=12), tmp_path / "run")
    run_all(engine)
    del engine.ema.values["bias"]
    engine.save()
    with pytest.raises(CheckpointError, match="ema part bias is not there, in this model"):
        start(config(), tmp_path / "run")


def test_another_network_is_refused_by_name_although_forced(tmp_path: Path) -> None:
    """FAULTS 8: --force accepts another config, and weights that do not fit cannot be made to."""
    run_all(start(config(images=12), tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"model part weight is \(1, 3\), in this model \(1, 5\)") as caught:
        start(config(batch=2), tmp_path / "run", force=True, width=5)
    assert "--fresh" in str(caught.value.hint)
    written = tmp_path / "run" / "config.yaml"
    assert "batch: 4" in written.read_text()  # the run is still the one it was
    assert start(config(), tmp_path / "run").images_seen == 12
    start(config(batch=2), tmp_path / "run", force=True)
    assert "batch: 2" in written.read_text()


# Non-finite numbers


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_non_finite_stops_before_the_update(tmp_path: Path, kind: str) -> None:
    """FAULTS 11: step and images named; weights, moments and the last checkpoint stay as they were."""
    engine = start(config(), tmp_path / "run")
    before = ""

    def spoil(step: Step, loss: Tensor) -> Tensor:
        nonlocal before
        if step.index < 4:
            return loss
        before = weights(engine) + str(state_tensors(engine.optimizer, engine.raw))
        if kind == "loss":
            return loss * math.nan
        loss = loss + (next(engine.raw.parameters()).sum() * 0).sqrt()  # finite here, infinite slope
        assert loss.isfinite()
        return loss

    with pytest.raises(NonFinite) as caught:
        run_all(engine, spoil)
    assert "step 4" in caught.value.message
    assert "images 16..19" in caught.value.message
    assert "process [0]" in caught.value.message
    assert "optimizer.lr" in str(caught.value.hint)
    assert weights(engine) + str(state_tensors(engine.optimizer, engine.raw)) == before
    assert [int(p.name) for p in RunFolder(tmp_path / "run").saved()] == [12]
    assert start(config(), tmp_path / "run").images_seen == 12


# Signals


def test_sigterm_saves_and_leaves(tmp_path: Path) -> None:
    """FAULTS 3: in the first step too; between checkpoints; the resumed run is the uninterrupted one."""
    straight = start(config(), tmp_path / "straight")
    run_all(straight)

    def terminate_at(index: int) -> Hook:
        return lambda step, _: os.kill(os.getpid(), signal.SIGTERM) if step.index == index else None

    before = signal.getsignal(signal.SIGTERM)
    for index in (0, 4):
        with pytest.raises(Terminated, match=f"terminated at {4 * index + 4} images") as caught:
            run_all(start(config(), tmp_path / "stopped"), terminate_at(index))
        assert caught.value.exit_code == 143
        assert RunFolder(tmp_path / "stopped").saved()[0].name == f"{4 * index + 4:012d}"
    del caught  # it holds the loop, whose end restores the handler
    assert signal.getsignal(signal.SIGTERM) == before
    last = start(config(), tmp_path / "stopped")
    run_all(last)
    assert weights(last) == weights(straight)
    assert read_log(tmp_path / "stopped") == read_log(tmp_path / "straight")


def test_first_interrupt_saves(tmp_path: Path) -> None:
    engine = start(config(), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run_all(engine, lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step.index == 4 else None)
    assert RunFolder(tmp_path / "run").saved()[0].name == f"{20:012d}"


def test_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    """FAULTS 3: and the last complete checkpoint is whole."""

    def twice(step: Step, _: Tensor) -> None:
        if step.index == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    engine = start(config(), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run_all(engine, twice)
    assert engine.images_seen == 16
    assert start(config(), tmp_path / "run").images_seen == 12


def test_trains_outside_the_main_thread(tmp_path: Path) -> None:
    """There signals cannot be caught; that must not keep a server or a notebook from training."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            run_all(start(config(images=8), tmp_path / "run"))
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    assert RunFolder(tmp_path / "run").saved()


# Accumulation, pausing, fp16


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_is_the_same_run_to_rounding(tmp_path: Path, parts: int) -> None:
    """In parts the global batch is the same: losses, weights, steps, intervals."""
    whole = start(config(batch=8), tmp_path / "whole")
    run_all(whole)
    engine = start(config(batch=8, accumulate=parts), tmp_path / "parts")
    crossed = []
    for step, _ in loop(engine):
        assert step.share == slice(*(8 // parts * (len(crossed) % parts + k) for k in (0, 1)))
        crossed.append(engine.crossed(16))
    assert crossed == [False] * (2 * parts - 1) + [True] + [False] * (2 * parts - 1) + [True] + [False] * parts
    for a, b in zip(read_log(tmp_path / "whole"), read_log(tmp_path / "parts"), strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    for name, value in whole.raw.state_dict().items():
        assert (engine.raw.state_dict()[name] - value).abs().max() < 1e-6


def test_accumulated_run_resumes_bit_for_bit_and_may_change_its_parts(tmp_path: Path) -> None:
    settings = config(batch=8, accumulate=2)
    whole = start(settings, tmp_path / "whole")
    run_all(whole)
    run_all(start(settings, tmp_path / "run", until=16))
    rest = start(settings, tmp_path / "run")
    assert rest.images_seen == 16
    run_all(rest)
    assert weights(rest) == weights(whole)
    run_all(start(settings, tmp_path / "other", until=16))
    assert start(config(batch=8, accumulate=4), tmp_path / "other").images_seen == 16


def test_parts_must_divide_the_batch(tmp_path: Path) -> None:
    with pytest.raises(T2IError, match="batch 8 does not divide over 1 processes, 3 parts each") as caught:
        start(config(batch=8, accumulate=3), tmp_path / "run")
    assert caught.value.hint == "--set batch=6"


def test_until_pauses_with_the_state_saved_and_the_rate_of_the_whole_run(tmp_path: Path) -> None:
    """Unlike a shorter `images`, which would end a cosine early."""
    settings = config(save_every=1000, optimizer={"lr": 0.1, "decay": "cosine"})
    whole = start(settings, tmp_path / "whole")
    run_all(whole)
    run_all(start(settings, tmp_path / "run", until=12))
    assert [int(p.name) for p in RunFolder(tmp_path / "run").saved()] == [12]
    rest = start(settings, tmp_path / "run")
    run_all(rest)
    assert weights(rest) == weights(whole)


def test_non_finite_part_of_an_accumulated_step_is_named(tmp_path: Path) -> None:
    engine = start(config(batch=8, accumulate=4), tmp_path / "run")
    with pytest.raises(NonFinite, match=r"at step 2, process \[0\], images 20\.\.21\n"):
        run_all(engine, lambda step, loss: loss * math.nan if (step.index, step.share.start) == (2, 4) else None)


def test_fp16_without_a_gpu_is_refused() -> None:
    with pytest.raises(T2IError, match="fp16 needs a GPU") as caught:
        choose_precision("fp16")
    assert "precision=auto" in str(caught.value.hint)


class FakeScaler:
    """Stands for fp16's scaler, which a CPU has not: it would skip the updates whose gradient overflows."""

    def state_dict(self) -> dict[str, float]:
        return {"scale": 512.0}


def overflow(engine: Engine, steps: range) -> Hook:
    """Gradients of these steps are infinite, their losses are not."""

    def before(step: Step, loss: Tensor) -> Tensor | None:
        if step.index not in steps:
            return None
        # sqrt at 0: the value is finite, its derivative is not
        return loss + (engine.raw.weight - engine.raw.weight.detach()).square().sum().sqrt()

    return before


@pytest.mark.parametrize(("skips", "stops"), [(9, False), (10, True)])
def test_a_scaler_may_skip_nine_updates_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skips: int, stops: bool
) -> None:
    engine = start(config(images=80), tmp_path / "run")
    engine.accelerator.scaler = FakeScaler()
    monkeypatch.setattr(engine.accelerator, "backward", lambda loss: loss.backward())
    update = engine.optimizer.step
    monkeypatch.setattr(engine.optimizer, "step", lambda: None if engine._skips else update())
    if stops:
        with pytest.raises(NonFinite, match="for 10 updates in a row at step 11"):
            run_all(engine, overflow(engine, range(2, 2 + skips)))
    else:
        run_all(engine, overflow(engine, range(2, 2 + skips)))
        assert engine._skips == 0
        assert all(p.isfinite().all() for p in engine.raw.parameters())
        state = load_checkpoint(RunFolder(tmp_path / "run").saved()[0]).state
        assert state["scaler"] == {"scale": 512.0}


def test_without_a_scaler_one_infinite_gradient_stops(tmp_path: Path) -> None:
    engine = start(config(), tmp_path / "run")
    with pytest.raises(NonFinite, match="at step 2"):
        run_all(engine, overflow(engine, range(2, 3)))


# Compiled, deterministic, tracked, out of memory


def test_compiled_network_is_the_same_run_to_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are saved under the network's own names, not the wrapper's. The backend does not matter here."""
    monkeypatch.setattr(module.torch, "compile", partial(torch.compile, backend="eager"))
    compiled, plain = (start(config(compile=c), tmp_path / str(c)) for c in (True, False))
    run_all(compiled)
    run_all(plain)
    saved = load_checkpoint(RunFolder(tmp_path / "True").saved()[0])
    assert saved.tensors["model"].keys() == plain.raw.state_dict().keys()
    assert saved.state["compiled"]
    for name, value in plain.raw.state_dict().items():
        assert (compiled.raw.state_dict()[name] - value).abs().max() < 1e-6


def test_deterministic_is_said_to_torch_and_recorded(tmp_path: Path) -> None:
    try:
        run_all(start(config(deterministic=True, images=4), tmp_path / "run"))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert load_checkpoint(RunFolder(tmp_path / "run").saved()[0]).state["deterministic"]


def test_tensorboard_has_the_rows_of_the_log(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_all(start(config(trackers=("tensorboard",)), tmp_path / "run"))
    folders = {path.parent for path in (tmp_path / "run").rglob("events.out*")}
    events = [reader.EventAccumulator(str(folder)).Reload() for folder in folders]
    (scalars,) = [e.Scalars("loss") for e in events if "loss" in e.Tags()["scalars"]]
    found = [(e.step, e.value) for e in scalars]
    expected = [(row["images"], row["loss"]) for row in read_log(tmp_path / "run")]
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [v for _, v in found] == pytest.approx([v for _, v in expected], rel=1e-5)


def test_wandb_has_the_rows_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: its files are in the run folder, not in the working directory, and the config is recorded."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    told, log = [], wandb.Run.log

    def listen(run: Any, values: dict[str, float], step: int | None = None, **options: Any) -> None:
        told.append((step, values["loss"], values["lr"]))
        log(run, values, step=step, **options)

    monkeypatch.setattr(wandb.Run, "log", listen)
    engine = start(config(trackers=("wandb",), images=12), tmp_path / "run")
    run_all(engine)
    rows = [(row["images"], row["loss"], row["lr"]) for row in read_log(tmp_path / "run")]
    assert [row[0] for row in told] == [4, 8, 12]
    assert [x for row in told for x in row] == pytest.approx([x for row in rows for x in row], rel=1e-5)
    tracked = engine.accelerator.get_tracker("wandb", unwrap=True)
    assert tracked.config["optimizer.lr"] == 0.1
    assert len([*(tmp_path / "run").rglob("*.wandb")]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_missing_tracker_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(T2IError, match="tracker 'wandb' is not installed") as caught:
        start(config(trackers=("wandb",)), tmp_path / "run")
    assert "pip install wandb" in str(caught.value.hint)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_what_keeps_the_run(error: RuntimeError) -> None:
    """FAULTS 12."""
    with (
        pytest.raises(OutOfMemory, match="out of memory at batch 8, taken in 2 parts") as caught,
        advice(config(batch=8, accumulate=2)),
    ):
        raise error
    assert "accumulate=4" in str(caught.value.hint)
    assert caught.value.exit_code == 5


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), advice(config()):
        raise RuntimeError("shapes differ")


# Two processes


DRIVER = """
import atexit, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from test_engine import TARGET, config, data, start
from t2i.errors import NonFinite

def main(run, fault):
    engine = start(config(batch=4, log_every=8), run)
    try:
        for step in engine.steps():
            x = data(step)[step.share]
            loss = (engine.module(x) - x @ TARGET.T).square().mean()
            if step.index == fault and engine.rank == 1:
                loss = loss * float("nan")
            engine.update(step, loss)
    except NonFinite as e:
        (run / f"rank{{engine.rank}}.txt").write_text(e.message)

atexit.register(lambda: print("parted" if not torch.distributed.is_initialized() else "left"))  # runs last
main(Path(sys.argv[1]), int(sys.argv[2]))
"""


def launch_two(tmp_path: Path, *arguments: str) -> str:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(driver)]
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "kits")])
    env = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    done = subprocess.run([*command, *arguments], env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_log_what_one_does_and_stop_together(tmp_path: Path) -> None:
    """The log is of the global batch; a NaN on one of two processes stops both, with its images named (FAULTS 11)."""
    printed = launch_two(tmp_path, str(tmp_path / "two"), "6")
    # two processes write to one pipe: a word and its line end need not come together
    assert sorted(printed.replace("\n", "")) == sorted("parted" * 2), (
        "a group that outlives the interpreter can abort it"
    )
    one = start(config(batch=4, log_every=8), tmp_path / "one")
    run_all(one)
    ours, theirs = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [row["images"] for row in theirs] == [8, 16, 24]
    for a, b in zip(ours, theirs, strict=False):
        assert b == pytest.approx(a, rel=1e-4)
    said = [(tmp_path / "two" / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert "step 6, process [1], images 26..27" in said[0]
    assert [int(p.name) for p in RunFolder(tmp_path / "two").saved()] == [24, 12]


def test_log_file_is_plain_csv(tmp_path: Path) -> None:
    run_all(start(config(images=8), tmp_path / "run"))
    with (tmp_path / "run" / "log.csv").open(newline="") as f:
        header, *rows = csv.reader(f)
    assert header == ["images", "loss", "gradient_norm", "lr", "images_per_second"]
    assert [row[0] for row in rows] == ["4", "8"]
