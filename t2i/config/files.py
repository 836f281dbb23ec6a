"""Config files: find by name, read strictly, override by `--set`, write, compare."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from t2i.config.base import Run, Strict
from t2i.config.families import FAMILIES
from t2i.errors import ConfigError, one_line

MAX_CONFIG_BYTES = 1_000_000
C = TypeVar("C", bound=Strict)


def shipped_config(name: str) -> Path:
    """Return the path of a config that comes with t2i: inside an installed package, beside it in a checkout.

    Raises ConfigError.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    raise ConfigError(f"no config {name!r} comes with t2i")


def find_config(given: str) -> Path:
    """Return a config's path from user input: a file, or the name of a config that comes with t2i.

    Raises ConfigError.
    """
    if Path(given).suffix in (".yaml", ".yml") or Path(given).exists():
        return Path(given)  # reading it raises an error if it is not there
    try:
        return shipped_config(given)
    except ConfigError:
        known = [path.stem for path in shipped_config("ddpm-smoke").parent.glob("*.yaml")]
        near = difflib.get_close_matches(given, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "give the path of a .yaml file"
        raise ConfigError(f"no config {given!r}: no such file, and none of that name comes with t2i", hint) from None


def shipped_data(path: str) -> str:
    """Return a source's path; `t2i:NAME` is a data file that comes with t2i, beside its configs."""
    if not path.startswith("t2i:"):
        return path
    return str(shipped_config("ddpm-smoke").with_name(path.removeprefix("t2i:")))


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (alias bombs) and without duplicate keys (the last one would silently win)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ConfigError(f"line {mark.line + 1}: YAML aliases (*name) are not allowed in a config")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool) or key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} given twice, or not a plain name")
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str = "config") -> Any:
    """Parse YAML into plain data; tags, aliases and duplicate keys are refused with their line.

    Raises ConfigError.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{where}: {len(text)} characters; a config has at most {MAX_CONFIG_BYTES}")
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as e:
        raise ConfigError(f"{where}: {e.message}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise ConfigError(f"{where}: not valid YAML: {one_line(e, 300)}") from None


def load_config(path: Path, family: str, overrides: tuple[str, ...] = ()) -> Run:
    """Read a family's config file and apply `key.path=value` overrides (values are YAML).

    Raises ConfigError: missing file, bad YAML, unknown key (with its path and nearest neighbour), bad value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read config {path}: {e}", "see configs/ for examples") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, got {type(data).__name__}")
    for override in overrides:
        _override(data, override)
    declared = data.get("family", family)
    if declared != family:
        raise ConfigError(f"{path} is a config of family {declared!r}, not {family!r}", f"t2i train {declared} {path}")
    return build_config(FAMILIES[family], data, str(path))


def build_config(kind: type[C], data: dict[str, Any], where: str = "config") -> C:
    """Validate plain data into a config.  Raises ConfigError with every wrong key's path."""
    try:
        return kind.model_validate(data)
    except ValidationError as e:
        lines = [_explain(kind, error) for error in e.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None


def dump_config(config: Strict) -> str:
    """Return the whole config as YAML, defaults included; `load_config` reads it back to an equal config."""
    plain = config.model_dump(mode="json")
    # PyYAML folds U+0085 into spaces, unless everything beyond ASCII is escaped
    readable = "\x85" not in json.dumps(plain, ensure_ascii=False)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=readable, width=120)


def config_hash(config: Strict) -> str:
    """Return 16 hex digits that change when any value of the config does."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (old, new)} of every leaf in which two dumped configs differ."""
    changes: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes |= config_difference(a, b, f"{prefix}{key}.")
        elif a != b:
            changes[prefix + key] = (a, b)
    return changes


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override!r}: expected key=value", "for example --set optimizer.lr=1e-4")
    *parents, last = path.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {path}: {parent!r} is a value, not a section")
    data[last] = parse_yaml(value, f"--set {path}")


def _explain(kind: type[Strict], error: Any) -> str:
    """Format one validation error as `key.path: message`, with the nearest known key for an unknown one."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section: Any = kind
        for part in error["loc"][:-1]:
            field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
            section = field.annotation if field else None
        known = list(section.model_fields) if hasattr(section, "model_fields") else []
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        return f"unknown key {path!r}" + (
            f", did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"
        )
    message = error["msg"].removeprefix("Value error, ")
    got = "" if error["type"] in ("missing", "value_error") else f", got {error['input']!r:.80}"
    return (f"{path}: " if path else "") + message + got
