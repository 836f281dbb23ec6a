"""A lock that is first come, first served."""

from __future__ import annotations

import threading
import time

import pytest

from t2i.errors import UsageError
from t2i.threads import FifoLock


def wait_for(lock: FifoLock, waiting: int) -> None:
    end = time.monotonic() + 30
    while lock.waiting < waiting:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_turns_come_in_the_order_of_asking() -> None:
    lock, order = FifoLock("it"), list[int]()

    def work(k: int) -> None:
        with lock:
            order.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(12)]
    with lock:
        for k, thread in enumerate(threads):
            thread.start()
            wait_for(lock, k + 1)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == list(range(12))
    assert lock.waiting == 0


def test_one_at_a_time_and_none_lost() -> None:
    lock, inside, most = FifoLock("it"), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with lock:
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside, lock.waiting) == (1, 0, 0)


def test_an_error_passes_the_turn_on() -> None:
    lock = FifoLock("it")
    with pytest.raises(ValueError, match="broken"), lock:
        raise ValueError("broken")
    with lock:
        pass


def test_who_holds_it_is_not_left_waiting_for_itself() -> None:
    lock = FifoLock("the model")
    with lock, pytest.raises(UsageError, match="the model is at work: a callback cannot use it"), lock:
        pass
    with lock:
        pass


@pytest.mark.parametrize("when", ["waiting", "called"])
def test_an_interrupted_wait_gives_its_place_back(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    lock = FifoLock("it")
    wait = threading.Event.wait

    def interrupted(turn: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread() is not second:
            return wait(turn, timeout)
        if when == "called":  # the turn comes in the very moment of the interruption
            release.set()
            while lock.waiting:
                time.sleep(0.001)
        raise KeyboardInterrupt

    held, release, ended = threading.Event(), threading.Event(), list[str]()

    def hold() -> None:
        with lock:
            held.set()
            release.wait()

    def ask() -> None:
        try:
            with lock:
                ended.append("entered")
        except KeyboardInterrupt:
            ended.append("interrupted")

    first, second = threading.Thread(target=hold), threading.Thread(target=ask)
    monkeypatch.setattr(threading.Event, "wait", interrupted)
    first.start()
    held.wait()
    second.start()
    second.join()
    release.set()
    first.join()
    assert (ended, lock.waiting) == (["interrupted"], 0)
    with lock:
        pass
