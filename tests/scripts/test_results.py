"""RESULTS.md is what the kept runs say, and every kept run says how it was made."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # scripts are run as files, so they are no package

from results import RESULTS, ROOT, text

SAID = {"says", "command", "machine", "date", "commit", "shows"}


def test_results_are_what_the_runs_left() -> None:
    assert (ROOT / "RESULTS.md").read_text(encoding="utf-8") == text(RESULTS)


def test_every_kept_run_says_how_it_was_made() -> None:
    for folder in RESULTS.iterdir():
        if folder.name == "compare":
            continue
        made = yaml.safe_load((folder / "made.yaml").read_text(encoding="utf-8"))
        assert set(made) >= SAID, folder.name
        assert (folder / "log.csv").is_file() or {"images", "took", "measured"} <= set(made), folder.name
