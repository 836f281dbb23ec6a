"""The training engine, shared by the visible loops of all families.

    engine = Engine(config, folder, module, data_hash, launch)
    for step in engine.steps():                      # begins where the newest checkpoint ended
        loss = ... engine.module(...) ...            # over this process's share of the global batch: step.share
        engine.update(step, loss)

Units are images seen; the step count is derived. Every draw of a loop comes from (seed, purpose, index), so that a
resumed run, or one on another number of processes, makes the same draws.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from t2i.config import Run
from t2i.distributed import processes
from t2i.errors import CheckpointError, NonFinite, T2IError, Terminated
from t2i.randomness import derive_seed
from t2i.training.device import attention, choose_precision, memory_format
from t2i.training.ema import Ema
from t2i.training.memory import keep_freed_memory
from t2i.training.optimizer import adamw, learning_rate, load_state_tensors, set_rate, state_tensors
from t2i.training.runs.change_log import record_change
from t2i.training.runs.checkpoint import Checkpoint, check_fit
from t2i.training.runs.environment import environment, idle_cores
from t2i.training.runs.meter import Meter
from t2i.training.runs.run_folder import Launch, RunFolder, say
from t2i.training.runs.signals import Signals
from t2i.training.runs.trackers import close_trackers, make_accelerator
from t2i.training.sharding import average_gradients, gather_full, shard_like

SKIPS = 10  # consecutive updates that an fp16 scaler may skip while it adjusts its scale


@dataclass(frozen=True)
class Step:
    """A part of one optimizer step over the global images first .. first + batch - 1.

    index: of the optimizer step.  share: this process's slice of the batch, now.
    last: the update follows; False for all but the last part of an accumulated step.
    """

    index: int
    first: int
    batch: int
    share: slice
    last: bool = True


def check_division(config: Run, processes: int) -> None:
    """Check that the global batch divides over the processes and the config's parts.  Raises T2IError."""
    parts = processes * config.accumulate
    if config.batch % parts:
        raise T2IError(
            f"batch {config.batch} does not divide over {processes} processes, {config.accumulate} parts each",
            f"--set batch={config.batch - config.batch % parts or parts}",
        )


