"""Benchmark `t2i`: start-up, generation and training, against plain diffusers and others.

    python scripts/bench.py help
    python scripts/bench.py generate [--parts overhead,first,many,bf16,startup,cache] [-m FOLDER] [--steps 20]
        [--guidance 3] [--rounds 5] [--json]
    python scripts/bench.py train [--unet 35m] [--batch 16] [--rounds 20] [--data FILE.parquet] [--device cuda]
    python scripts/bench.py sample [--unet 35m] [--batch 16] [--rounds 2] [--device cuda]
    python scripts/bench.py families [--data FILE.parquet] [--label COLUMN] [--rounds 5]
    python scripts/bench.py memory [--unet 35m] [--batch 16] [--device cuda]

Every measurement is a fresh process; in `train` each side keeps its own, and `sample` and parts of `generate` run in a
single one. The sides of a comparison take turns in one session, and a ratio is the median over the rounds of the ratio
within a round, so that a slow minute of the machine affects both sides. For help and generate a first round is
discarded: it warms the disk. On a shared machine, OMP_NUM_THREADS=1 keeps threads from waiting for one another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark t2i, in turns with plain diffusers and others.")
    parser.add_argument("what", choices=BENCHES)
    parser.add_argument("-m", "--model", type=Path, default=ROOT / "t2i" / "mini", help="pipeline folder [mini]")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0, help="above 1, so that both sides run both branches")
    parser.add_argument(
        "--rounds", type=int, help="[21 for help, 3 to 15 for generate, 5 for families, 20 for train, 2 for sample]"
    )
    parser.add_argument("--unet", choices=("35m", "10m", "10m-heads8"), default="35m", help="what `train` trains [35m]")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--data", default="t2i:shapes.parquet", help="images of `train` and `families`, made 32 x 32")
    parser.add_argument("--label", default="shape", help="column of classes, for `families` [shape]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", help="of `generate`, by commas [all]")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # the t2i beside this script, not one that is installed
    results = BENCHES[options.what](options)
    record = {**stamp(), "results": results}
    print(json.dumps(record, indent=2) if options.json else table(record))


def bench_help(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure `t2i --help`, in turns with a Python that does nothing."""
    sides = {"t2i": t2i("--help"), "python": [sys.executable, "-c", "pass"]}
    rounds = in_turns(sides, options.rounds or 21)
    return [result("t2i --help", rounds["t2i"], "s", 0.15), result("python -c pass", rounds["python"], "s", None)]


def bench_generate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure generation: overhead, first image, many prompts, bf16, start-up, step caching: see bench_generate.py."""
    from bench_generate import measure

    return [result(*row) for row in measure(options)]


def bench_train(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure training steps of our U-Net and loop, in turns with others': see bench_train.py."""
    from bench_train import measure

    found = measure(options.unet, options.batch, options.rounds or 20, options.data, options.device)
    return [result(*row, None) for row in found]


def bench_sample(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure sampling with our U-Net and samplers, in turns with diffusers', in one process: see bench_sample.py."""
    from bench_sample import measure

    return [result(*row, None) for row in measure(options.unet, options.batch, options.rounds or 2, options.device)]


def bench_families(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the trainers of dcgan, vae and classifier, in turns with plain loops: see bench_families.py."""
    lines = []
    for family in ("dcgan", "vae", "classifier"):
        rates: dict[str, list[float]] = {"t2i": [], "plain": [], "data": []}
        for number in range(options.rounds or 5):
            for side in rates if number % 2 else reversed(rates):
                script = str(ROOT / "scripts" / "bench_families.py")
                done = run([sys.executable, script, side, family, options.data, options.label])
                rates[side].append(float(done.stdout))
            print(f"{family}, round {number + 1}", file=sys.stderr)
        ratio = [a / b for a, b in zip(rates["t2i"], rates["plain"], strict=True)]
        part = [a / b for a, b in zip(rates["t2i"], rates["data"], strict=True)]
        lines += [
            result(f"{family}, t2i's trainer", rates["t2i"], "images/s", None),
            result(f"{family}, plain loop", rates["plain"], "images/s", None),
            result(f"{family}, t2i / plain", ratio, "x", None),
            result(f"{family}, part of the time that the data path takes", part, "", None),
        ]
    return lines


def bench_memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the peak memory of three training steps of each side, in a process of its own."""
    from bench_train import make_sides

    sides, _ = make_sides(options.unet, options.batch, options.data, options.device)
    lines = []
    for name in sides:
        words = [options.unet, str(options.batch), options.data, options.device, name]
        done = run([sys.executable, str(ROOT / "scripts" / "bench_train.py"), *words])
        lines.append(result(f"{name}, peak", [int(done.stdout) / 2**20], "MiB", None))
    return lines


def t2i(*args: str) -> list[str]:
    return [sys.executable, "-m", "t2i", *args]


def in_turns(sides: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every side in every round; each second round runs the sides in reverse."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in order:
            elapsed = wall(sides[name])
            if number > 0:
                seconds[name].append(elapsed)
        print(f"round {number}/{rounds}", file=sys.stderr)
    return seconds


def wall(command: list[str]) -> float:
    """Return the wall seconds of one fresh process."""
    start = time.perf_counter()
    run(command)
    return time.perf_counter() - start


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that can import t2i; exit if it fails."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}\n{done.stderr}")
    return done


def result(what: str, values: list[float], unit: str, limit: float | None) -> dict[str, Any]:
    """Return one row of the table: the median, the extremes, and the limit, if any."""
    return {
        "what": what,
        "median": round(median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "rounds": len(values),
        "unit": unit,
        "limit": limit,
        "met": None if limit is None else median(values) <= limit,
    }


def stamp() -> dict[str, Any]:
    """Return the context of a number: date, machine, commit, versions, command."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    return {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {cpu()}, {platform.system()}, Python {platform.python_version()}",
        "commit": (commit or "none") + (" with changes" if changed else ""),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "click")},
        "command": " ".join(["python", "scripts/bench.py", *sys.argv[1:]]),
    }


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(record: dict[str, Any]) -> str:
    lines = ["| measured | median | min | max | rounds | limit |", "| --- | --- | --- | --- | --- | --- |"]
    for row in record["results"]:
        value = " | ".join(f"{row[key]:.3f} {row['unit']}" for key in ("median", "min", "max"))
        limit = "" if row["limit"] is None else f"{row['limit']} {row['unit']}, {'met' if row['met'] else 'MISSED'}"
        lines.append(f"| {row['what']} | {value} | {row['rounds']} | {limit} |")
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return "\n".join([*lines, "", f"{record['date']}, {record['machine']}", f"commit {record['commit']}; {versions}"])


BENCHES: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "help": bench_help,
    "generate": bench_generate,
    "train": bench_train,
    "sample": bench_sample,
    "families": bench_families,
    "memory": bench_memory,
}

if __name__ == "__main__":
    main()
