"""A pause of garbage collection: of the objects that importing and loading create, none becomes garbage."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[Callable[[], None]]:
    """Pause the search for reference cycles within this block: a tenth of the time of importing and loading.

    Yields a function that ends the pause early. Objects without references are freed as ever.
    For the start of a program, since the garbage collector serves all threads.
    """
    was = gc.isenabled()
    gc.disable()

    def resume() -> None:
        if was:
            gc.enable()

    try:
        yield resume
    finally:
        resume()
