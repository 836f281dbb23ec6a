"""One place that keeps the libraries underneath from talking past us.

Transformers warns about torchvision, which nothing here needs, about weights, and about long prompts; diffusers about
configs of models it has drawn with for years. What matters of that is said by us, in our words. Errors are not touched:
they are exceptions and pass through. Whoever sets DIFFUSERS_VERBOSITY or TRANSFORMERS_VERBOSITY hears everything.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

LIBRARIES = ("diffusers", "transformers", "huggingface_hub", "accelerate")


# Who says something at its first import, and how that begins: of torchao's files for GPUs, its classes of yesterday.
AT_IMPORT = {
    "transformers.utils.import_utils": "requires torchvision",
    "torchao": "Failed to load",
    "torch.utils._pytree": "register_constant",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao`",
}


def _unless(words: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: words not in record.getMessage()


class _Keep(logging.Handler):
    """Keeps what a library says below the level of an error; errors go on to stderr."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            self.said.append(record.getMessage())
        else:
            print(self.format(record), file=sys.stderr)


def prepare_libraries() -> None:
    """Call before the first import of diffusers: remote code off for good, and no word at its import."""
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"  # read once, when diffusers is imported
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        for name, words in AT_IMPORT.items():
            # The module that says it; a filter on a parent logger would not see what its children say.
            logger = logging.getLogger(name)
            if not logger.filters:
                logger.addFilter(_unless(words))


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Within this block the libraries' warnings and loading bars are kept from stderr; yields what they said.

    Changes settings of the whole process for as long as it lasts; blocks may be nested. Import the libraries first.
    """
    keep = _Keep()
    if "DIFFUSERS_VERBOSITY" in os.environ or "TRANSFORMERS_VERBOSITY" in os.environ:
        yield keep.said
        return
    with ExitStack() as restore:
        for name in LIBRARIES:
            logger = logging.getLogger(name)
            restore.callback(_set_handlers, logger, logger.handlers, logger.propagate)
            _set_handlers(logger, [keep], False)
        for name in ("diffusers", "transformers"):
            bars = getattr(getattr(sys.modules.get(name), "utils", None), "logging", None)
            if bars is not None and bars.is_progress_bar_enabled():
                bars.disable_progress_bar()
                restore.callback(bars.enable_progress_bar)
        restore.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield keep.said


def _set_handlers(logger: logging.Logger, handlers: list[logging.Handler], propagate: bool) -> None:
    logger.handlers, logger.propagate = handlers, propagate
