"""Names and values as lines for a human, safe to print on a terminal."""

from __future__ import annotations

import re

LONGEST = 2_000  # characters of one value; --json has all of it
# Control characters of a hostile file could repaint the terminal; U+202A.. could reorder what is read.
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def aligned(head: str, rows: list[tuple[str, str]]) -> str:
    """Return names and values in two columns below a heading."""
    width = max(len(name) for name, _ in rows) + 2
    lines = [printable(head)]
    for name, value in rows:
        first, *more = printable(value).split("\n")
        lines += [
            f"  {printable(name):<{width}}{first}".rstrip(),
            *(f"  {'':<{width}}{line}".rstrip() for line in more),
        ]
    return "\n".join(lines)


def printable(text: str) -> str:
    """Return the text without control characters, cut where it is too long."""
    text = _CONTROL.sub("\ufffd", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters; --json shows all)"
