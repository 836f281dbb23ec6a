"""`t2i config`: the user's own defaults, and what wins over what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2i.cli.main import main

Said = tuple[int, str, str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file will be."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "t2i" / "config.yaml"


def t2i(capsys: pytest.CaptureFixture[str], *words: str) -> Said:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> dict[str, object]:
    """The record of the picture that `t2i generate` makes."""
    place = str(tmp_path / "out" / "{index}")
    code, out, said = t2i(capsys, "generate", "a horse", "-s", "1", "--json", "-o", place, *words)
    assert code == 0, said
    return dict(json.loads(out))


def test_flag_beats_environment_beats_file_beats_model(
    home: Path,
    tmp_path: Path,
    tiny_pipeline: Path,
    epsilon_pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("T2I_MODEL", str(tiny_pipeline))
    assert drawn(capsys, tmp_path, "--size", "32")["steps"] == 50  # the pipeline's own
    for key, value in (("steps", "2"), ("model", str(epsilon_pipeline)), ("cfg-scale", "3"), ("sampler", "euler")):
        assert t2i(capsys, "config", "set", f"generate.{key}", value)[0] == 0
    record = drawn(capsys, tmp_path)
    assert (record["steps"], record["guidance"], record["sampler"]) == (2, 3.0, "Euler")
    assert record["model"] == tiny_pipeline.name  # by T2I_MODEL, over the file
    assert drawn(capsys, tmp_path, "--steps", "1")["steps"] == 1
    monkeypatch.delenv("T2I_MODEL")
    assert drawn(capsys, tmp_path)["model"] == epsilon_pipeline.name
    assert drawn(capsys, tmp_path, "-m", str(tiny_pipeline))["model"] == tiny_pipeline.name


def test_set_show_and_unset(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert t2i(capsys, "config", "path")[:2] == (0, f"{home}\n")
    assert t2i(capsys, "config", "show")[:2] == (0, "")
    for words in (
        ("generate.steps", "30"),
        ("generate.seed", "1", "2"),
        ("eval.score.n", "10"),
        ("generate.grid", "yes"),
    ):
        assert t2i(capsys, "config", "set", *words)[0] == 0, words
    assert t2i(capsys, "config", "set", "generate.num_inference_steps", "20")[0] == 0  # the same option by another name
    code, out, _ = t2i(capsys, "config", "show", "--json")
    expected = {
        "generate.seed": [1, 2],
        "generate.grid": True,
        "generate.num_inference_steps": 20,
        "eval.score.n": 10,
    }
    assert (code, json.loads(out)) == (0, {"path": str(home), "values": expected})
    assert "generate.grid" in t2i(capsys, "config", "show")[1]
    assert t2i(capsys, "config", "unset", "generate.num-inference-steps")[0] == 0
    assert t2i(capsys, "config", "unset", "eval")[0] == 0
    assert home.read_text() == "generate:\n  seed:\n  - 1\n  - 2\n  grid: true\n"
    code, _, said = t2i(capsys, "config", "unset", "generate.steps")
    assert (code, "is not set" in said) == (2, True)
    assert t2i(capsys, "config", "unset", "generate")[0] == 0
    assert not home.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate.stepz", "1"], "unknown option 'generate.stepz'; did you mean 'steps'?"),
        (["generat.steps", "1"], "unknown command 'generat'; did you mean 'generate'?"),
        (["generate.steps", "many"], "generate.steps: 'many' is not a valid integer"),
        (["generate.steps", "1.5"], "generate.steps: '1.5' is not a valid integer"),
        (["generate.format", "bmp"], "generate.format: 'bmp' is not one of"),
        (["generate.steps", "1", "2"], "generate.steps: one value, got 2"),
        (["generate.grid", "perhaps"], "generate.grid: 'perhaps' is not a valid boolean"),
        (["generate.prompt-words", "x"], "unknown option"),
        (["generate", "1"], "expected COMMAND.OPTION"),
        (["generate.steps.more", "1"], "expected COMMAND.OPTION"),
    ],
)
def test_what_cannot_be_set_is_said(
    words: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = t2i(capsys, "config", "set", *words)
    assert (code, out, said in err) == (2, "", True), err
    assert not home.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("generate:\n  stepz: 1\n", "unknown option 'generate.stepz'; did you mean 'steps'?"),
        ("generat:\n  steps: 1\n", "unknown command 'generat'; did you mean 'generate'?"),
        ("generate:\n  steps: many\n", "generate.steps: 'many' is not a valid integer"),
        ("generate:\n  steps: true\n", "generate.steps: expected a integer, got True"),
        ("generate:\n  steps:\n", "generate.steps: expected a integer, got None"),
        ("generate:\n  steps: [1, 2]\n", "generate.steps: expected one value, got [1, 2]"),
        ("generate:\n  steps: 1\n  num-inference-steps: 2\n", "set a second time"),
        ("generate: 3\n", "expected options of `generate`, got 3"),
        ("- 1\n", "expected a section per command, got list"),
        ("generate:\n  steps: 1\n  steps: 2\n", "given twice"),
        ("generate: &a\n  steps: 1\nsample: *a\n", "aliases"),
        ("generate: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("\xff\xfe", "cannot read"),
    ],
)
def test_a_wrong_file_is_named_with_the_key(
    text: str, said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.parent.mkdir(parents=True)
    home.write_text(text, encoding="latin-1")
    code, out, err = t2i(capsys, "generate", "a horse")
    assert (code, out, said in err) == (2, "", True), err
    assert str(home) in err
    assert t2i(capsys, "config", "path")[0] == 0  # this still works


def test_other_commands_sections_are_not_read_in_vain(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong value for `sample` is no business of `generate`, but `config show` tells."""
    home.parent.mkdir(parents=True)
    home.write_text("sample:\n  steps: many\n")
    code, _, err = t2i(capsys, "generate", "a horse", "--steps", "0")
    assert (code, "many" in err) == (2, False)
    assert t2i(capsys, "config", "show")[0] == 2


def test_a_value_out_of_range_says_that_it_may_come_from_the_file(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert t2i(capsys, "config", "set", "generate.steps", "5000")[0] == 0
    code, _, err = t2i(capsys, "generate", "a horse")
    assert code == 2
    assert "5000" in err
    assert f"some defaults are yours, from {home}" in err
    assert t2i(capsys, "generate", "--help")[0] == 0
