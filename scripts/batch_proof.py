"""The proof that a long batch ends the same however it is run: in one go, or killed twice and shared by two processes.

    python scripts/batch_proof.py --n 1000 --steps 4
    python scripts/batch_proof.py --n 1000 --steps 4 --shards parquet

Batch A is drawn by one process without a break. Batch B, the same list in another folder, is killed by SIGKILL at about
a third, drawn by one process, and at about two thirds, drawn by two (which torchrun starts: of a machine without
accelerators `accelerate launch` uses one process); two processes finish it. Then every file of both
is compared byte by byte, the manifests among them, and a table is printed. Exit 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parents[1]
OBJECTS = ("horse", "dog", "elephant", "giraffe", "house", "guitar", "person", "cat", "ship", "tree")
STYLES = ("a photo of a {}", "a sketch of a {}", "a cartoon of a {}", "a painting of a {}", "a {} in Van Gogh style")
POLL_SECONDS = 0.05
LISTED = 10


class Part(NamedTuple):
    """One start of the command: by how many processes, what came of it, at how many images it ended, how long."""

    batch: str
    processes: int
    end: str
    images: int
    seconds: float


def write_prompts(path: Path, count: int) -> None:
    """Objects x styles x seeds, as rows with a seed each."""
    prompts = [style.format(thing) for style in STYLES for thing in OBJECTS]
    rows = [{"prompt": prompts[k % len(prompts)], "seed": k // len(prompts)} for k in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def start(prompts: Path, folder: Path, processes: int, options: list[str]) -> subprocess.Popen[bytes]:
    """`t2i generate` by so many processes of one thread each: how many there are is then the only difference."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "--"]
    command = [sys.executable, *(launcher if processes > 1 else ["-m"]), "t2i", "generate"]
    command += ["--prompts", str(prompts), "-o", f"{folder}/", "--quiet", *options]
    env = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)


def run(prompts: Path, folder: Path, processes: int, options: list[str], kill_at: int | None = None) -> Part:
    """Draw until the end, or until SIGKILL at so many images.  Exits where the command fails, or ends before."""
    began = time.monotonic()
    process = start(prompts, folder, processes, options)
    while kill_at is not None and (done := images(folder)) < kill_at:
        if process.poll() is not None:
            sys.exit(f"{folder.name}: it ended with {done} images, before it was to be killed at {kill_at}")
        time.sleep(POLL_SECONDS)
    if kill_at is not None:
        kill(process)
    elif process.wait():
        sys.exit(f"{folder.name}: exit {process.returncode}")
    end = "done" if kill_at is None else "SIGKILL"
    return Part(folder.name, processes, end, images(folder), time.monotonic() - began)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the command and all that it has started."""
    family = psutil.Process(process.pid)
    for one in [family, *family.children(recursive=True)]:
        one.send_signal(signal.SIGKILL)
    process.wait()


def images(folder: Path) -> int:
    """How many images are there: as files, or in shards."""
    files = sum(path.suffix in (".png", ".jpg", ".webp") for path in folder.rglob("*"))
    for record in folder.glob(".t2i-batch/shards/*.json"):
        files += len(json.loads(record.read_bytes())[0]["lines"])
    return files


def digests(folder: Path) -> dict[str, str]:
    """Every file that is meant for the user, and the hash of its bytes."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    wanted = sorted(path for path in paths if path.parts[0] != ".t2i-batch")
    return {path.as_posix(): hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in wanted}


def differences(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """The names of files that are in one folder alone, or differ."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def prove(here: Path, count: int, options: list[str]) -> list[Part]:
    """Draw A and B below this folder."""
    prompts, a, b = here / "prompts.jsonl", here / "A", here / "B"
    write_prompts(prompts, count)
    return [
        run(prompts, a, 1, options),
        run(prompts, b, 1, options, kill_at=count // 3),
        run(prompts, b, 2, options, kill_at=2 * count // 3),
        run(prompts, b, 2, options),
    ]


def report(here: Path, count: int, parts: list[Part]) -> bool:
    """Print how it went; returns whether both batches are whole and the same."""
    a, b = digests(here / "A"), digests(here / "B")
    wrong = differences(a, b)
    print("| batch | processes | ended | seconds |\n| --- | --- | --- | --- |")
    for part in parts:
        print(f"| {part.batch} | {part.processes} | {part.end} at {part.images} | {part.seconds:.0f} |")
    equal = len(a.keys() | b.keys()) - len(wrong)
    print(f"\n{count} images: {len(a)} files of A, {len(b)} of B; {equal} equal byte for byte, {len(wrong)} not")
    for name in wrong[:LISTED]:
        print(f"differs: {name}")
    lines = [json.loads(line)["status"] for line in (here / "A" / "manifest.jsonl").read_text().splitlines()]
    return not wrong and lines == count * ["done"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="images (default 1000)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps (default 4)")
    parser.add_argument("--shards", choices=["parquet", "webdataset"], help="into ten shards of this kind")
    parser.add_argument("--keep", type=Path, help="a new folder for A and B (default: they are deleted at the end)")
    given = parser.parse_args()
    options = ["--steps", str(given.steps), "--seed", "0", "--device", "cpu", "--dtype", "float32"]
    if given.shards:
        options += ["--shards", given.shards, "--shard-size", str(-(-given.n // 10))]
    with tempfile.TemporaryDirectory(prefix="t2i-proof-") as temporary:
        here = given.keep or Path(temporary)
        here.mkdir(parents=True, exist_ok=given.keep is None)
        return 0 if report(here, given.n, prove(here, given.n, options)) else 1


if __name__ == "__main__":
    sys.exit(main())
