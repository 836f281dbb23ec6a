"""SIGTERM and SIGINT while a run trains: the step ends, the state is saved, then the run leaves."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import AbstractContextManager, suppress
from types import FrameType
from typing import Any


class Signals(AbstractContextManager["Signals"]):
    """While inside, SIGTERM and the first SIGINT are kept in `asked`; a second SIGINT leaves at once."""

    def __init__(self) -> None:
        self.asked = 0  # the signal that asked this process to stop
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals are the host program's business
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
        with suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(2, b"\nstopping after this step; the state will be saved\n")
