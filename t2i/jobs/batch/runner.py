"""A long batch: `t2i generate --prompts FILE -o FOLDER/`, by any number of processes, killed and run again at will.

Every process walks the same list and draws the groups that are neither there nor claimed by another; the main one then
walks it once more, waits for what others still draw, takes over what a dead one has left, and writes the manifest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from t2i.distributed import gather, processes
from t2i.errors import UsageError
from t2i.jobs.batch.job_list import make_job_list
from t2i.jobs.batch.ledger import Ledger
from t2i.jobs.batch.worker import SavedItem, Say, Worker
from t2i.jobs.spec.request import GenerateRequest

LAST_WORD_SECONDS = 10.0


def draw_batch(file: Path, request: GenerateRequest, chosen: bool, say: Say, bar: bool) -> Iterator[SavedItem]:
    """Draw what is missing of the batch; yields what this process draws, as it is saved: images, or whole shards.

    request: without prompts.  chosen: the user named its seeds.  say: takes a line for the user.
    Raises UsageError: a row that is wrong, another batch's folder; PartialFailure, listing what could not be drawn.
    """
    state = processes()
    if state.num_processes > 1 and request.device is None:
        device = "cpu" if state.device.type == "cpu" else str(state.device)  # Accelerate numbers CPUs too
        request = replace(request, device=device)
    run = _together(lambda: _begin(file, request, chosen, say, bar))
    with run.progress:
        yield from run.draw()
        if state.is_main_process:
            yield from run.finish()


def _begin(file: Path, request: GenerateRequest, chosen: bool, say: Say, bar: bool) -> Worker:
    """Each process's own view of the batch; the main one judges the list and makes the folder ours."""
    state = processes()
    if request.overwrite:
        raise UsageError("--overwrite: a batch makes what is missing", "delete what is to be made again")
    if request.preview:
        raise UsageError("--preview: a batch shows whole pictures, one after another", "leave it out")
    listing = make_job_list(file, request, chosen)
    ledger = Ledger(listing.folder, state.process_index, listing.shards)
    run = Worker(listing, ledger, say if state.is_main_process else _silence, bar and state.is_main_process)
    if state.is_main_process:
        run.begin(chosen)
    return run


def _together(begin: Callable[[], Worker]) -> Worker:
    """Begin in all processes, or leave in all of them: with one message, the main process's if it has one."""
    from torch import tensor

    refusal: Exception | None = None
    try:
        run = begin()
    except Exception as e:
        refusal = e
    codes = gather(tensor([getattr(refusal, "exit_code", 1) if refusal else 0])).tolist()
    first = next((rank for rank, code in enumerate(codes) if code), None)
    if first is None:
        run.join()
        return run
    if refusal is not None and processes().process_index == first:
        raise refusal
    time.sleep(LAST_WORD_SECONDS)  # a launcher ends all as soon as one has left: let it be the one that speaks
    raise SystemExit(codes[first])


def _silence(_: str) -> None:
    """The main process speaks for all."""
