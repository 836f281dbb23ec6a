"""Facts that may change in the course of a run, as JSON: a list with one item `since` each change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from t2i import atomic


def record_change(path: Path, images_seen: int, facts: dict[str, Any]) -> int:
    """Append the facts, `since` images seen, if they differ from the newest item that still counts.

    Items from `images_seen` on are dropped: the run was resumed from before them.
    Returns the number of images since which these facts hold.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for entry in entries if entry["since"] < images_seen]
    except (OSError, ValueError, TypeError, KeyError):
        entries = []  # a run of an older version, or a damaged file: nothing depends on it
    facts = json.loads(json.dumps(facts))  # as it is read back
    if not entries or entries[-1] != {"since": entries[-1]["since"], **facts}:
        entries.append({"since": images_seen, **facts})
    atomic.write(json.dumps(entries, indent=1).encode(), path, overwrite=True)
    return int(entries[-1]["since"])
