"""Click's options of a command, made from the record of its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from t2i.cli import completion_values
from t2i.config.option import Known, Options

Decorator = Callable[[Any], Any]
COMPLETION = {
    "model": completion_values.models,
    "scheduler": completion_values.schedulers,
    "device": completion_values.devices,
    "dtype": completion_values.dtypes,
    "cache": completion_values.caches,
}


class SectionOption(click.Option):
    """An option that is listed under a heading of the help page."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help page lists its options under headings, in the order in which they first come.

    Options without a heading come last; the argument is described in the text.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", "Other"), []).append(record)
        sections["Other"] = sections.pop("Other", [])
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def options_of(record: type[Options]) -> Decorator:
    """Return a decorator that gives a command all options of a record, each under its heading."""

    def decorate(function: Any) -> Any:
        for known in reversed(record.table().values()):
            function = _option(known)(function)
        return function

    return decorate


def _option(known: Known) -> Decorator:
    """Return Click's decorator for one option."""
    option = known.option
    extra: dict[str, Any] = {}
    if known.kind is bool:
        switch = "/" in option.flags[0]
        extra = {"default": known.default} if switch else {"is_flag": True}
    else:
        extra = {"type": _type(known), "metavar": option.metavar, "multiple": option.many}
        if not option.many:
            extra["default"] = known.default
    if option.environment:
        extra |= {"envvar": option.environment, "show_envvar": True}
    if known.name in COMPLETION:
        extra["shell_complete"] = COMPLETION[known.name]
    return click.option(*option.flags, known.name, help=option.help, cls=SectionOption, section=option.heading, **extra)


def _type(known: Known) -> Any:
    """Return the type that Click reads a value with; ranges are checked by the record, for all who use it."""
    if known.choices:
        return click.Choice(known.choices)
    if known.kind is Path:
        return click.Path(path_type=Path, file_okay=known.option.metavar != "FOLDER")
    return known.kind if known.kind in (int, float) else str


def spelled(text: str, command: click.Command) -> str:
    """Return a message of the library with options as they are written on the command line.

    The library names options by their fields, in backticks: `steps`, or `dtype=float32` with a value. A value with
    spaces, such as a path, is quoted, so that the option can be pasted.
    command: whose options they are, its subcommands' included; other words in backticks stay as they are.
    """
    flags = _flags(command)

    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in flags:
            return match[0]
        on, off = flags[name]
        if value in ("True", "False") and (value == "True" or off):
            return on if value == "True" else off
        if not value:
            return on
        return f"{on} {shlex.quote(value)}" if any(map(str.isspace, value)) else f"{on} {value}"

    return re.sub(r"`(\w+)(?:=([^`]+))?`", flag, text)


def _flags(command: click.Command) -> dict[str, tuple[str, str]]:
    """Return the long flag of each option, and the one that switches it off, "" where there is none."""
    found: dict[str, tuple[str, str]] = {}
    for child in getattr(command, "commands", {}).values():
        found |= _flags(child)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name:
            flag = next((flag for flag in parameter.opts if flag.startswith("--")), parameter.opts[0])
            found[parameter.name] = flag, next(iter(parameter.secondary_opts), "")
    return found
