"""Print every command's help as one page: python scripts/help_pages.py > docs/commands.md (a test keeps it current)."""

from __future__ import annotations

from collections.abc import Iterator

import click

from t2i.cli.main import cli

WIDTH = 100
HEAD = """# Commands

What `--help` says, for every command. Made by `python scripts/help_pages.py > docs/commands.md`.
"""


def pages(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Yield (full name, help text) of a command and of every command below it."""
    ctx = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    ctx.help_option_names = ["-h", "--help"]
    yield ctx.command_path, command.get_help(ctx)
    if isinstance(command, click.Group):
        for child in command.list_commands(ctx):
            below = command.get_command(ctx, child)
            assert below is not None
            yield from pages(below, child, ctx)


def markdown() -> str:
    """Return the whole page."""
    sections = [f"## `{name}`\n\n```text\n{text}\n```\n" for name, text in pages(cli, "t2i")]
    return "\n".join([HEAD, *sections])


if __name__ == "__main__":
    print(markdown(), end="")
