"""`t2i config`: the user's own defaults, and what wins over what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from t2i.cli.main import main
from t2i.config import yaml_edit

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
    assert t2i(capsys, "config", "set", "generate.size", "32x40")[0] == 0
    assert [drawn(capsys, tmp_path)[side] for side in ("width", "height")] == [32, 40]
    beaten = drawn(capsys, tmp_path, "-W", "40", "-H", "32")  # a size of the file does not stand in their way
    assert (beaten["width"], beaten["height"]) == (40, 32)
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


COMMENTED = """# mine

generate:          # what I draw
  # a comment above
  steps: 30        # enough
  cfg-scale: 3
  seed:  # lucky
    - 1
    - 2  # two
# between
eval:
    score: {n: 10, batch-size: 4}  # on one line

sample:
  # label: horse
# the end
"""


@pytest.mark.parametrize(
    ("words", "old", "new"),
    [
        (["set", "generate.steps", "20"], "steps: 30   ", "steps: 20   "),
        (["set", "generate.guidance", "4.5"], "cfg-scale: 3", "guidance: 4.5"),
        (["set", "generate.negative-prompt", "a: b # c"], "two\n", "two\n  negative-prompt: 'a: b # c'\n"),
        (["set", "eval.score.n", "99"], "n: 10", "n: 99"),
        (["set", "eval.score.sampler", "ddim"], "4}", "4, sampler: ddim}"),
        (["set", "sample.label", "dog"], "sample:\n", "sample:\n  label:\n  - dog\n"),
        (["set", "eval.compare.device", "cpu"], "one line\n", "one line\n    compare:\n      device: cpu\n"),
        (["set", "report.overwrite", "yes"], "end\n", "end\nreport:\n  overwrite: true\n"),
        (["unset", "generate.steps"], "steps: 30        # enough", "# enough"),
        (["unset", "generate.cfg-scale"], "  cfg-scale: 3\n", ""),
        (["unset", "generate.seed"], "seed:  # lucky\n    - 1\n    - 2  # two", "# lucky\n  # two"),
        (["unset", "eval.score.n"], "n: 10, ", ""),
        (["unset", "eval.score.batch-size"], ", batch-size: 4", ""),
        (["unset", "eval"], "eval:\n    score: {n: 10, batch-size: 4}  # on one line", "# on one line"),
        (["unset", "sample"], "sample:\n", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_what_else_is_in_the_file_stays(
    words: list[str], old: str, new: str, line_end: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.parent.mkdir(parents=True)
    home.write_bytes(COMMENTED.replace("\n", line_end).encode())
    assert COMMENTED.count(old) == 1
    code, _, said = t2i(capsys, "config", *words)
    assert code == 0, said
    assert home.read_bytes().decode().replace(line_end, "\n") == COMMENTED.replace(old, new)
    assert (b"\r\n" in home.read_bytes()) == (line_end == "\r\n")


def test_a_file_of_comments_is_kept_and_a_link_to_it_stays_a_link(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.parent.mkdir(parents=True)
    kept = tmp_path / "dotfiles.yaml"
    kept.write_text("# mine\n#generate:\n#  steps: 3")
    home.symlink_to(kept)
    assert t2i(capsys, "config", "set", "generate.steps", "2")[0] == 0
    assert kept.read_text() == "# mine\n#generate:\n#  steps: 3\ngenerate:\n  steps: 2\n"
    assert t2i(capsys, "config", "unset", "generate.steps")[0] == 0
    assert (kept.read_text(), home.is_symlink()) == ("# mine\n#generate:\n#  steps: 3\n", True)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["set", "generate.seed", "3"], "generate:\n  seed:\n  - 1  # one\n  - 2\n"),  # a comment inside what goes
        (["set", "report.overwrite", "yes"], "generate:\n  steps: 1\n...\n"),  # nothing may come after the end
        (["set", "eval.score.n", "3"], "eval: {score: {batch-size: 4,}}\n"),
    ],
)
def test_what_cannot_be_changed_safely_is_refused(
    words: list[str], text: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.parent.mkdir(parents=True)
    home.write_text(text)
    code, _, said = t2i(capsys, "config", *words)
    assert (code, home.read_text()) == (2, text)
    assert f"{home}: this cannot be changed here without losing something else in the file" in said
    assert "an editor" in said


VALUES = st.one_of(st.integers(-9, 9), st.booleans(), st.text(max_size=6), st.lists(st.integers(0, 9), min_size=1))
REMARKS = st.sampled_from(["", "  # why", "  # a: b", "   "])


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A file of one or two levels: blocks and flows, remarks anywhere."""
    lines = [draw(REMARKS).strip()]
    for key in draw(st.lists(st.sampled_from("abc"), unique=True)):
        inner = draw(st.lists(st.tuples(st.sampled_from("xyz"), VALUES, REMARKS), unique_by=lambda one: one[0]))
        if not inner:
            lines.append(f"{key}:{draw(REMARKS)}")
        elif draw(st.booleans()):
            lines.append(f"{key}: {yaml_edit._flow({name: value for name, value, _ in inner})}{draw(REMARKS)}")
        else:
            lines.append(f"{key}:{draw(REMARKS)}")
            for name, value, remark in inner:
                if isinstance(value, list) and draw(st.booleans()):
                    lines += [f"  {name}:{remark}", *(f"  - {one}{draw(REMARKS)}" for one in value)]
                else:
                    lines.append(f"  {name}: {yaml_edit._flow(value)}{remark}")
                lines.append(draw(st.sampled_from(["", "  # below", "# left"])))
    return "\n".join(lines)


@given(texts(), st.sampled_from("abcd"), st.sampled_from("xyzw"), VALUES, st.booleans())
def test_an_edit_says_what_it_should_or_is_found_out(text: str, key: str, name: str, value: Any, put: bool) -> None:
    """Only a list with remarks inside, in whose place something is to stand, may fail."""
    values = yaml.safe_load(text) or {}
    section = values.get(key) or {}
    if put:
        values[key] = {**section, name: value}
        new = yaml_edit.put(text, [key, name], value, name.__eq__)
    elif name in section:
        del values[key][name]
        keys = [key, name] if values[key] else [key]
        if not values[key]:
            del values[key]
        new = yaml_edit.remove(text, keys)
    else:
        return
    if put and isinstance(section.get(name), list) and "#" in text:
        return
    assert yaml_edit.same_but(text, new, values), new
