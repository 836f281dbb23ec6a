r"""Attention weights in a prompt, in A1111's syntax.

| written | weight |
| --- | --- |
| `(red:1.2)`, `(a red barn:0.7)` | the number |
| `(red)`, `((red))` | 1.1, 1.1 x 1.1 |
| `[red]`, `[[red]]` | 1 / 1.1, 1 / 1.1 / 1.1 |
| `\(`, `\)`, `\[`, `\]` | 1: the bracket itself |

Nested brackets multiply. A bracket without its partner is literal, and so is the end of `(16:9)`, where a whole number
follows a digit.

People also write brackets as in prose, "a horse (brown)". So a prompt is parsed only where weights can be meant: where
at least one weight has a number, a bracket is doubled or one is escaped. Any other prompt is plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from t2i.errors import UsageError

EMPHASIS = 1.1
MAX_WEIGHT = 10.0  # of one number, and of nested brackets; beyond 1.6 images begin to fall apart
_NUMBER = r"(?::\s{0,9}(\d*\.\d+|\d+\.)|(?<!\d):\s{0,9}(\d+))\s{0,9}\)"
_SPECIAL = re.compile(rf"\\[()\[\]]|[()\[\]]|{_NUMBER}", re.ASCII)


class Fragment(NamedTuple):
    """A part of a prompt with one weight.  weight: at least 0; 1 is neutral."""

    text: str
    weight: float = 1.0


def parse(prompt: str) -> list[Fragment]:
    """Split a prompt into fragments, whose joined texts are the prompt without the syntax of weights.

    Neighbours differ in weight; none is empty, unless the prompt is.  Never fails.
    """
    marks, meant = _read(prompt)
    if not meant:
        return [Fragment(prompt)]
    pieces: list[Fragment] = []
    weights = [1.0]
    for text, factor in marks:
        if factor is None:
            weights.pop()
        elif not text:
            weights.append(weights[-1] * factor)
        elif pieces and pieces[-1].weight == weights[-1]:
            pieces[-1] = Fragment(pieces[-1].text + text, weights[-1])
        else:
            pieces.append(Fragment(text, weights[-1]))
    return pieces or [Fragment("")]


def words(prompt: str) -> str:
    """Return the prompt without its weights."""
    return "".join(fragment.text for fragment in parse(prompt))


def has_weights(prompt: str) -> bool:
    """Return whether the prompt has weights or escapes; otherwise it is plain text."""
    return _read(prompt)[1]


def with_numbers(prompt: str) -> str:
    """Convert a prompt of A1111, where single brackets are weights too, to one with the same meaning here."""
    marks, meant = _read(prompt)
    if meant or all(text for text, _ in marks):
        return prompt
    parts, factors = [], []
    for text, factor in marks:
        if text:
            parts.append(text)
        elif factor is not None:
            factors.append(factor)
            parts.append("(")
        else:
            parts.append(f":{factors.pop():.4g})")
    return "".join(parts)


def check_weights(prompt: str) -> Sequence[Fragment]:
    """Parse a prompt and check the range of every weight.  Raises UsageError."""
    fragments = parse(prompt)
    for text, weight in fragments:
        if not weight <= MAX_WEIGHT:
            message = f"prompt: weight {weight:g} of {text.strip()[:40]!r}, expected 0 to {MAX_WEIGHT:g}"
            raise UsageError(message, r"write \( for a literal bracket; `raw` takes the prompt as it is")
    return fragments


def _read(prompt: str) -> tuple[list[tuple[str, float | None]], bool]:
    """Return marks, and whether the prompt holds anything that plain prose does not.

    A mark is a text (text, 1), an opening bracket ("", factor) or a closing one ("", None); brackets come in pairs.
    """
    marks: list[tuple[str, float | None]] = []
    waiting: list[tuple[str, int, int]] = []  # open brackets: kind, index of the mark, position in the prompt
    many = {"(": 0, "[": 0}  # how many of each
    closed = (-1, -1)  # positions of the last pair
    meant, at = False, 0
    for match in _SPECIAL.finditer(prompt):
        found, number = match[0], match[1] or match[2]
        if at < match.start():
            marks.append((prompt[at : match.start()], 1.0))
        at = match.end()
        kind = "[" if found == "]" else "("
        if found in many:
            waiting.append((found, len(marks), at))
            many[found] += 1
            marks.append((found, 1.0))
        elif found[0] == "\\" or not many[kind]:
            meant = meant or found[0] == "\\"
            marks.append((found.removeprefix("\\"), 1.0))
        else:
            while waiting[-1][0] != kind:  # opened inside of this pair and never closed: a literal bracket
                many[waiting.pop()[0]] -= 1
            many[kind] -= 1
            _, mark, start = waiting.pop()
            meant = meant or number is not None or closed == (start + 1, at - 1)
            closed = start, at
            marks[mark] = "", float(number) if number else EMPHASIS if kind == "(" else 1 / EMPHASIS
            marks.append(("", None))
    if at < len(prompt):
        marks.append((prompt[at:], 1.0))
    return marks, meant
