"""Options of `t2i generate`, one file per heading of its help page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Any], Any]


class SectionOption(click.Option):
    """An option that stands under a heading of its own."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help page lists its options under headings, in the order in which they first come.

    Options without a heading are the last; the argument is told of in words.
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


def section(heading: str) -> Callable[..., Decorator]:
    """`click.option` for options under this heading."""

    def option(*args: Any, **kwargs: Any) -> Decorator:
        return click.option(*args, cls=SectionOption, section=heading, **kwargs)

    return option


def together(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in this order."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate
