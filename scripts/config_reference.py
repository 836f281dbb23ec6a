"""Every key of a training config as one page, from the models in t2i/config: what they check and what they say of it.

python scripts/config_reference.py > docs/reference/config.md  # a test says when that is due
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from t2i.config import FAMILIES, Data, Evaluate, Judged, Run

HEAD = """# Config keys

A training config is a YAML file, given to [`t2i train`](../train.md) by its path or, if it comes with t2i, by its
name. `--set KEY=VALUE` overrides a key, by the dotted names below. An unknown key or a value out of range is an error
that says what is allowed. Durations and intervals are counted in images seen, not in steps.

Made by `python scripts/config_reference.py > docs/reference/config.md` from the models in `t2i/config/`.
"""
COLUMNS = "| key | type | default | range | meaning |\n| --- | --- | --- | --- | --- |\n"
ENTRY = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)")  # of a docstring: name: meaning
NAMES: dict[Any, str] = {int: "integer", float: "number", bool: "true or false", str: "text"}
PLURALS: dict[Any, str] = {int: "integers", float: "numbers", str: "texts"}
LONGEST = 40  # characters of a default that is shown


class Key(NamedTuple):
    """One key of a config."""

    path: str
    type: str
    default: str
    range: str
    meaning: str


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what a model says of its own fields: beside or above them in comments, or by name in its docstring."""
    source = textwrap.dedent(inspect.getsource(model))
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    found = _rows(inspect.getdoc(model) or "")
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            number = node.lineno - 1
            while number in comments and lines[number - 1].lstrip().startswith("#"):
                above.insert(0, comments[number])
                number -= 1
            beside = comments.get(node.end_lineno or node.lineno)
            if said := " ".join([*above, *([beside] if beside else [])]):
                found[node.target.id] = said
    return found


def _rows(doc: str) -> dict[str, str]:
    """{name: meaning} of the lines `name: meaning` of a docstring, each with what continues it."""
    found: dict[str, str] = {}
    for paragraph in doc.split("\n\n"):
        names: list[str] = []
        for line in paragraph.splitlines():
            if match := ENTRY.fullmatch(line):
                names = match[1].split(", ")
                found |= dict.fromkeys(names, match[2])
            else:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def keys(model: type[BaseModel], prefix: str = "", without: tuple[type[BaseModel], ...] = ()) -> Iterator[Key]:
    """Every key of a model, in order; sections after their own line.  without: models whose fields are left out."""
    left_out = {name for other in without for name in other.model_fields}
    said: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            said |= meanings(base)
    for name, field in model.model_fields.items():
        if name in left_out:
            continue
        path = prefix + name
        section, many = _section(field.annotation)
        if section is None:
            yield Key(path, _type(field.annotation), _default(field), _range(field), said.get(name, "").rstrip("."))
            continue
        kind = "list of sections" if many else "section"
        default = "required" if field.is_required() else ("`null`" if field.default is None else "as below")
        meaning = said.get(name) or _first_sentence(section)
        if section is Data and prefix + name != "data":
            yield Key(path, kind, default, "", f"{meaning}; keys as those of `data`")
        elif section is Evaluate and model is not Judged:
            continue
        else:
            yield Key(path, kind, default, "", meaning)
            yield from keys(section, f"{path}[]." if many else f"{path}.")


def _section(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model that a field holds, and whether it holds several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    inner = [_section(arg)[0] for arg in typing.get_args(annotation)]
    model = next((one for one in inner if one is not None), None)
    return model, model is not None and typing.get_origin(annotation) is tuple


def _first_sentence(model: type[BaseModel]) -> str:
    text = " ".join((inspect.getdoc(model) or "").split("\n\n")[0].split())
    return text.rstrip(".")


def _type(annotation: Any) -> str:
    """A type as a user of YAML would say it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("`null`" if arg is type(None) else _type(arg) for arg in args)
    if origin is tuple:
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"list of {count}{PLURALS.get(args[0]) or _type(args[0])}"
    if origin is dict:
        return f"map from {_type(args[0])} to {_type(args[1])}"
    return NAMES[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "`null`"
    value = field.default
    text = f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else ""
    plain = list(value) if isinstance(value, tuple) else value
    text = text or yaml.safe_dump(plain, default_flow_style=True, width=1000).strip().removesuffix("\n...")
    return f"`{text}`" if len(text) <= LONGEST else f"`{text[:LONGEST]}...`"


def _range(field: FieldInfo) -> str:
    """The bounds that pydantic checks."""
    low, high, parts = "", "", []
    for bound in field.metadata:
        for name, sign in (("gt", "above"), ("ge", "at least")):
            if getattr(bound, name, None) is not None:
                low = f"{sign} {_number(getattr(bound, name))}"
        for name, sign in (("lt", "below"), ("le", "at most")):
            if getattr(bound, name, None) is not None:
                high = f"{sign} {_number(getattr(bound, name))}"
        if (length := getattr(bound, "min_length", None)) is not None:
            parts.append(f"at least {length} of them" if length > 1 else "not empty")
    return ", ".join([part for part in (low, high) if part] + parts)


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:g}"


def table(rows: Iterator[Key]) -> str:
    """A Markdown table of keys."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    return COLUMNS + "".join(
        f"| `{row.path}` | {cell(row.type)} | {cell(row.default)} | {row.range} | {cell(row.meaning)} |\n"
        for row in rows
    )


def markdown() -> str:
    """The whole page."""
    sections = [("Every family", "What every training run has, whatever it trains.", table(keys(Run)))]
    data = Key("data", "section", "required", "", _first_sentence(Data))
    path = Key("data.path", "text", "", "", "a single source, in place of `data.sources`")
    sections.append(("Data", "In every family.", table(iter([data, path, *keys(Data, "data.")]))))
    judged = ", ".join(f"`{name}`" for name, model in FAMILIES.items() if issubclass(model, Judged))
    says = (
        f"In {judged}: scores along training, of images drawn by the EMA weights. See [Evaluation](../evaluation.md)."
    )
    sections.append(("Evaluation during training", says, table(keys(Judged, without=(Run,)))))
    for name, model in FAMILIES.items():
        own = (key for key in keys(model, without=(Run, Judged)) if key.path.split(".")[0] not in ("family", "data"))
        says = f"`t2i train {name}`, beside the keys above. `family: {name}` names it in a file."
        sections.append((f"`{name}`", says, table(own)))
    return "\n".join([HEAD, *(f"## {title}\n\n{says}\n\n{rows}" for title, says, rows in sections)])


if __name__ == "__main__":
    print(markdown(), end="")
