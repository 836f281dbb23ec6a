"""Errors that a user can act on: the cause in one line, a suggestion in the next.

Library code raises these and nothing else on purpose; `cli/main.py` alone turns them into exit codes.
"""


class T2IError(Exception):
    """Something went wrong that a user can act on.

    message: what, got, allowed.  hint: a suggestion, a sentence or a command.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageError(T2IError):
    """An argument or option is outside what is allowed."""

    exit_code = 2


class ConfigError(UsageError):
    """A config file or a --set override is not a valid config."""


class PartialFailure(T2IError):
    """Part of a batch failed; what succeeded is written and listed."""

    exit_code = 3


class ModelUnavailable(T2IError):
    """The model is not available: gated, offline and not cached, or no such id."""

    exit_code = 4


class OutOfMemory(T2IError):
    """The device has too little memory for this request."""

    exit_code = 5


class ModelError(T2IError):
    """Model files are there but cannot be used: damaged, unsafe, or of the wrong kind."""


class ImageError(T2IError):
    """An image cannot be read, or is not safe to read."""


class DataError(T2IError):
    """A data set is missing, empty, or not what the config says."""


class CheckpointError(T2IError):
    """A run folder or checkpoint is missing, damaged, or does not belong to this config."""


class NonFinite(T2IError):
    """Numbers turned into NaN or infinity."""


class Terminated(T2IError):
    """SIGTERM arrived; the state was saved first."""

    exit_code = 143


def one_line(e: Exception, most: int = 200) -> str:
    """Return a library's message on one line, truncated to `most` characters."""
    return " ".join(str(e).split())[:most]
