"""The two-column table that `--dry-run` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from t2i.cli.models import in_units

Facts = dict[str, Any]
SHOWN = 5  # files that are named


def model_rows(facts: Facts) -> list[tuple[str, str]]:
    """Return rows about a model and the device that it would run on."""
    size = "not known offline" if facts["download"] is None else in_units(facts["download"])
    where = facts["path"] or f"not here; to be downloaded: {size}"
    gated = {True: "yes: its licence must be accepted on the Hub's page", False: "no", None: "not known here"}
    rows = [
        ("where", where),
        ("licence", facts["license"] or "not known here"),
        ("gated", gated[facts["gated"]]),
        ("class", facts["class"] or "not known before it is here"),
    ]
    rows += [(one["kind"], f"{one['words']} ({_weight(one['bytes'])})") for one in facts["besides"]]
    starts = facts["starts"]
    rows += [("starts", starts[0] if len(starts) == 1 else f"{len(starts)} ways")] if starts else []
    rows += [("cache", facts["cache"])] if facts["cache"] else []
    if "memory" not in facts:
        return [*rows, ("memory", "not known before it is here"), ("images", str(facts["images"]))]
    memory, reasons = facts["memory"], dict(facts["reasons"])
    sums = f"{in_units(memory['weights'])} weights + {in_units(memory['computing'])} computing"
    extra = sum(one["bytes"] or 0 for one in facts["besides"])
    sums = f"{in_units(extra)} of the above + {sums}" if extra else sums
    fits = "" if memory["fits"] else ": it may not fit"
    dtype = reasons.pop(facts["dtype"], "")
    each = ", ".join(map(str, facts["steps_each"][:SHOWN]))
    return [
        *rows,
        ("device", facts["device"]),
        ("dtype", facts["dtype"] + (f" ({dtype})" if dtype else "")),
        ("memory", f"{sums} = about {in_units(memory['needed'])} of {in_units(memory['free'])}{fits}"),
        ("adjustments", "; ".join(f"{what} ({why})" for what, why in reasons.items()) or "none"),
        ("safety", {"there": "checked by its own checker", "none": "it has no checker"}.get(facts["safety"], "off")),
        ("images", f"{facts['images']} of {each} steps ({facts['steps']} in all), {facts['at_once']} at once"),
        ("size", facts["size"] + " at most" * (facts["images"] > 1)),
    ]


def _weight(size: int | None) -> str:
    return "not here; to be downloaded" if size is None else in_units(size)


def output_rows(total: Facts) -> list[tuple[str, str]]:
    """Return rows about the number of images, their files, and how many are missing."""
    return list(_output(total))


def _output(total: Facts) -> Iterator[tuple[str, str]]:
    yield "images", str(total["images"])
    if "wrong" in total:
        yield "cannot be drawn", f"{total['wrong']} of them, with settings that the model does not take"
    if "files" not in total:
        yield "files", f"in {total.get('folder')}; their names are known when all of it is here"
        return
    more = total["images"] - len(total["files"])
    for k, name in enumerate(total["files"]):
        yield "files" if k == 0 else "", name
    if more > 0:
        yield "", f"and {more} more"
    if "folder" in total:
        yield "missing", f"{total['missing']} of {total['images']} in {total['folder']}"
