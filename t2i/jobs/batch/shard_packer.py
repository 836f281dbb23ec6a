"""Packing the images of a long batch into shards.

A shard is packed when all its images are settled, by the first process that finds it so; images that failed or were
blanked are left out, and when a later run draws them the shard is packed again.
"""

from __future__ import annotations

from pathlib import Path

from t2i.jobs.batch.job_list import JobGroup
from t2i.jobs.batch.ledger import Ledger
from t2i.jobs.batch.shard_index import Line
from t2i.jobs.events import Emit, ShardPacked


def pack(ledger: Ledger, groups: list[JobGroup], emit: Emit) -> bool:
    """Pack the shard of these groups, if they are all settled and no other process packs it.

    Emits an event when the shard was written; returns whether it is complete.
    """
    shards = ledger.shards
    if shards is None:
        return True
    number = shards.number(groups[0].items[0].index)
    made = _made(ledger, groups)
    if made is None:
        return False
    if _is_packed(ledger, number, groups, made):
        return True
    with ledger.claim_shard(number) as ours:
        made = _made(ledger, groups) if ours else None  # another may have packed it before our claim
        if made is None:
            return False
        if _is_packed(ledger, number, groups, made):
            return True
        new = shards.pack(number, made)
        for group in groups:
            ledger.clear(group)
    if new:
        emit(ShardPacked(shards.path(number), sum(line["status"] == "done" for _, line in made)))
    return True


def _made(ledger: Ledger, groups: list[JobGroup]) -> list[tuple[Path, Line]] | None:
    """Return (where it was spooled, its line) of each image; None while one of them is not settled."""
    made = []
    for group in groups:
        lines, settled = ledger.lines_of(group)
        if not settled:
            return None
        made += [(item.path, lines[item.index]) for item in group.items]
    return made


def _is_packed(ledger: Ledger, number: int, groups: list[JobGroup], made: list[tuple[Path, Line]]) -> bool:
    assert ledger.shards is not None
    state = ledger.shards.state(number)
    if state is None or state.lines != [line for _, line in made]:
        return False
    return not any(ledger.is_finished(group) for group in groups)
