"""Values as the JSON of a record holds them, with no folder of this machine in them; and whether they came back."""

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
    """A model's name as others may see it: a Hub id or a plain name as it is, of any other path the last part."""
    path = model.replace("\\", "/").rstrip("/")
    is_path = path.startswith(("/", ".", "~")) or ":" in path or path.count("/") > 1
    return path.rpartition("/")[2] if is_path else path


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config as JSON can hold it: no private entries, no tuples, no folders of this machine."""
    plain: dict[str, Any] = _plain(dict(config))
    return plain


def is_of_kind(value: object, kind: str) -> bool:
    """Whether a JSON value is of a field's type."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if kind == "list[dict[str, Any]]":
        return isinstance(value, list) and all(_is_flat(item) for item in value)
    if kind == "dict[str, str]":
        return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    return isinstance(value, _KINDS[kind]) and not isinstance(value, bool)


def _is_flat(value: object) -> bool:
    """Whether it is an object of texts and finite numbers."""
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
    """DPM++ schedulers hold -inf, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: infinities_to_words(item) for key, item in value.items()}
    if isinstance(value, list):
        return [infinities_to_words(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def words_to_infinities(value: Any) -> Any:
    """The way back."""
    if isinstance(value, dict):
        return {key: words_to_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [words_to_infinities(item) for item in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
