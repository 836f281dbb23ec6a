"""Differences between the records of two images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHORT = 10  # characters of a hash in the table; --json has all of it


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {name: (value in a, value in b)} of all entries that differ.

    a, b: images as `diagnostics.inspect` describes them. Our records are compared entry by entry (`versions.torch`);
    where one of the images has none, the settings of A1111's text are. A missing value is None.
    """
    kind = "recipe" if a["recipe"] and b["recipe"] else "settings"
    left, right = (_flat(facts[kind] or {}) for facts in (a, b))
    order = list(a[kind] or {})
    names = list(left) + [name for name in right if name not in left]
    names.sort(key=lambda name: order.index(whole) if (whole := name.partition(".")[0]) in order else len(order))
    found = {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}
    for template, prompt in (("template", "prompt"), ("negative_template", "negative_prompt")):
        if found.get(template) == found.get(prompt):
            found.pop(template, None)
    if a["pixels"] and b["pixels"] and a["pixels"] != b["pixels"]:
        found["pixels"] = a["pixels"], b["pixels"]
    return found


def difference_table(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Format the differences as rows of text: a name, and the values of the first and the second image, a line each."""
    rows = []
    for name, values in difference(a, b).items():
        first, second = (_words(name, value) for value in values)
        rows.append((name.replace("_", " "), f"{first}\n{second}"))
    return rows


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested entries to dotted names."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _words(name: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if name.endswith("_hash"):
        return str(value)[:SHORT]
    return f"{value:g}" if isinstance(value, float) else str(value).replace("\n", " ")
