"""The user's own defaults: a YAML file with a section per command, whose values Click takes where no option is given.

    generate:
      model: sdxl
      steps: 30
    eval:
      score:
        n: 10000

Flag > environment > this file > the model's default. A value is parsed as if it had been typed after its option.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from t2i.errors import ConfigError

Values = dict[str, Any]  # nested as the commands are; at the leaves what YAML holds: text, numbers, booleans, lists
UNTOUCHED = ("config", "doctor", "completion")  # these must work even where the file is invalid


def config_path() -> Path:
    """Return the path of the file, existing or not: XDG_CONFIG_HOME/t2i/config.yaml, else ~/.config/t2i/config.yaml."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "t2i" / "config.yaml"


def read() -> Values:
    """Return the values in the file, unchecked; none where there is no file.  Raises ConfigError."""
    from t2i.config import parse_yaml

    path = config_path()
    values = parse_yaml(read_text(), str(path)) if path.exists() else None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a section per command, got {type(values).__name__}", "t2i config set")
    return values


def read_text() -> str:
    """Return the text of the file, comments and line ends included; empty where there is none.  Raises ConfigError."""
    path = config_path()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read {path}: {e}", "fix or remove the file") from None


def write(text: str, values: Values) -> None:
    """Replace the text of the file, or remove the file where nothing is left.

    values: that the text should parse to.  Raises ConfigError: it does not, or has lost a comment of the file.
    """
    from t2i import atomic
    from t2i.config import yaml_edit

    path = config_path()
    old = read_text()
    if not yaml_edit.same_but(old, text, values):
        message = f"{path}: this cannot be changed here without losing something else in the file; nothing is changed"
        raise ConfigError(message, "change it there with an editor; `t2i config show` checks it")
    if "\r\n" in old:  # the line ends of the file stay what they are
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    if text.strip():
        atomic.write(text.encode("utf-8"), path.resolve(), overwrite=True)  # resolved: a link to the file stays one
    else:
        path.unlink(missing_ok=True)


def default_map(ctx: click.Context, name: str | None = None) -> Values:
    """Return Click's default_map, of the whole root command or of its command `name` alone, importing no others.

    Raises ConfigError: an unknown command, option or value, with the file, its key and its nearest neighbour.
    """
    group, values = ctx.command, read()
    assert isinstance(group, click.Group)
    try:
        for key in values:
            if key not in group.list_commands(ctx):
                raise _unknown(str(key), "command", group.list_commands(ctx))
        return _by_parameter(ctx, {key: value for key, value in values.items() if name in (None, key)})
    except ConfigError as e:
        raise ConfigError(f"{config_path()}: {e.message}", "fix it there, or `t2i config unset KEY`") from None


def _by_parameter(ctx: click.Context, values: Values, prefix: str = "") -> Values:
    """Return the values by the names of Click's parameters, as text like typed ones.  ctx: of their command."""
    command = ctx.command
    found: Values = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(command, click.Group):
            child = command.get_command(ctx, str(key))
            if child is None:
                raise _unknown(path, "command", command.list_commands(ctx))
            if not isinstance(value, Mapping):
                raise _wrong(path, f"expected options of `{child.name}`, got {value!r:.60}")
            below = click.Context(child, info_name=str(key), parent=ctx)
            found[str(key)] = _by_parameter(below, dict(value), f"{path}.")
        else:
            known = _options(command)
            option = known.get(_plain(str(key)))
            if option is None:
                raise _unknown(path, "option", [name for name in known if len(name) > 1])
            assert option.name is not None
            if option.name in found:
                raise _wrong(path, "set a second time, by another name of the option")
            found[option.name] = _typed(ctx, option, value, path)
    return found


def convert(ctx: click.Context, option: click.Option, keys: list[str], words: list[str]) -> Any:
    """Return the value that `t2i config set` writes for an option (`keys` from the root on), numbers as numbers.

    Raises ConfigError.
    """
    if len(words) > 1 and not option.multiple:
        raise _wrong(".".join(keys), f"one value, got {len(words)}")
    typed = _typed(ctx, option, words if option.multiple else words[0], ".".join(keys))
    plain = option.type_cast_value(ctx, typed)
    values = [value if isinstance(value, int | float | str) else str(value) for value in _as_list(plain)]
    return values if option.multiple else values[0]


def spellings(option: click.Option) -> set[str]:
    """Return the keys that name this option, with hyphens."""
    return {_plain(name) for name in option.opts}


def find_option(ctx: click.Context, keys: list[str]) -> click.Option:
    """Return the option that the keys name, command by command from the root on.  Raises ConfigError."""
    command: click.Command = ctx.command
    for depth, key in enumerate(keys):
        path = ".".join(keys[: depth + 1])
        if isinstance(command, click.Group):
            child = command.get_command(ctx, key)
            if child is None:
                raise _unknown(path, "command", command.list_commands(ctx))
            command = child
        elif depth == len(keys) - 1:
            known = _options(command)
            if _plain(key) not in known:
                raise _unknown(path, "option", [name for name in known if len(name) > 1])
            return known[_plain(key)]
        else:
            break
    raise _wrong(".".join(keys), "expected COMMAND.OPTION, for example generate.steps")


def _options(command: click.Command) -> dict[str, click.Option]:
    """Return {name without leading dashes: option} for every spelling of every option."""
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option) and parameter.name]
    return {_plain(name): option for option in options for name in option.opts}


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-") if len(name.lstrip("-")) > 1 else name.lstrip("-")


def _typed(ctx: click.Context, option: click.Option, value: Any, path: str) -> Any:
    """Return the value as if it had been typed, after Click has validated it."""
    values = _as_list(value)
    if len(values) != 1 and not option.multiple:
        raise _wrong(path, f"expected one value, got {value!r:.60}")
    for one in values:
        if not isinstance(one, str | int | float) or (isinstance(one, bool) and not option.is_flag):
            raise _wrong(path, f"expected a {option.type.name}, got {one!r:.60}")
    typed = [one if option.is_flag else str(one) for one in values]
    result = typed if option.multiple else typed[0]
    try:
        option.type_cast_value(ctx, result)
    except click.BadParameter as e:
        raise _wrong(path, e.message[:1].lower() + e.message[1:].rstrip(".")) from None
    return result


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _wrong(path: str, what: str) -> ConfigError:
    return ConfigError(f"{path}: {what}")


def _unknown(path: str, kind: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(path.rpartition(".")[2], known, n=1, cutoff=0.5)
    there = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    return ConfigError(f"unknown {kind} {path!r}; {there}")
