r"""Weights in a prompt, as A1111 writes them: how strongly its words are to be felt.

| written | weight |
| --- | --- |
| `(red:1.2)`, `(a red barn:0.7)` | the number |
| `(red)`, `((red))` | 1.1, 1.1 x 1.1 |
| `[red]`, `[[red]]` | 1 / 1.1, 1 / 1.1 / 1.1 |
| `\(`, `\)`, `\[`, `\]` | 1: the bracket itself |

Brackets within brackets multiply. A bracket without its partner is itself, and so is the end of `(16:9)`, where a
whole number follows a digit.

People also write brackets as in prose, "a horse (brown)". So a prompt is read this way only where it can be meant:
where at least one weight has a number, a bracket is doubled or one is escaped. Any other prompt is plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from t2i.errors import UsageError

EMPHASIS = 1.1
MAX_WEIGHT = 10.0  # of one number, and of brackets within brackets; beyond 1.6 pictures begin to fall apart
_NUMBER = r"(?::\s{0,9}(\d*\.\d+|\d+\.)|(?<!\d):\s{0,9}(\d+))\s{0,9}\)"
_SPECIAL = re.compile(rf"\\[()\[\]]|[()\[\]]|{_NUMBER}", re.ASCII)


class Fragment(NamedTuple):
    """Words of a prompt that have one weight.  weight: at least 0; 1 is as if nothing were said."""

    text: str
    weight: float = 1.0


def parse(prompt: str) -> list[Fragment]:
    """The prompt in pieces; put together, their texts are the prompt without what says the weights.

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
    """The prompt without its weights."""
    return "".join(fragment.text for fragment in parse(prompt))


def has_weights(prompt: str) -> bool:
    """Whether anything in the prompt is read as said above: if not, it is plain text."""
    return _read(prompt)[1]


def with_numbers(prompt: str) -> str:
    """A prompt of A1111, where single brackets are weights too, as one that means the same here."""
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
    """`parse`, with every weight in its range.  Raises UsageError."""
    fragments = parse(prompt)
    for text, weight in fragments:
        if not weight <= MAX_WEIGHT:
            message = f"prompt: weight {weight:g} of {text.strip()[:40]!r}, expected 0 to {MAX_WEIGHT:g}"
            raise UsageError(message, r"write \( for a bracket that is meant as one; --raw takes the prompt as it is")
    return fragments


def _read(prompt: str) -> tuple[list[tuple[str, float | None]], bool]:
    """Texts (text, 1), brackets that open ("", factor) and that close ("", None), in their order, each with its
    partner; and whether something stands there that plain prose does not hold.
    """
    marks: list[tuple[str, float | None]] = []
    waiting: list[tuple[str, int, int]] = []  # brackets that are open: which, its mark, its place in the prompt
    many = {"(": 0, "[": 0}  # how many of each
    closed = (-1, -1)  # the places of the last pair
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
            while waiting[-1][0] != kind:  # it was opened within these and never closed: a bracket as any letter
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
