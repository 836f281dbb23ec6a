"""A long batch: `t2i generate --prompts FILE -o FOLDER/`, by any number of processes, killed and run again at will.

Every process walks the same list and draws the groups that are neither there nor claimed by another; the main one then
walks it once more, waits for what others still draw, takes over what a dead one has left, and writes the manifest.
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
from t2i.jobs.spec.request import GenerateRequest

LAST_WORD_SECONDS = 10.0


def execute_batch(request: GenerateRequest, emit: Emit) -> None:
    """Draw what is missing of a batch, together with all processes that run the same.

    emit: takes what this process draws, as it is saved: images, or whole shards; the main process's tells of all.
    Raises UsageError: a row that is wrong, another batch's folder; PartialFailure, listing what could not be drawn.
    """
    state = processes()
    if state.num_processes > 1 and request.options.device is None:
        device = "cpu" if state.device.type == "cpu" else str(state.device)  # Accelerate numbers CPUs too
        request = replace(request, options=request.options.override({"device": device}))
    worker = _together(lambda: _begin(request, emit))
    worker.draw()
    if state.is_main_process:
        worker.finish()


def _begin(request: GenerateRequest, emit: Emit) -> Worker:
    """Each process's own view of the batch; the main one judges the list and makes the folder ours."""
    state = processes()
    if request.options.overwrite:
        raise UsageError("--overwrite: a batch makes what is missing", "delete what is to be made again")
    if request.options.preview:
        raise UsageError("--preview: a batch shows whole pictures, one after another", "leave it out")
    jobs = make_job_list(request)
    ledger = Ledger(jobs.folder, state.process_index, jobs.shards)
    worker = Worker(jobs, ledger, emit, tell=emit if state.is_main_process else ignore)
    if state.is_main_process:
        worker.begin()
    return worker


def _together(begin: Callable[[], Worker]) -> Worker:
    """Begin in all processes, or leave in all of them: with one message, the main process's if it has one."""
    from torch import tensor

    refusal: Exception | None = None
    try:
        worker = begin()
    except Exception as e:
        refusal = e
    codes = gather(tensor([getattr(refusal, "exit_code", 1) if refusal else 0])).tolist()
    first = next((rank for rank, code in enumerate(codes) if code), None)
    if first is None:
        worker.join()
        return worker
    if refusal is not None and processes().process_index == first:
        raise refusal
    time.sleep(LAST_WORD_SECONDS)  # a launcher ends all as soon as one has left: let it be the one that speaks
    raise SystemExit(codes[first])
