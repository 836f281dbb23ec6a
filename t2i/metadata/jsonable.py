"""JSON-safe values for records, free of this machine's folders; and the check of values that are read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "str | None": (str, type(None)),
    "dict[str, Any]": (dict,),
    "dict[str, str]": (dict,),
    "list[dict[str, Any]]": (list,),
}


def public_name(model: str) -> str:
    """Return a model's name fit for others to see: a Hub id or plain name unchanged, else the last part of the path."""
    path = model.replace("\\", "/").rstrip("/")
    is_path = path.startswith(("/", ".", "~")) or ":" in path or path.count("/") > 1
    return path.rpartition("/")[2] if is_path else path


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's config as JSON can hold it: no private entries, no tuples, no folders of this machine."""
    plain: dict[str, Any] = _plain(dict(config))
    return plain


def is_of_kind(value: object, kind: str) -> bool:
    """Return whether a JSON value has a field's type."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if kind == "list[dict[str, Any]]":
        return isinstance(value, list) and all(_is_flat(item) for item in value)
    if kind == "dict[str, str]":
        return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    return isinstance(value, _KINDS[kind]) and not isinstance(value, bool)


def _is_flat(value: object) -> bool:
    """Return whether it is an object of texts and finite numbers."""
    items = value.values() if isinstance(value, dict) else [value]
    return isinstance(value, dict) and all(is_of_kind(item, "str") or is_of_kind(item, "float") for item in items)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        hidden = ("_name_or_path", "_use_default_values")
        return {str(key): _plain(item) for key, item in value.items() if key not in hidden}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return public_name(value) if value.startswith(("/", "~", "\\")) else value
    return value if value is None or isinstance(value, bool | int | float) else type(value).__name__


def infinities_to_words(value: Any) -> Any:
    """Write infinities as text: DPM++ schedulers hold -inf, for which JSON has no number."""
    if isinstance(value, dict):
        return {key: infinities_to_words(item) for key, item in value.items()}
    if isinstance(value, list):
        return [infinities_to_words(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def words_to_infinities(value: Any) -> Any:
    """Undo `infinities_to_words`."""
    if isinstance(value, dict):
        return {key: words_to_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [words_to_infinities(item) for item in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
