"""Every option of `t2i generate` and `t2i sample` as one page, from the records in t2i/config.

python scripts/options_reference.py > docs/reference/options.md  # a test says when that is due
"""

from __future__ import annotations

import re
from pathlib import Path

from t2i.api import DRAW, LOAD
from t2i.config.option import Known, Options
from t2i.config.options import GenerateOptions
from t2i.config.sample_options import SampleOptions

HEAD = """# Options

Every option of `t2i generate` and of `t2i sample`: its flags, its name in Python and in rows of
[prompt files](../batches.md#files-of-prompts), the values it takes. Other names that are understood are in brackets.

Made by `python scripts/options_reference.py > docs/reference/options.md` from the records in `t2i/config/`.
"""
COLUMNS = "| flags | {name} | values | meaning |\n| --- | --- | --- | --- |\n"
KINDS = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path"}


def where(known: Known) -> str:
    """Return where an option of `t2i generate` may be given beside the command line."""
    names = [f"`{known.name}`", *(f"`{name}`" for name in known.option.aliases if name != known.name)]
    shown = names[0] + (f" ({', '.join(names[1:])})" if names[1:] else "")
    places = [place for place, there in (("load", LOAD), ("call", DRAW)) if known.name in there]
    if known.option.scope == "row" or known.name == "prompt":
        other = "" if known.row_name == known.name else f" as `{known.row_name}`"
        places.append(f"row{other}")
    return f"{shown}: {', '.join(places)}" if places else shown


def values(known: Known) -> str:
    """The type and range of one value."""
    choices = " or ".join(f"`{choice}`" for choice in known.choices)
    kind = choices or KINDS.get(known.kind, "path or image" if known.name in ("image", "mask") else "text")
    low, high = known.low, known.high
    if low is not None or high is not None:
        kind += "".join(
            f", {sign} {_number(end)}" for sign, end in (("at least", low), ("at most", high)) if end is not None
        )
    return f"{kind}; repeatable" if known.option.many else kind


def _number(value: float) -> str:
    return "2^64 - 1" if value == 2**64 - 1 else f"{value:,g}" if value < 1e6 else f"{value:,.0f}"


def table(record: type[Options], python: bool) -> str:
    """The options of a record under their headings.  python: say where else they may be given."""
    parts: dict[str, str] = {}
    for known in record.table().values():
        option = known.option
        name = where(known) if python else f"`{known.name}`"
        value = f" `{option.metavar}`" if option.metavar else ""
        flags = ", ".join(f"`{flag}`" for flag in option.flags) + value
        meaning = re.sub(r"([\\_*\[\]`])", r"\\\1", option.help.strip()).replace("<", "&lt;")
        row = " | ".join(cell.replace("|", "\\|") for cell in (flags, name, values(known), meaning))
        parts[option.heading] = parts.get(option.heading, "") + f"| {row} |\n"
    head = COLUMNS.format(name="name: where else" if python else "name")
    return "\n".join(f"### {heading or 'Other'}\n\n{head}{rows}" for heading, rows in parts.items())


def markdown() -> str:
    """The whole page."""
    legend = "`load`: an argument of `t2i.load`; `call`: of the model that it returns; `row`: a key of a row.\n"
    return (
        f"{HEAD}\n## `t2i generate`\n\n{legend}\n{table(GenerateOptions, True)}"
        f"\n## `t2i sample`\n\n{table(SampleOptions, False)}"
    )


if __name__ == "__main__":
    print(markdown(), end="")