class Engine:
    """The state of one run: steps, precision, optimizer, EMA weights, log, checkpoints and signals.

    module: everything that is trained, saved under its own parameter names. Loops call `engine.module(...)`, which runs
    in the config's precision and returns float32.
    data_hash: identity of the training data; resuming on other data is refused unless forced.
    rates: {beginning of parameter names: factor of their learning rate}; 1 for all others.
    wrapped: the loop calls `engine.module`, which DistributedDataParallel may wrap. A loop that calls parts of the
    module sets it to False: it computes within `accelerator.autocast()`, and gradients are averaged in `descend`.
    """

    def __init__(
        self,
        config: Run,
        folder: RunFolder,
        module: nn.Module,
        data_hash: str,
        launch: Launch,
        rates: dict[str, float] | None = None,
        wrapped: bool = True,
    ) -> None:
        self.config, self.folder, self.launch = config, folder, launch
        self.precision = choose_precision(config.precision)
        processes()
        if AcceleratorState._shared_state.get("_mixed_precision", self.precision) != self.precision:
            # Accelerate's state is a singleton; one program may train twice, each time in another precision
            AcceleratorState._reset_state()
        self.accelerator = make_accelerator(config, folder.path, self.precision)
        self.device, self.rank = self.accelerator.device, self.accelerator.process_index
        if self.device.type == "cpu":
            keep_freed_memory()
        check_division(config, self.accelerator.num_processes)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch requires it on a GPU
            torch.use_deterministic_algorithms(True)
        self.raw = module.to(self.device, memory_format=memory_format(self.device, module))
        self.module = torch.compile(self.raw) if config.compile else self.raw
        self.optimizer: Any = adamw(config.optimizer, self.raw, rates or {})
        self._wrapped = wrapped
        if wrapped:
            self.module, self.optimizer = self.accelerator.prepare(self.module, self.optimizer)
        else:
            self.optimizer = self.accelerator.prepare(self.optimizer)
        self.ema = Ema(self.raw, config.ema)  # after `prepare`, which may shard the weights
        self.images_seen = 0
        self.data_hash = data_hash
        self._before = 0  # images seen before the newest update
        self._meter = Meter()
        self._losses: list[tuple[slice, Tensor]] = []  # of the parts of the step being accumulated
        self._skips = 0
        self._signals = Signals()
        self._resume(launch.force)
        if self.accelerator.is_main_process:
            if note := idle_cores(self.device, self.accelerator.num_processes, torch.get_num_threads()):
                say(note)
            record_change(folder.environment, self.images_seen, environment(self.accelerator, self.precision))

    def steps(self) -> Iterator[Step]:
        """Yield the remaining steps; between two of them log, save, and stop if a signal was received."""
        config = self.config
        with self._signals, attention(self.device), self._progress() as bar:
            while self.images_seen < min(config.images, self.launch.until or config.images):
                first = self.images_seen
                for share, last in self._shares():
                    with nullcontext() if last else self.accelerator.no_sync(self.module):
                        yield Step(first // config.batch, first, config.batch, share, last)
                if self.images_seen != first + config.batch:
                    raise AssertionError("the loop must call update() once per step")
                bar.update(config.batch)
                self._log(bar)
                stop = self._agreed_stop()
                if self.crossed(config.save_every) or stop or self.images_seen >= config.images:
                    self.save()
                self._stop_if_requested(stop)
        if self.images_seen < config.images:
            self.save()
        close_trackers(self.accelerator)

    def _shares(self) -> list[tuple[slice, bool]]:
        """Return this process's parts of a step, and which of them is the last."""
        parts = self.config.accumulate
        size = self.config.batch // (parts * self.accelerator.num_processes)
        begin = self.rank * parts * size
        return [(slice(begin + k * size, begin + (k + 1) * size), k == parts - 1) for k in range(parts)]

    def update(self, step: Step, loss: Tensor, **terms: Tensor) -> None:
        """Backward; after the last part clip, take one optimizer step, and update the EMA weights.

        loss: scalar float32, the mean over step.share.  terms: further numbers for the log.
        Raises NonFinite on every process before any weight changes, when a loss or gradient of one is not finite.
        """
        self.backward(step, loss, **terms)
        if step.last:
            self.descend(step)
            self.advance(step)

    def backward(self, step: Step, loss: Tensor, name: str = "loss", /, **terms: Tensor) -> None:
        """Compute gradients and record the loss: the first part of an update, for loops that have several losses."""
        # the mean over all parts: accumulation must not change the gradient
        self.accelerator.backward(loss / self.config.accumulate)
        self._losses.append((step.share, loss.detach()))
        self._meter.add({name: loss, **terms})

    def tally(self, tallies: dict[str, Tensor]) -> None:
        """Record means over a subset of samples for the log.

        tallies: {name: (sum, number of samples)} over a part of a step, (2,) float32; the same names on all processes.
        """
        for name, value in tallies.items():
            self._meter.tallies[name] = self._meter.tallies.get(name, 0) + value

    def descend(self, step: Step, name: str = "gradient_norm") -> None:
        """Clip, and take one optimizer step for the weights that have gradients: the second part.  Raises NonFinite."""
        config = self.config
        if not self._wrapped:
            average_gradients(self.accelerator, self.raw)
        norm = self.accelerator.clip_grad_norm_(self.raw.parameters(), config.optimizer.clip or math.inf)
        self._check_finite(step, norm)
        set_rate(self.optimizer, learning_rate(config.optimizer, step.first, config.images))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._meter.add({name: norm})

    def advance(self, step: Step) -> None:
        """Count the step's images as seen, and update the EMA weights: the last part."""
        self._before, self.images_seen = self.images_seen, step.first + step.batch
        self.ema.update(self.raw, step.batch, self.images_seen)
        self._meter.images += step.batch

    def seed_dropout(self, step: Step) -> None:
        """Seed torch's global generator, from which dropout draws, for this process's part of a step."""
        part = step.share.start // (step.share.stop - step.share.start)
        torch.manual_seed(derive_seed(self.config.seed, f"dropout {part}", step.index))

    def crossed(self, every: int) -> bool:
        """Return whether the newest update passed a multiple of `every` images, before the next step begins."""
        return not self._losses and self.images_seen // every > self._before // every

    def average(self) -> dict[str, Tensor]:
        """Return the EMA weights, gathered.  Every process must call this."""
        return gather_full(self.ema.values)

    def save(self) -> None:
        """Gather a checkpoint from all processes, and write it on the main one."""
        optimizer = gather_full(state_tensors(self.optimizer, self.raw))
        tensors = {"model": gather_full(self.raw.state_dict()), "ema": self.average(), "optimizer": optimizer}
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "images_seen": self.images_seen,
            "data_hash": self.data_hash,
            "precision": self.precision,
            "batch": self.config.batch,
            "accumulate": self.config.accumulate,
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "compiled": self.config.compile,
            "deterministic": self.config.deterministic,
            "scaler": scaler.state_dict() if scaler else None,
            "skips": self._skips,
        }
        self.folder.save(Checkpoint(tensors, state), self.config.keep)

    def _resume(self, force: bool) -> None:
        main = self.accelerator.is_main_process
        checkpoint = self.folder.newest(say if main else lambda _: None)
        if checkpoint is None:
            if main:  # a run that was stopped before its first checkpoint may have logged
                self.folder.rewind_log(0)
            return
        state = checkpoint.state
        if state["data_hash"] != self.data_hash and not force:
            raise CheckpointError(
                f"{self.folder.path} was trained on other data: {state['data_hash'][:12]}, now {self.data_hash[:12]}",
                "--force continues with the new data, --fresh starts over",
            )
        now = self.raw.state_dict()
        for part, tensors in (("model", now), ("ema", self.ema.values)):
            check_fit(part, checkpoint.tensors[part], tensors)
        self.raw.load_state_dict({name: shard_like(t, now[name]) for name, t in checkpoint.tensors["model"].items()})
        self.ema.load(checkpoint.tensors["ema"])
        load_state_tensors(self.optimizer, self.raw, checkpoint.tensors["optimizer"])
        if self.accelerator.scaler and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.images_seen = self._before = int(state["images_seen"])
        self._skips = int(state.get("skips", 0))
        if main:
            self.folder.keep_config(self.config)
            self.folder.rewind_log(self.images_seen)
            say(f"resuming {self.folder.path} at {self.images_seen:,} images")

    def _check_finite(self, step: Step, norm: Tensor) -> None:
        """Stop all processes when a loss or the gradient is not finite; an fp16 scaler may skip a few updates."""
        losses, self._losses = self._losses, []
        bad = torch.stack([~loss.isfinite() for _, loss in losses] + [~norm.isfinite().to(losses[0][1].device)])
        of_each = self.accelerator.gather(bad.float()[None])  # (processes, parts + 1)
        scaling = self.accelerator.scaler is not None and not of_each[:, :-1].any()
        self._skips = self._skips + 1 if scaling and of_each.any() else 0
        if not of_each.any() or (scaling and self._skips < SKIPS):
            return
        # Gradients are means over all processes: one bad loss makes all of them bad, and is the one to report.
        where = of_each[:, :-1] if of_each[:, :-1].any() else of_each[:, -1:].expand(-1, len(losses))
        size = step.share.stop - step.share.start
        begins = [(rank * len(losses) + part) * size for rank, part in where.nonzero().tolist()]
        samples = ", ".join(f"{step.first + b}..{step.first + b + size - 1}" for b in begins)
        ranks = sorted({rank for rank, _ in where.nonzero().tolist()})
        repeatedly = f" for {SKIPS} updates in a row" if scaling else ""
        raise NonFinite(
            f"loss or gradient is not finite{repeatedly} at step {step.index}, process {ranks}, images {samples}",
            "the last checkpoint is intact; try a lower optimizer.lr, or --set precision=no",
        )

    def _progress(self) -> Any:
        return tqdm(
            total=self.config.images,
            initial=self.images_seen,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            desc=self.folder.path.name,
            disable=not (self.launch.progress and self.accelerator.is_main_process),
        )

    def _log(self, bar: Any) -> None:
        if not (self.crossed(self.config.log_every) or self.images_seen >= self.config.images):
            return
        means, meter = self._meter.means(self.accelerator), self._meter
        self._meter = Meter()
        if self.accelerator.is_main_process:
            lr = learning_rate(self.config.optimizer, self._before, self.config.images)
            rate = meter.images / (self._meter.since - meter.since)
            row = {**means, "lr": lr, "images_per_second": rate}
            cells = {name: "" if math.isnan(value) else f"{value:.6g}" for name, value in row.items()}
            self.folder.write_log({"images": self.images_seen, **cells})
            bar.set_postfix({name: f"{value:.4f}" for name, value in means.items() if name.endswith("loss")})
            self.accelerator.log({name: row[name] for name, cell in cells.items() if cell}, self.images_seen)

    def _agreed_stop(self) -> int:
        """Return the signal that ends the run, agreed on by all processes: else the others would wait."""
        if self.accelerator.num_processes == 1:
            return self._signals.received
        return int(self.accelerator.gather(torch.tensor([self._signals.received], device=self.device)).max())

    def _stop_if_requested(self, stop: int) -> None:
        if not stop:
            return
        self.accelerator.wait_for_everyone()  # a launcher kills all processes when the first one exits
        if stop == signal.SIGINT:
            raise KeyboardInterrupt
        if stop == signal.SIGTERM:
            raise Terminated(
                f"terminated at {self.images_seen:,} images; the state is saved", "run the same command to resume"
            )
