"""Python and `t2i` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from t2i.cli import main as cli_main

ROOT = Path(cli_main.__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def run(*command: str, cwd: Path = ROOT, env: dict[str, str] = ENV) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
