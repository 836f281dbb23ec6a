"""Changing one value in the text of a YAML file: comments, order and spelling of everything else stay as they are.

Where things stand comes from PyYAML's own parser. What an edit cannot do neatly comes out as a text that says something
else or lacks a comment; `same_but` finds that, and whoever writes the text asks it first.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

TextEdit = tuple[int, int, str]  # characters from, to (exclusive), and what takes their place


def put(text: str, keys: Sequence[str], value: Any, same: Callable[[str], bool]) -> str:
    """The text with the value under the keys, one per level; sections that are missing are made.

    same: whether a key at the last level is another name of the last one; such a key takes the new name.
    """
    root = node = yaml.compose(text, yaml.SafeLoader)
    if root is None:
        return _at_end(text, _block(keys, value))
    for depth, key in enumerate(keys[:-1]):
        assert isinstance(node, MappingNode)
        below = next((pair for pair in node.value if pair[0].value == key), None)
        if below is None:
            return _insert(text, node, keys[depth:], value, node is root)
        name, node = below
        if not isinstance(node, MappingNode):  # a section with nothing in it, or with comments alone
            lines = textwrap.indent(_block(keys[depth + 1 :], value), " " * (name.start_mark.column + 2))
            return _after_line(text, node.end_mark.index, lines)
    assert isinstance(node, MappingNode)
    found = [pair for pair in node.value if pair[0].value == keys[-1] or same(pair[0].value)]
    if not found:
        return _insert(text, node, keys[-1:], value, node is root)
    (name, old), *others = found
    edits = [_new_value(text, name, old, value)]
    if name.value != keys[-1]:
        edits.append((*_span(text, name), keys[-1]))
    edits += [_removal(text, node, pair) for pair in others]
    return _apply(text, edits)


def remove(text: str, keys: Sequence[str]) -> str:
    """The text without what the keys name, which is there; comments within and beside it stay."""
    node = yaml.compose(text, yaml.SafeLoader)
    for key in keys[:-1]:
        assert isinstance(node, MappingNode)
        node = next(value for name, value in node.value if name.value == key)
    assert isinstance(node, MappingNode)
    pair = next(pair for pair in node.value if pair[0].value == keys[-1])
    return _apply(text, [_removal(text, node, pair)])


def same_but(old: str, new: str, values: Any) -> bool:
    """Return whether the new text says these values, and keeps every comment of the old one in its order."""
    try:
        said = yaml.safe_load(new)
        kept = comments(new)
    except (yaml.YAMLError, ValueError):
        return False
    # As JSON, in which true and 1 differ and the order of keys does not count.
    return json.dumps(said or {}, sort_keys=True) == json.dumps(values, sort_keys=True) and kept == comments(old)


def comments(text: str) -> list[str]:
    """Every comment, in order."""
    return _comments_in(text, yaml.compose(text, yaml.SafeLoader), 0, len(text))


def _comments_in(text: str, node: Node | None, start: int, end: int) -> list[str]:
    """The comments between two places: what begins with # outside of every scalar."""
    bare = list(text)
    for scalar in _scalars(node):
        a, b = _span(text, scalar)
        if scalar.style in ("|", ">"):  # after its mark there may be a comment
            a = text.find("\n", a) if "\n" in text[a:b] else b
        bare[a:b] = "_" * (b - a)
    return [found.rstrip() for found in re.findall("#[^\n]*", "".join(bare[start:end]))]


def _scalars(node: Node | None) -> Iterator[ScalarNode]:
    if isinstance(node, ScalarNode):
        yield node
    elif isinstance(node, CollectionNode):
        for child in node.value:
            for one in child if isinstance(child, tuple) else (child,):
                yield from _scalars(one)


def _span(text: str, node: Node) -> tuple[int, int]:
    """Return where a node begins and ends, without the empty lines and comments after it that PyYAML counts in."""
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, CollectionNode) and not node.flow_style:
        last = node.value[-1]
        end = _span(text, last[1] if isinstance(last, tuple) else last)[1]
    elif isinstance(node, ScalarNode) and node.style in ("|", ">"):
        end = start + len(text[start:end].rstrip())
    return start, end


def _new_value(text: str, name: Node, old: Node, value: Any) -> TextEdit:
    start, end = _span(text, old)
    between = text[name.end_mark.index : start]
    if start == end or ("\n" in between and "#" not in between):  # none yet, or a list below its key
        return name.end_mark.index, end, f": {_flow(value)}"
    return start, end, _flow(value)


def _removal(text: str, mapping: MappingNode, pair: tuple[Node, Node]) -> TextEdit:
    """Return the edit that takes an entry out of its mapping."""
    start, end = pair[0].start_mark.index, _span(text, pair[1])[1]
    k = mapping.value.index(pair)
    if mapping.flow_style:
        if k + 1 < len(mapping.value):
            return start, mapping.value[k + 1][0].start_mark.index, ""
        return (_span(text, mapping.value[k - 1][1])[1] if k else start), end, ""
    indent = text[text.rfind("\n", 0, start) + 1 : start]
    kept = f"\n{indent}".join(_comments_in(text, mapping, start, end))
    line_end = text.find("\n", end) + 1 or len(text)
    rest = text[end:line_end]
    if kept or rest.strip():
        return start, end + len(rest) - len(rest.lstrip(" \t")), kept + "\n" + indent if kept and rest.strip() else kept
    return start - len(indent), line_end, ""


def _insert(text: str, mapping: MappingNode, keys: Sequence[str], value: Any, is_root: bool) -> str:
    if mapping.flow_style:
        at = mapping.end_mark.index - 1
        entry = _flow(_nested(keys, value))[1:-1]
        return text[:at] + (", " if mapping.value else "") + entry + text[at:]
    if is_root:
        return _at_end(text, _block(keys, value))
    lines = textwrap.indent(_block(keys, value), " " * mapping.start_mark.column)
    return _after_line(text, _span(text, mapping)[1], lines)


def _after_line(text: str, place: int, lines: str) -> str:
    """The lines put in below the one that a place is in."""
    end = text.find("\n", place) + 1
    return text[:end] + lines + text[end:] if end else _at_end(text, lines)


def _at_end(text: str, lines: str) -> str:
    return text + ("\n" if text and not text.endswith("\n") else "") + lines


def _apply(text: str, edits: list[TextEdit]) -> str:
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _nested(keys: Sequence[str], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value


def _block(keys: Sequence[str], value: Any) -> str:
    """The entry on lines of its own."""
    return yaml.safe_dump(_nested(keys, value), sort_keys=False, allow_unicode=True, width=math.inf)


def _flow(value: Any) -> str:
    """The value on one line."""
    return yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)[1:-2]
