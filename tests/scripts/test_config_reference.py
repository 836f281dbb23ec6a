"""The reference of config keys: complete, explained, and what the script makes of the models today."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from t2i.config import FAMILIES, dump_config, load_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "config.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([\w.\[\]]+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_reference", ROOT / "scripts" / "config_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """The dotted keys of a config as YAML holds it; entries of a list of sections as `name[]`."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from leaves(value[0], f"{path}[]")
    else:
        yield path


def rows_of(family: str) -> dict[str, tuple[str, ...]]:
    """{key: type, default, range, meaning} of the page for a family: the common sections and its own."""
    head, *sections = PAGE.split("\n## ")
    assert head.startswith("# Config keys")
    mine = [text for text in sections if not text.startswith("`") or text.startswith(f"`{family}`")]
    return {key: tuple(rest) for text in mine for key, *rest in ROW.findall(text)}


def test_the_page_is_what_the_script_writes(script: ModuleType) -> None:
    assert script.markdown() == PAGE, "run: python scripts/config_reference.py > docs/reference/config.md"


def test_every_key_says_what_it_means() -> None:
    rows = ROW.findall(PAGE)
    assert len(rows) > 120
    assert not [key for key, *_, meaning in rows if len(meaning) < 4]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_a_shipped_config_is_on_the_page(path: Path) -> None:
    family = yaml.safe_load(path.read_text("utf-8"))["family"]
    config = load_config(path, family)
    rows = rows_of(family)
    for key in leaves(yaml.safe_load(dump_config(config))):
        known = re.sub(r"^held_out\.", "data.", key)
        known = re.sub(r"^captions\.templates\..*", "captions.templates", known)
        assert known in rows or key == "family" or (key == "held_out" and "held_out" in rows), key


@pytest.mark.parametrize("family", FAMILIES)
def test_required_keys_are_those_that_a_config_is_refused_without(family: str) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        FAMILIES[family].model_validate({})
    missing = {".".join(map(str, error["loc"])) for error in caught.value.errors() if error["type"] == "missing"}
    required = {key for key, (_, default, *_) in rows_of(family).items() if default == "required"}
    assert {key for key in required if "." not in key} == missing


def test_defaults_are_those_of_the_models() -> None:
    rows = rows_of("ddpm")
    config = FAMILIES["ddpm"].model_validate(
        {"images": 1, "batch": 1, "optimizer": {"lr": 1e-3}, "data": {"path": "x", "size": 32}}
    )
    values = yaml.safe_load(dump_config(config))
    for key in ("seed", "ema", "optimizer.betas", "optimizer.clip", "data.flip", "model.channels", "label"):
        value = values
        for part in key.split("."):
            value = value[part]
        assert yaml.safe_load(rows[key][1].strip("`")) == value, key


def test_a_meaning_may_stand_above_beside_or_in_the_docstring(script: ModuleType) -> None:
    from t2i.config.base import Data, Source

    assert script.meanings(Data)["storage"].startswith("memory: decoded once; mapped: Arrow files on disk, shuffled")
    assert script.meanings(Data)["flip"] == "mirror left-right at random"
    assert script.meanings(Source)["path"].endswith("or a file that comes with t2i (`t2i:NAME`).")
