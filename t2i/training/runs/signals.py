"""SIGTERM and SIGINT during training: finish the step, save the state, then exit."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import AbstractContextManager, suppress
from types import FrameType
from typing import Any


class Signals(AbstractContextManager["Signals"]):
    """A context in which SIGTERM and the first SIGINT are kept in `received`; a second SIGINT exits at once."""

    def __init__(self) -> None:
        self.received = 0  # the signal that asked this process to stop
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # in other threads the host program handles signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        with suppress(OSError):  # not print, which is not reentrant: the signal may have interrupted one
            os.write(2, b"\nstopping after this step; the state will be saved\n")
