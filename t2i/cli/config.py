"""`t2i config`: show and change the user's own defaults."""

from __future__ import annotations

import json
from typing import Any

import click

from t2i.cli import user_config
from t2i.cli.tables import aligned
from t2i.errors import UsageError

EXAMPLES = """\b
Examples:
  t2i config set generate.model sdxl
  t2i config set generate.steps 30
  t2i config set eval.score.n 10000
  t2i config unset generate.steps
"""


@click.group(epilog=EXAMPLES)
def config() -> None:
    """Show and change your defaults for the options of every command.

    They are kept in one YAML file with a section per command. Precedence: an option on the command line, then an
    environment variable, then this file, then the model's own default.
    """


@config.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: path, and values by key.")
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Show all defaults that are set, and check them."""
    values = user_config.read()
    user_config.default_map(_root(ctx))
    rows = _flat(values)
    if as_json:
        click.echo(json.dumps({"path": str(user_config.config_path()), "values": dict(rows)}))
    elif rows:
        click.echo(aligned(str(user_config.config_path()), [(key, _text(value)) for key, value in rows]))
    else:
        click.echo(f"nothing is set in {user_config.config_path()}", err=True)


@config.command()
def path() -> None:
    """Print where the file is, or would be."""
    click.echo(str(user_config.config_path()))


@config.command("set")
@click.argument("key", metavar="COMMAND.OPTION")
@click.argument("words", metavar="VALUE...", nargs=-1, required=True)
@click.pass_context
def set_default(ctx: click.Context, key: str, words: tuple[str, ...]) -> None:
    """Set the default of an option.

    An option that may be repeated takes several values. Put -- before a value that begins with a hyphen. Comments in
    the file stay.
    """
    from t2i.config import yaml_edit

    *parents, last = keys = _keys(key)
    root = _root(ctx)
    option = user_config.find_option(root, keys)
    value = user_config.convert(root, option, keys, list(words))
    values = user_config.read()
    section = values
    for parent in parents:
        if section.get(parent) is None:  # missing, or a section with nothing in it
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise UsageError(f"{parent!r} is a value in {user_config.config_path()}, not a section", "fix the file")

    def same(name: str) -> bool:
        return name.replace("_", "-") in user_config.spellings(option)

    for name in [name for name in section if same(str(name))]:
        del section[name]
    section[last] = value
    user_config.write(yaml_edit.put(user_config.read_text(), keys, value, same), values)
    click.echo(f"{key}: {_text(value)}", err=True)


@config.command()
@click.argument("key", metavar="COMMAND[.OPTION]")
def unset(key: str) -> None:
    """Remove a default, or all those of a command. Comments in the file stay."""
    from t2i.config import yaml_edit

    values = user_config.read()
    removed = _remove(values, _keys(key))
    if not removed:
        raise UsageError(f"{key} is not set in {user_config.config_path()}", "`t2i config show` lists what is")
    user_config.write(yaml_edit.remove(user_config.read_text(), removed), values)


def _root(ctx: click.Context) -> click.Context:
    """Return a context of the root command in which nothing is parsed."""
    return click.Context(ctx.find_root().command, info_name="t2i", resilient_parsing=True)


def _keys(key: str) -> list[str]:
    return key.removeprefix("t2i.").split(".")


def _same(one: Any, other: str) -> bool:
    return str(one).replace("_", "-") == other.replace("_", "-")


def _remove(values: dict[Any, Any], keys: list[str]) -> list[str]:
    """Remove the value or section that the keys name, and sections that are empty then.

    Returns the keys of the topmost thing removed, as they are spelled in the file; none: there is no such key.
    """
    name = next((name for name in values if _same(name, keys[0])), None)
    if name is None:
        return []
    if len(keys) > 1:
        below = _remove(values[name], keys[1:]) if isinstance(values[name], dict) else []
        if not below or values[name]:
            return [name, *below] if below else []
    del values[name]
    return [name]


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) of every leaf."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return rows


def _text(value: Any) -> str:
    """Return a value as it would be typed."""
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
