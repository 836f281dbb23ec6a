"""Configs: what is read, what is refused and in which words (FAULTS 20), and that writing and reading agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t2i.config import (
    FAMILIES,
    MAX_CONFIG_BYTES,
    AutoencoderConfig,
    Strict,
    Text2ImageConfig,
    build_config,
    config_difference,
    config_hash,
    dump_config,
    find_config,
    load_config,
    parse_yaml,
    shipped_config,
    shipped_data,
)
from t2i.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

AUTOENCODER = """
family: autoencoder
seed: 1
images: 1000
batch: 8
optimizer:
  lr: 1e-4
data:
  sources:
    - path: photos
"""
TEXT2IMAGE = (
    AUTOENCODER.replace("autoencoder", "text2image")
    + """
captions:
  by: source
  templates:
    photos: ["a {object}", "{a object} in Van Gogh style"]
autoencoder: runs/autoencoder
samples:
  prompts: ["a horse"]
"""
)
EXAMPLES = {
    "autoencoder": AUTOENCODER,
    "text2image": TEXT2IMAGE,
    "ddpm": AUTOENCODER.replace("autoencoder", "ddpm"),
    "classifier": AUTOENCODER.replace("autoencoder", "classifier") + "label: kind\nheld_out: {path: others}\n",
    "vae": AUTOENCODER.replace("autoencoder", "vae"),
    "dcgan": AUTOENCODER.replace("autoencoder", "dcgan").replace("data:\n", "data:\n  size: 32\n"),
}


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str) -> Path:
        path = tmp_path / "a.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path: Path, *overrides: str, family: str = "autoencoder") -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, family, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message  # one line of cause
    return str(caught.value)


# What is read


def test_numbers_that_yaml_takes_for_strings_are_numbers(write) -> None:  # type: ignore[no-untyped-def]
    assert yaml.safe_load("lr: 1e-4") == {"lr": "1e-4"}  # the trap
    config = load_config(write(AUTOENCODER), "autoencoder")
    assert config.optimizer.lr == 1e-4
    assert isinstance(config, AutoencoderConfig)
    assert config.data.sources[0].path == "photos"


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_dumped_and_read_back(family: str, write) -> None:  # type: ignore[no-untyped-def]
    config = load_config(write(EXAMPLES[family]), family)
    text = dump_config(config)
    assert "weight_decay" in text  # a default that the file does not name
    assert load_config(write(text), family) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_published_configs_are_valid_and_begin_with_their_promise(path: Path) -> None:
    family = yaml.safe_load(path.read_text(encoding="utf-8"))["family"]
    config = load_config(path, family)
    assert type(config) is FAMILIES[family]
    head = path.read_text(encoding="utf-8").split("\nfamily:")[0]
    assert head.startswith("# ")
    assert f"t2i train {family} configs/{path.name}" in head  # the exact command


def test_one_path_stands_for_a_single_source(write) -> None:  # type: ignore[no-untyped-def]
    """In a file, and as an override of a file that has other sources."""
    config = load_config(write(AUTOENCODER), "autoencoder", ("data.path=pictures/",))
    assert [source.path for source in config.data.sources] == ["pictures/"]
    short = AUTOENCODER.replace("  sources:\n    - path: photos\n", "  path: pictures/\n")
    assert load_config(write(short), "autoencoder") == config
    assert "sources" in dump_config(config)


def test_configs_and_data_that_come_with_t2i_are_found_by_name() -> None:
    assert find_config("ddpm-smoke") == shipped_config("ddpm-smoke")
    assert find_config("some/file.yaml") == Path("some/file.yaml")  # reading it tells that it is not there
    assert Path(shipped_data("t2i:shapes.parquet")).is_file()
    assert shipped_data("photos/*.parquet") == "photos/*.parquet"


def test_a_rate_falls_in_one_way(write) -> None:  # type: ignore[no-untyped-def]
    said = refused(write(AUTOENCODER), "optimizer.cooldown=100", "optimizer.decay=cosine")
    assert "give either `decay` or `cooldown`" in said


positive = st.floats(min_value=1e-12, max_value=1e3)
words = st.text(min_size=1, max_size=40)
configs = st.builds(
    dict,
    seed=st.integers(0, 2**63 - 1),
    images=st.integers(1, 10**12),
    batch=st.integers(1, 4096),
    precision=st.sampled_from(["auto", "no", "bf16"]),
    optimizer=st.fixed_dictionaries({"lr": positive, "clip": positive, "warmup": st.integers(0, 10**9)}),
    data=st.fixed_dictionaries(
        {
            "sources": st.lists(st.fixed_dictionaries({"path": words, "repeat": st.integers(1, 99)}), min_size=1),
            "flip": st.booleans(),
        }
    ),
    captions=st.fixed_dictionaries(
        {"by": words, "templates": st.dictionaries(words, st.lists(words), min_size=1), "drop": st.floats(0, 1)}
    ),
    autoencoder=words,
    samples=st.fixed_dictionaries({"prompts": st.lists(words, min_size=1), "guidance": st.floats(-9, 9)}),
)


NEXT_LINE = {
    "images": 1,
    "batch": 1,
    "optimizer": {"lr": 1},
    "data": {"sources": [{"path": "a\x85b"}]},
    "captions": {"column": "é"},
    "autoencoder": "yes",
    "samples": {"prompts": ["1e-4"]},
}


@settings(deadline=None)
@given(configs)
@example(NEXT_LINE)
def test_what_is_written_reads_back_the_same(data: dict[str, Any]) -> None:
    """Through YAML text, whatever stands in the strings: newlines, `yes`, `1e-4`, `*a`, `&a`, quotes, emoji."""
    config = build_config(Text2ImageConfig, data)
    again = build_config(Text2ImageConfig, parse_yaml(dump_config(config)))
    assert again == config
    assert config_hash(again) == config_hash(config)


# What is refused (FAULTS 20)


@pytest.mark.parametrize("value", ["!!python/object/apply:os.system [touch canary]", "!!python/name:os.system", "!x 1"])
def test_tags_are_refused_and_run_nothing(
    value: str,
    write,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "not valid YAML" in refused(write(AUTOENCODER + f"ema: {value}\n"))
    assert not (tmp_path / "canary").exists()


def test_alias_bombs_are_refused_at_the_first_alias(write) -> None:  # type: ignore[no-untyped-def]
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "line 2: YAML aliases" in refused(write(bomb))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nseed: 2\n", "line 2"),
        ("optimizer: {lr: 1, lr: 2}\n", "'lr'"),
        ("? [a, b]\n: 1\n", "not a plain name"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_line(text: str, words: str, write) -> None:  # type: ignore[no-untyped-def]
    assert words in refused(write(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "got NoneType"),
        ("- 1\n", "got list"),
        ("a: [1\n", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("a: \x00\n", "not valid YAML"),
        ("#" * (MAX_CONFIG_BYTES + 1), "at most"),
    ],
)
def test_what_is_no_config_at_all(text: str, words: str, write) -> None:  # type: ignore[no-untyped-def]
    assert words in refused(write(text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot read config" in refused(tmp_path / "none.yaml")
    assert "cannot read config" in refused(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read config" in refused(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("bacth=8", "unknown key 'bacth', did you mean 'batch'?"),
        ("optimizer.learning_rate=1", "unknown key 'optimizer.learning_rate'"),
        ("optimizer.weight_deacy=1", "did you mean 'weight_decay'?"),
        ("model.chanels=[1]", "unknown key 'model.chanels', did you mean 'channels'?"),
        ("qqq=1", "known here: "),
        ("optimizer.lr=fast", "optimizer.lr: "),
        ("optimizer.lr=-1", "optimizer.lr: Input should be greater than 0, got -1"),
        ("optimizer.lr=.nan", "optimizer.lr: "),
        ("optimizer.lr=.inf", "optimizer.lr: "),
        ("batch=0", "batch: "),
        ("images=1.5", "images: "),
        ("seed=-1", "seed: "),
        ("seed=9223372036854775808", "seed: "),
        ("precision=fp8", "precision: "),
        ("data.sources=[]", "data.sources: "),
        ("data.size=100000", "data.size: "),
        ("optimizer=3", "optimizer: "),
    ],
)
def test_a_wrong_key_or_value_is_named_by_its_path(change: str, words: str, write) -> None:  # type: ignore[no-untyped-def]
    assert words in refused(write(AUTOENCODER), change)


def test_every_mistake_is_said_at_once(write) -> None:  # type: ignore[no-untyped-def]
    message = refused(write(AUTOENCODER), "bacth=8", "batch=0")
    assert "bacth" in message
    assert "batch: " in message


def test_an_unknown_key_inside_a_list_is_named(write) -> None:  # type: ignore[no-untyped-def]
    assert "data.sources.0.pth" in refused(write(AUTOENCODER.replace("- path: photos", "- pth: photos")))


def test_a_missing_key_is_named(write) -> None:  # type: ignore[no-untyped-def]
    assert "optimizer.lr: Field required" in refused(write(AUTOENCODER.replace("lr: 1e-4", "warmup: 3")))


def test_a_config_of_another_family_says_the_command(write) -> None:  # type: ignore[no-untyped-def]
    path = write(TEXT2IMAGE)
    assert f"t2i train text2image {path}" in refused(path, family="autoencoder")


@pytest.mark.parametrize("captions", ["{}", "{column: text, by: source}", "{by: source}"])
def test_captions_come_from_one_place(captions: str, write) -> None:  # type: ignore[no-untyped-def]
    assert "captions" in refused(write(TEXT2IMAGE), f"captions={captions}", family="text2image")


def test_levels_of_the_network_agree(write) -> None:  # type: ignore[no-untyped-def]
    message = refused(write(TEXT2IMAGE), "unet.channels=[64, 128]", family="text2image")
    assert "channels has 2 levels, attention 3" in message


# Overrides


def test_overrides_are_yaml_values_at_dotted_paths(write) -> None:  # type: ignore[no-untyped-def]
    path = write(AUTOENCODER)
    config = load_config(
        path, "autoencoder", ("optimizer.lr=3e-4", "loss.ssim=0.5", "model.channels=[8, 16]", "batch=2")
    )
    assert isinstance(config, AutoencoderConfig)
    assert (config.optimizer.lr, config.loss.ssim, config.model.channels, config.batch) == (3e-4, 0.5, (8, 16), 2)
    assert load_config(path, "autoencoder", ("seed=1", "seed=2")).seed == 2  # the last one stands


def test_an_override_may_hold_an_equals_sign(write) -> None:  # type: ignore[no-untyped-def]
    config = load_config(write(TEXT2IMAGE), "text2image", ("autoencoder=runs/lr=3",))
    assert isinstance(config, Text2ImageConfig)
    assert config.autoencoder == "runs/lr=3"


@pytest.mark.parametrize(
    "override", ["batch", "=3", "batch.x=3", "optimizer.lr.x=3", "batch=[1", "batch=*a", "data..x=1"]
)
def test_what_is_no_override(override: str, write) -> None:  # type: ignore[no-untyped-def]
    refused(write(AUTOENCODER), override)


# A config as a value


def test_configs_are_frozen(write) -> None:  # type: ignore[no-untyped-def]
    config = load_config(write(AUTOENCODER), "autoencoder")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_the_hash_sees_every_leaf(write) -> None:  # type: ignore[no-untyped-def]
    """Any change of any number, flag or string anywhere changes the hash, and is named by config_difference."""
    config = load_config(write(TEXT2IMAGE), "text2image")
    plain = config.model_dump(mode="json")
    for path, value in leaves(plain):
        changed = config.model_dump(mode="json")
        *parents, last = path
        section: Any = changed
        for parent in parents:
            section = section[parent]
        section[last] = value + 1 if isinstance(value, int | float) and not isinstance(value, bool) else f"{value}!"
        other = Strict.model_construct(_fields_set=None)
        object.__setattr__(other, "model_dump", lambda mode, changed=changed: changed)
        assert config_hash(other) != config_hash(config), path
        assert len(config_difference(plain, changed)) == 1, path
    assert len(list(leaves(plain))) > 40


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Any:
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, (*path, key))
    else:
        yield path, value


def test_differences_are_named_by_their_path() -> None:
    old = {"a": 1, "b": {"c": 2, "d": [1]}, "gone": 0}
    new = {"a": 1, "b": {"c": 3, "d": [1]}, "new": math.pi}
    assert config_difference(old, new) == {"b.c": (2, 3), "gone": (0, None), "new": (None, math.pi)}
    assert config_difference(old, old) == {}
