"""What a run would be, before it is one: `--dry-run`."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from t2i.config import AutoencoderConfig, Judged, Run, Text2ImageConfig, config_hash
from t2i.data.sources import is_hub, open_source
from t2i.distributed import processes
from t2i.training.engine import check_division
from t2i.training.optimizer import learning_rate
from t2i.training.runs.run_folder import Launch, RunFolder

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40  # characters of the learning-rate curve
WARM_UP = 3  # steps before the measured ones: the first are slower
MEASURED = 5


def describe(config: Run, run: Path, measure: bool = True) -> str:
    """The plan of a run as text: data, model, steps, rate, disk, time, and where it would begin.  Keeps nothing.

    measure: train a few steps in a temporary folder, to tell the time.
    Raises T2IError where the run itself would: missing data, no autoencoder, a batch that does not divide.
    """
    data: Any = cast(Any, config).data
    here = [source for source in data.sources if not is_hub(source)]
    counts = [open_source(source).count for source in here]
    visits = sum(count * source.repeat for count, source in zip(counts, here, strict=True))
    estimate_cost = import_module(f"t2i.training.families.{_family(config)}").estimate_cost(config)
    total = sum(estimate_cost.parameters.values())
    checkpoint = 4 * total * 4  # float32: weights, their average, two moments
    saved = RunFolder(run).saved()
    n, steps = processes().num_processes, -(-config.images // config.batch)
    check_division(config, n)
    size = f"{data.size} x {data.size} pixels"
    from_hub = [source.path for source in data.sources if is_hub(source)]
    lines = {
        "run": f"{run}  (config {config_hash(config)})",
        "data": f"{sum(counts):,} images in {len(data.sources)} sources, {size}"
        + (f"; not counted, on the Hub: {', '.join(from_hub)}" if from_hub else ""),
        "epoch": f"{visits:,} visits; the run is {config.images / visits:.1f} epochs" if visits else "not known",
        "model": f"{total / 1e6:.1f}M parameters: "
        + ", ".join(f"{k} {v / 1e6:.1f}M" for k, v in estimate_cost.parameters.items()),
        "work": f"{estimate_cost.flops / 1e9:.1f} GFLOP per image, forward and backward",
        "batch": f"{config.batch} images = {n} processes x {config.accumulate} parts x "
        f"{config.batch // (n * config.accumulate)}",
        "steps": f"{steps:,} of {config.batch} images, {config.images:,} images in all",
        "rate": f"{rate_curve(config)}  up to {config.optimizer.lr:g}",
        "disk": f"{checkpoint * (config.keep + 1) / 1e6:,.0f} MB for {config.keep} checkpoints and one being written",
        "time": _time(config, saved, not from_hub and measure),
        "begins": f"at {int(saved[0].name):,} images, from {saved[0]}" if saved else "anew",
    }
    return "\n".join(f"{name:<8}{text}" for name, text in lines.items())


def rate_curve(config: Run) -> str:
    """The learning rate over the run, as a line of blocks from nothing to its highest."""
    points = [learning_rate(config.optimizer, round(config.images * k / WIDTH), config.images) for k in range(WIDTH)]
    return "".join(BARS[min(len(BARS) - 1, int(len(BARS) * point / config.optimizer.lr))] for point in points)


def images_per_second(config: Run) -> float:
    """Measured: a few steps of the run itself, in a folder that is removed again."""
    import t2i.training as training

    loop = getattr(training, training.TRAINERS[_family(config)])
    row = config.batch * getattr(config, "d_steps", 1)
    end = (WARM_UP + MEASURED) * row
    never: dict[str, Any] = {
        "save_every": 2**62,
        "sample_every": 2**62,
        "log_every": row,
        "images": max(end, config.images),
    }
    if isinstance(config, Judged):
        never["evaluate"] = None
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        loop(config.model_copy(update=never), run, Launch(progress=False, until=end))
        rates = [float(row["images_per_second"]) for row in RunFolder(run).read_log()][WARM_UP:]
    return len(rates) / sum(1 / rate for rate in rates)


def _time(config: Run, saved: list[Path], measure: bool) -> str:
    if not measure:
        return "not measured"
    if isinstance(config, Text2ImageConfig) and not (config.latents and Path(config.latents).exists()):
        return "not measured: the latents of all images would have to be encoded first"
    parts = [(left, images_per_second(part)) for left, part in _parts(config, int(saved[0].name) if saved else 0)]
    seconds = sum(left / rate for left, rate in parts)
    rates = ", then ".join(f"{rate:.3g}" for _, rate in parts)
    return f"{_duration(seconds)} at {rates} images/s, measured over {MEASURED} steps here; samples not counted"


def _parts(config: Run, seen: int) -> list[tuple[int, Run]]:
    """The images that are left, in parts of one speed, each with a config that has this speed from its first step."""
    if not isinstance(config, AutoencoderConfig) or not config.loss.adversarial:
        return [(config.images - seen, config)]
    joins = min(max(config.loss.adversarial_from, seen), config.images)
    found: list[tuple[int, Run]] = []
    for left, begins in ((joins - seen, 2**62), (config.images - joins, 0)):
        loss = config.loss.model_copy(update={"adversarial_from": begins})
        found.append((left, config.model_copy(update={"loss": loss})))
    return [part for part in found if part[0]] or found[-1:]


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _family(config: Run) -> str:
    return str(cast(Any, config).family)
