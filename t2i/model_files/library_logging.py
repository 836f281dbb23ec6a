"""Logging of the libraries underneath: silenced where our own messages say the same better.

Transformers warns about torchvision, which nothing here needs, about weights, and about long prompts; diffusers about
configs of models it has drawn with for years. Errors are exceptions and pass through. With DIFFUSERS_VERBOSITY or
TRANSFORMERS_VERBOSITY set, everything is printed.

Loggers belong to the whole process. So these settings are made once and stay, and whether a message is silenced is
decided message by message, by the thread that logs it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from t2i.threads import ignore_warnings

LIBRARIES = ("diffusers", "transformers", "huggingface_hub", "accelerate")
LOUD = ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY")  # environment variables of theirs

# Loggers that warn at the first import, and words of the warning: torchao has files for GPUs and deprecated classes.
AT_IMPORT = {
    "transformers.utils.import_utils": "requires torchvision",
    "torchao": "Failed to load",
    "torch.utils._pytree": "register_constant",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao`",
}

# The messages of the block in which this thread is; None: it is in none.
_messages: ContextVar[list[str] | None] = ContextVar("messages", default=None)
_lock = threading.Lock()


def prepare_libraries() -> None:
    """Disable remote code for good, and the warnings that libraries log at their import.

    Called where a program starts, and before a first model is located: diffusers reads the setting at its import.
    """
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        with _lock:
            for name, words in AT_IMPORT.items():
                # On the very logger: a filter on a parent logger does not see the records of its children.
                logger = logging.getLogger(name)
                if not logger.filters:
                    logger.addFilter(_unless(words))


@contextmanager
def silence_libraries() -> Iterator[list[str]]:
    """Silence the libraries' warnings within this block, in this thread alone; yields the messages.

    Their progress bars are disabled for good, since that cannot be done for one thread.
    Blocks may be nested. Import the libraries first.
    """
    with _lock:
        for name in LIBRARIES:
            _Gate.watch(logging.getLogger(name))
        if not _is_loud():
            _switch_bars_off()
    said: list[str] = []
    token = _messages.set(said)
    try:
        with ignore_warnings():
            yield said
    finally:
        _messages.reset(token)


class _Gate(logging.Handler):
    """A handler beside those of a library's logger: keeps the messages of a block, and lets all others pass.

    threshold: the level that the user has set for the library, below which nothing is printed. Warnings are logged
    all the same: they are the only sign that weights were missing and were filled with random numbers.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self.logger = logger
        self.threshold = logging.NOTSET
        self.propagates = False

    @classmethod
    def watch(cls, logger: logging.Logger) -> None:
        """Add a gate unless there is one, and extend it to handlers and settings that are new since."""
        gate = next((handler for handler in logger.handlers if isinstance(handler, cls)), None)
        if gate is None:
            gate = cls(logger)
            logger.addHandler(gate)
        if logger.propagate:  # through the gate from now on
            gate.propagates, logger.propagate = True, False
        if logger.level > logging.WARNING:
            gate.threshold = logger.level
            logger.setLevel(logging.WARNING)
        elif logger.level < logging.WARNING:
            gate.threshold = logging.NOTSET
        for handler in logger.handlers:
            if handler is not gate and gate.passes not in handler.filters:
                handler.addFilter(gate.passes)

    def passes(self, record: logging.LogRecord) -> bool:
        """Return whether a record goes on to the library's own handlers."""
        kept = _messages.get() is not None and record.levelno < logging.ERROR and not _is_loud()
        return not kept and record.levelno >= self.threshold

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record of a block, and propagate others to the loggers above, as before."""
        said = _messages.get()
        if said is not None and record.levelno < logging.ERROR:
            said.append(record.getMessage())
        above = self.logger.parent
        if self.propagates and not self.logger.propagate and above is not None and self.passes(record):
            above.callHandlers(record)


def _is_loud() -> bool:
    return any(name in os.environ for name in LOUD)


def _unless(words: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: words not in record.getMessage()


def _switch_bars_off() -> None:
    for name in ("diffusers", "transformers"):
        bars = getattr(getattr(sys.modules.get(name), "utils", None), "logging", None)
        if bars is not None and bars.is_progress_bar_enabled():
            bars.disable_progress_bar()
