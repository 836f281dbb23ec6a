"""Which of several processes am I: read from the environment that a launcher sets, without importing Accelerate."""

from __future__ import annotations

import os


def is_main() -> bool:
    """Whether this process is the one that prints, saves and draws: the only one, or number 0 of a launcher's."""
    return os.environ.get("RANK", "0") == "0"
