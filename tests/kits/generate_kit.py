"""What the tests of `t2i generate` share; its fixture `t2i` is in conftest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# The tokenizers of these families know few words: 5 tokens, and more than 75
SHORT = "a horse, a cat"
LONG = ", ".join(["a horse by van gogh"] * 14)


class Ran(NamedTuple):
    """What one call left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Run = Callable[..., Ran]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
