"""A long batch, a prompt file drawn into a folder: shared by any number of processes, resumable after a kill.

Every process walks the same list and draws the groups that are neither there nor claimed by another; the main one then
walks it once more, waits for groups that others still draw, takes over those of a dead one, and writes the manifest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from t2i.distributed import gather, processes
from t2i.errors import UsageError
from t2i.jobs.batch.job_list import make_job_list
from t2i.jobs.batch.ledger import Ledger
from t2i.jobs.batch.worker import Worker
from t2i.jobs.events import Emit, ignore
from t2i.jobs.planning.model_slot import ModelSlot
from t2i.jobs.spec.request import GenerateRequest

LAST_WORD_SECONDS = 10.0  # for the process with the error to report it


def execute_batch(request: GenerateRequest, emit: Emit, slot: ModelSlot) -> None:
    """Draw the missing images of a batch, together with all processes that run the same command.

    emit: takes the images or shards of this process as they are saved; in the main process also messages about all.
    Raises UsageError: an invalid row, another batch's folder; PartialFailure, listing images that failed.
    """
    state = processes()
    if state.num_processes > 1 and request.options.device is None:
        device = "cpu" if state.device.type == "cpu" else str(state.device)  # Accelerate numbers CPUs too
        request = replace(request, options=request.options.override({"device": device}))
    worker = _together(lambda: _begin(request, emit, slot))
    worker.draw()
    if state.is_main_process:
        worker.finish()


def _begin(request: GenerateRequest, emit: Emit, slot: ModelSlot) -> Worker:
    """Make this process's worker; the main process also checks the list and opens the folder."""
    state = processes()
    if request.options.overwrite:
        raise UsageError("`overwrite`: a batch draws missing images only", "delete those that are to be drawn again")
    if request.options.preview:
        raise UsageError("`preview`: a batch saves finished images one after another", "leave it out")
    jobs = make_job_list(request)
    ledger = Ledger(jobs.folder, state.process_index, jobs.shards)
    worker = Worker(jobs, ledger, slot, emit, emit_once=emit if state.is_main_process else ignore)
    if state.is_main_process:
        worker.begin()
    return worker


def _together(begin: Callable[[], Worker]) -> Worker:
    """Begin in all processes, or exit in all of them with one message: that of the first process that failed."""
    from torch import tensor

    error: Exception | None = None
    try:
        worker = begin()
    except Exception as e:
        error = e
    codes = gather(tensor([getattr(error, "exit_code", 1) if error else 0])).tolist()
    first = next((rank for rank, code in enumerate(codes) if code), None)
    if first is None:
        worker.join()
        return worker
    if error is not None and processes().process_index == first:
        raise error
    time.sleep(LAST_WORD_SECONDS)  # a launcher ends all once one exits: let the one with the error exit first
    raise SystemExit(codes[first])
