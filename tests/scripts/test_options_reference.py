"""The reference of options: what the script makes of the records today, and every option that a row may set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from t2i.api import DRAW, LOAD
from t2i.config.options import GenerateOptions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8")


def test_the_page_is_what_the_script_writes() -> None:
    command = [sys.executable, "scripts/options_reference.py"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == PAGE, "run: python scripts/options_reference.py > docs/reference/options.md"


def test_every_flag_and_every_place_is_named() -> None:
    rows = [line for line in PAGE.split("\n## `t2i sample`")[0].splitlines() if line.startswith("| ")]
    for name, known in GenerateOptions.table().items():
        (row,) = [line for line in rows if line.split(" | ")[1].startswith(f"`{name}`")]
        flags, places, *_ = row.split(" | ")
        assert all(f"`{flag}`" in flags for flag in known.option.flags)
        assert ("load" in places) == (name in LOAD)
        assert ("call" in places) == (name in DRAW)
        assert ("row" in places) == (known.option.scope == "row" or name == "prompt")
