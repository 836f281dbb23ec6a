"""Threads of one program made safe: a lock that is taken in order, and warnings silenced for one thread alone."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from t2i.errors import UsageError

# Held while networks are made and filled. Diffusers and transformers then patch `torch.nn.Module` and the default dtype
# of torch for the whole process, and two loads at once would leave weights of either model unfilled.
LOADING = threading.RLock()


class FifoLock:
    """A lock that is first come, first served; `threading.Lock` gives no order.

    what: is held, for the message of a thread that asks for what it holds already: it would wait for ever.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._guard = threading.Lock()  # of the two below
        self._owner: int | None = None
        self._queue: deque[tuple[int, threading.Event]] = deque()

    @property
    def waiting(self) -> int:
        """The number of threads that wait."""
        return len(self._queue)

    def __enter__(self) -> None:
        me, turn = threading.get_ident(), threading.Event()
        with self._guard:
            if self._owner == me:
                raise UsageError(f"{self.what} is at work: a callback cannot use it", "use it when this call has ended")
            if self._owner is None:
                self._owner = me
                return
            self._queue.append((me, turn))
        try:
            turn.wait()
        except BaseException:  # interrupted, perhaps in the moment in which the turn came
            with self._guard:
                if self._owner == me:
                    self._pass_on()
                else:
                    self._queue.remove((me, turn))
            raise

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._pass_on()

    def _pass_on(self) -> None:
        """Name the next owner here, while the guard is held: a thread that comes now cannot overtake."""
        self._owner = None
        if self._queue:
            self._owner, turn = self._queue.popleft()
            turn.set()


_ignoring: ContextVar[bool] = ContextVar("ignoring", default=False)


class _Ignoring:
    """Stands where a warning filter has the pattern of its messages: matches all of them, in some threads."""

    def match(self, _: str) -> bool:
        return _ignoring.get()


_FILTER = ("ignore", _Ignoring(), Warning, None, 0)
_filters_lock = threading.Lock()


@contextmanager
def ignore_warnings() -> Iterator[None]:
    """Ignore Python's warnings within this block, in this thread alone.

    `warnings.catch_warnings` replaces the filters of all threads for as long as it lasts, and two such blocks that
    overlap leave the filters of the wrong one behind. Here one filter is added, once, that asks which thread it is in.
    """
    with _filters_lock:
        filters: list[object] = warnings.filters  # type: ignore[assignment]  # typed as a sequence; it is the list itself
        if not filters or filters[0] is not _FILTER:  # others were put before it, or it was lost with a list of theirs
            filters[:] = [_FILTER, *(one for one in filters if one is not _FILTER)]
    token = _ignoring.set(True)
    try:
        yield
    finally:
        _ignoring.reset(token)
