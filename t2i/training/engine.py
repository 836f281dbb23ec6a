"""The training engine: what every visible loop calls and none repeats.

    engine = Engine(config, folder, module, data_hash)
    for step in engine.steps():                      # begins where the newest checkpoint ended
        loss = ... engine.module(...) ...            # over this process's share of the global batch: step.share
        engine.update(step, loss)

Units are images seen; the step count is derived. Every draw a loop makes comes from (seed, purpose, index), so that a
resumed run, or one on another number of processes, makes the same draws.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from t2i.config import Optimizer, Run
from t2i.errors import CheckpointError, NonFinite, T2IError, Terminated
from t2i.processes import processes
from t2i.training.checkpoint import Checkpoint
from t2i.training.ema import Ema
from t2i.training.run import RunFolder, say


@dataclass(frozen=True)
class Step:
    """One optimiser step: global images first .. first + batch - 1, of which this process takes `share`."""

    index: int
    first: int
    batch: int
    share: slice


def learning_rate(optimizer: Optimizer, images_seen: int, images: int) -> float:
    """The rate for the step that begins at `images_seen`: linear warm-up, then constant or a cosine to zero."""
    rate = optimizer.lr * min(1.0, (images_seen + 1) / max(1, optimizer.warmup))
    if optimizer.decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, images_seen / images)))
    return rate


def choose_precision(wanted: str) -> str:
    """Accelerate's mixed_precision for a config's `precision`: "auto" is bf16 where the hardware computes in it."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available() and not os.environ.get("ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"


def _parameter_groups(module: nn.Module, rates: dict[str, float]) -> list[dict[str, Any]]:
    """AdamW's groups, one per factor of the learning rate, in the order of the module's parameters."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        factor = next((rate for prefix, rate in rates.items() if name.startswith(prefix)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """The attention kernel to train with, as a context.

    On a CPU torch's fused kernel has a slow backward: 174 of the 725 ms that a step of configs/mini-text2image.yaml
    took (2 cores, 2026-11-23); as plain matrix products the whole step took 510 ms.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@dataclass
class _Meter:
    """Means of the logged numbers since the last row of the log."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    since: float = field(default_factory=time.perf_counter)

    def add(self, numbers: dict[str, Tensor]) -> None:
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
        self.steps += 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Over the steps and all processes; every process must ask."""
        totals = torch.stack(list(self.sums.values())).to(accelerator.device) / self.steps
        return dict(zip(self.sums, accelerator.reduce(totals, "mean").tolist(), strict=True))


