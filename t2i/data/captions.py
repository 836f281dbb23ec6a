"""Caption templates and dropping: from a row of the table to the text that the model is given.

A template is text with fields: `{object}` stands for the row's value in column `object`, `{a object}` for the same
with its article ("a horse", "an elephant", "sunflowers"). A template applies only to rows in which all its fields have
a value, so that one list of templates serves rows with a known object and rows without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from t2i.config import Captions
from t2i.errors import DataError
from t2i.randomness import derive_seed

FIELD = re.compile(r"\{(a )?([^{}]+)\}")


def caption(row: Mapping[str, str], captions: Captions, seed: int, index: int) -> str:
    """Return the caption of one visit: a pure function of its arguments.

    row: column -> value.  index: the global image index, which decides the template and whether the caption is dropped.
    Returns "" when dropped, or when no template fits the row.  Raises DataError: no such column.
    """
    dropped = derive_seed(seed, "caption-drop", index) < captions.drop * 2**63  # uniform in 63 bits
    if captions.column is not None:
        return "" if dropped else _value(row, captions.column)
    choices = _choices(row, captions)
    if dropped or not choices:
        return ""
    return fill(choices[derive_seed(seed, "caption", index) % len(choices)], row)


def all_captions(columns: Mapping[str, Sequence[str]], captions: Captions) -> Iterator[str]:
    """Yield every distinct caption of a table, in a fixed order, without the empty one.

    Raises DataError where the config and the table do not fit: see `check`.
    """
    check(columns, captions)
    if captions.column is not None:
        yield from dict.fromkeys(text for text in columns[captions.column] if text)
        return
    assert captions.by is not None
    names = sorted({captions.by, *(f for group in captions.templates.values() for t in group for f in fields(t))})
    seen: set[str] = set()
    for values in sorted(set(zip(*(columns[name] for name in names), strict=True))):
        row = dict(zip(names, values, strict=True))
        for template in _choices(row, captions):
            text = fill(template, row)
            if text not in seen:
                seen.add(text)
                yield text


def check(columns: Mapping[str, Sequence[str]], captions: Captions) -> None:
    """Check before training that every row can get a caption.

    Raises DataError: a column or field that the table lacks, or a value of `by` that has no templates.
    """
    for name in (captions.column, captions.by):
        if name is not None and name not in columns:
            raise _no_column(name, columns)
    for group, templates in captions.templates.items():
        for template in templates:
            for name in fields(template):
                if name not in columns:
                    raise _no_column(name, columns, f"template {template!r} of {group!r}: ")
    if captions.by is not None:
        without = sorted(set(columns[captions.by]) - set(captions.templates))
        if without:
            raise DataError(
                f"captions: no templates for {captions.by} {', '.join(map(repr, without[:5]))}; "
                f"there are templates for {', '.join(map(repr, captions.templates))}",
                "add a list of templates, or an empty list for rows that shall have no caption",
            )


def fields(template: str) -> tuple[str, ...]:
    """Return the columns that a template needs."""
    return tuple(name for _, name in _parse(template))


def fill(template: str, row: Mapping[str, str]) -> str:
    """Fill a template with the row's values."""
    return FIELD.sub(lambda m: (with_article if m[1] else str)(_value(row, m[2])), template)


def with_article(noun: str) -> str:
    """Return `noun` with a or an; plurals stay bare ("sunflowers"). By spelling, so rare words may come out wrong."""
    word = noun.lower()
    if word.endswith("s") and not word.endswith(("ss", "us", "is", "as")):
        return noun
    sounds_open = word[:1] in tuple("aeiou") or word.startswith(("hour", "honest", "heir"))
    sounds_closed = word.startswith(("uni", "use", "eu", "one", "ufo", "uku"))
    return f"{'an' if sounds_open and not sounds_closed else 'a'} {noun}"


def _choices(row: Mapping[str, str], captions: Captions) -> list[str]:
    """Return the templates that fit a row: of its group, with a value for every field."""
    assert captions.by is not None
    templates = captions.templates.get(_value(row, captions.by), ())
    return [t for t in templates if all(_value(row, name) for name in fields(t))]


def _value(row: Mapping[str, str], name: str) -> str:
    if name not in row:
        raise _no_column(name, row)
    return row[name]


@lru_cache(maxsize=4096)  # parsed at every visit otherwise
def _parse(template: str) -> tuple[tuple[str, str], ...]:
    return tuple((m[1] or "", m[2]) for m in FIELD.finditer(template))


def _no_column(name: str, columns: Mapping[str, object], prefix: str = "captions: ") -> DataError:
    return DataError(f"{prefix}no column {name!r}; the data has {', '.join(map(repr, columns)) or 'none'}")
