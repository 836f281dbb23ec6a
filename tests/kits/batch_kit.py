"""What the tests of long batches share: rows, and processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def write_rows(folder: Path, count: int) -> str:
    """Rows of two settings, in runs that end within a group."""
    rows = [{"prompt": f"a {{horse|cat}} {k}"} | ({"size": "40x32"} if k % 11 > 7 else {}) for k in range(count)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "rows.jsonl"


def start(*arguments: str, launcher: list[str] | None = None) -> subprocess.Popen[str]:
    """`t2i generate` in a process of its own, or several, with the model of the fixture `t2i`."""
    command = [*(launcher or []), "-m", *(["--"] if launcher else []), "t2i", "generate", *arguments, "--steps", "2"]
    env = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