class Engine:
    """Steps, precision, optimiser, averaged weights, log, checkpoints and signals of one run.

    module: everything that is trained, saved under its own parameter names. Loops call `engine.module(...)`, which runs
    in the config's precision and returns float32.
    rates: {beginning of parameter names: factor of their learning rate}; 1 for all others.
    data_hash: identity of the training data; resuming on other data is refused unless `force`.
    """

    def __init__(
        self,
        config: Run,
        folder: RunFolder,
        module: nn.Module,
        data_hash: str,
        *,
        rates: dict[str, float] | None = None,
        force: bool = False,
        progress: bool = True,
    ) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.precision = choose_precision(config.precision)
        processes()
        if AcceleratorState._shared_state.get("_mixed_precision", self.precision) != self.precision:
            AcceleratorState._reset_state()  # one program may train twice, each time in another precision
        self.accelerator = Accelerator(mixed_precision=self.precision)
        self.device, self.rank = self.accelerator.device, self.accelerator.process_index
        n = self.accelerator.num_processes
        if config.batch % n:
            raise T2IError(
                f"batch {config.batch} does not divide over {n} processes",
                f"--set batch={config.batch - config.batch % n or n}",
            )
        self.raw = module.to(self.device)
        self.ema = Ema(self.raw, config.ema)
        o = config.optimizer
        groups = _parameter_groups(self.raw, rates or {})
        optimizer = torch.optim.AdamW(groups, o.lr, o.betas, weight_decay=o.weight_decay, fused=True)
        self.module, self.optimizer = self.accelerator.prepare(self.raw, optimizer)
        self.images_seen = 0
        self.data_hash = data_hash
        self._meter = _Meter()
        self._stop = 0  # the signal that asked this process to stop
        self._resume(force)

    def steps(self) -> Iterator[Step]:
        """The steps that are left; between two of them the run is logged, saved, and stopped if a signal asks."""
        config = self.config
        share = config.batch // self.accelerator.num_processes
        mine = slice(self.rank * share, (self.rank + 1) * share)
        with _Signals(self), _attention(self.device), self._progress() as bar:
            while self.images_seen < config.images:
                first = self.images_seen
                yield Step(first // config.batch, first, config.batch, mine)
                if self.images_seen != first + config.batch:
                    raise AssertionError("the loop must call update() once per step")
                bar.update(config.batch)
                self._log(bar)
                stop = self._agreed_stop()
                if self.crossed(config.save_every) or stop or self.images_seen >= config.images:
                    self.save()
                self._leave_if_asked(stop)

    def update(self, step: Step, loss: Tensor, **terms: Tensor) -> None:
        """Backward, clip, one optimiser step, averaged weights.

        loss: scalar float32, the mean over this process's share.  terms: further numbers for the log.
        Raises NonFinite on every process before any weight changes, when a loss or gradient of one is not finite.
        """
        o = self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(o, step.first, self.config.images)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), o.clip)
        self._check_finite(step, loss, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.images_seen = step.first + step.batch
        self.ema.update(self.raw, step.batch, self.images_seen)
        self._meter.add({"loss": loss, **terms, "gradient_norm": norm})

    def crossed(self, every: int) -> bool:
        """Whether the step just taken passed a multiple of `every` images."""
        return self.images_seen // every > (self.images_seen - self.config.batch) // every

    def save(self) -> None:
        """Write a checkpoint; the main process alone."""
        if not self.accelerator.is_main_process:
            return
        tensors = {"model": self.raw.state_dict(), "ema": self.ema.values, "optimizer": self._optimizer_tensors()}
        state = {
            "images_seen": self.images_seen,
            "data_hash": self.data_hash,
            "precision": self.precision,
            "batch": self.config.batch,
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        self.folder.save(Checkpoint(tensors, state), self.config.keep)

    def _resume(self, force: bool) -> None:
        main = self.accelerator.is_main_process
        checkpoint = self.folder.newest(say if main else lambda _: None)
        if checkpoint is None:
            if main:  # a run that ended before its first checkpoint may have logged
                self.folder.rewind_log(0)
            return
        state = checkpoint.state
        if state["data_hash"] != self.data_hash and not force:
            raise CheckpointError(
                f"{self.folder.path} was trained on other data: {state['data_hash'][:12]}, now {self.data_hash[:12]}",
                "--force goes on with the new data, --fresh starts over",
            )
        self.raw.load_state_dict(checkpoint.tensors["model"])
        self.ema.load(checkpoint.tensors["ema"])
        self._load_optimizer(checkpoint.tensors["optimizer"])
        self.images_seen = int(state["images_seen"])
        if main:
            self.folder.rewind_log(self.images_seen)
            say(f"resuming {self.folder.path} at {self.images_seen:,} images")

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """AdamW's state as {parameter.key: tensor}: exp_avg, exp_avg_sq and step of each parameter."""
        state = self.optimizer.state
        return {f"{name}.{key}": v for name, p in self.raw.named_parameters() for key, v in state[p].items()}

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        for name, p in self.raw.named_parameters():
            for key in ("exp_avg", "exp_avg_sq", "step"):
                if f"{name}.{key}" not in tensors:
                    raise CheckpointError(f"the checkpoint's optimizer part has no {name}.{key}", "--fresh starts over")
                # a copy: what was read is still mapped from a file that will be pruned
                self.optimizer.state[p][key] = tensors[f"{name}.{key}"].to(p.device, copy=True)

    def _check_finite(self, step: Step, loss: Tensor, norm: Tensor) -> None:
        bad = torch.tensor([[not loss.isfinite(), not norm.isfinite()]], device=self.device).float()
        of_loss, of_gradient = self.accelerator.gather(bad).T
        # Gradients are means over all processes: one bad loss makes all of them bad, and is the one to name.
        where = (of_loss if of_loss.any() else of_gradient).nonzero().flatten().tolist()
        if where:
            size = step.share.stop - step.share.start
            samples = ", ".join(f"{step.first + r * size}..{step.first + (r + 1) * size - 1}" for r in where)
            raise NonFinite(
                f"loss or gradient is not finite at step {step.index}, process {where}, images {samples}",
                "the last checkpoint is whole; try a lower optimizer.lr, or --set precision=no",
            )

    def _progress(self) -> Any:
        return tqdm(
            total=self.config.images,
            initial=self.images_seen,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            desc=self.folder.path.name,
            disable=not self.progress,
        )

    def _log(self, bar: Any) -> None:
        if not (self.crossed(self.config.log_every) or self.images_seen >= self.config.images):
            return
        means, meter = self._meter.means(self.accelerator), self._meter
        self._meter = _Meter()
        if self.accelerator.is_main_process:
            seconds = self._meter.since - meter.since
            rate = meter.steps * self.config.batch / seconds
            lr = learning_rate(self.config.optimizer, self.images_seen - self.config.batch, self.config.images)
            row = {"images": self.images_seen, **means, "lr": lr, "images_per_second": rate}
            self.folder.write_log({k: v if isinstance(v, int) else f"{v:.6g}" for k, v in row.items()})
            bar.set_postfix(loss=f"{means['loss']:.4f}")

    def _agreed_stop(self) -> int:
        """The signal that ends the run, the same on all processes: one alone would keep the others waiting."""
        if self.accelerator.num_processes == 1:
            return self._stop
        return int(self.accelerator.gather(torch.tensor([self._stop], device=self.device)).max())

    def _leave_if_asked(self, stop: int) -> None:
        if not stop:
            return
        self.accelerator.wait_for_everyone()  # a launcher ends all processes when the first one is gone
        if stop == signal.SIGINT:
            raise KeyboardInterrupt
        if stop == signal.SIGTERM:
            raise Terminated(
                f"terminated at {self.images_seen:,} images; the state is saved", "the same command again resumes"
            )


class _Signals(AbstractContextManager[None]):
    """While a run trains: SIGTERM and the first SIGINT let the step end and save; a second SIGINT leaves at once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # signals are the host program's business there
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._ask)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.engine._stop == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.engine._stop = number
        with suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(2, b"\nstopping after this step; the state will be saved\n")
