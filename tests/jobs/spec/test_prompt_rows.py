"""Prompt files with options, and the prompt language, through `t2i generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from generate_kit import Run, files

from t2i.errors import UsageError
from t2i.jobs.spec.prompt_rows import NAMES, read_rows
from t2i.metadata import recipe


def recorded(line: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(line)
    return record


JSONL = """{"prompt": "a horse"}

"a dog"
{"prompt": "a cat", "seed": 50, "steps": 3, "guidance": 2, "size": "40x48", "Sampler": "Euler a", "batch-count": 2}
{"prompt": "a fish", "negative_prompt": "a bird", "width": null, "output": "fish/{seed}.png"}
"""
CSV = """prompt,seed,steps,CFG scale,size,sampler,batch_count,negative prompt,output
a horse,,,,,,,,
a dog,,,,,,,,
a cat,50,3,2,40x48,Euler a,2,,
"a fish",,,,,,,a bird,fish/{seed}.png
"""


@pytest.mark.parametrize(("name", "text"), [("rows.jsonl", JSONL), ("rows.csv", CSV), ("rows.tsv", None)])
def test_rows_set_options_of_their_own(t2i: Run, here: Path, name: str, text: str | None) -> None:
    (here / name).write_text(text or CSV.replace(",", "\t"))
    ran = t2i("--prompts", name, "-s", "5", "-n", "a mouse", "-o", "out/", "--json")
    assert ran.code == 0, ran.err
    made = [recorded(line) for line in ran.lines]
    assert [(m["prompt"], m["seed"]) for m in made] == [
        ("a horse", 5),
        ("a dog", 6),
        ("a cat", 50),
        ("a cat", 51),
        ("a fish", 8),
    ]
    assert [(m["steps"], m["guidance"], m["width"], m["height"]) for m in made[2:4]] == [(3, 2, 40, 48)] * 2
    assert [m["scheduler"] for m in made] == ["dpm++2m", "dpm++2m", "euler-a", "euler-a", "dpm++2m"]
    assert [m["negative_prompt"] for m in made] == ["a mouse"] * 4 + ["a bird"]
    assert made[-1]["path"] == "out/fish/8.png"
    assert sorted(m["path"] for m in made) == [path for path in files(here) if path.endswith(".png")]


def test_a_row_may_name_its_model(t2i: Run, here: Path, epsilon_pipeline: Path) -> None:
    rows = [{"prompt": "a horse"}, {"prompt": "a horse", "model": str(epsilon_pipeline)}, {"prompt": "a horse"}]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = t2i("--prompts", "rows.jsonl", "-s", "5", "-o", "{model}/{seed}.png")
    assert (ran.code, ran.lines) == (0, ["tiny/5.png", "tiny-epsilon/6.png", "tiny/7.png"])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"seed": 1}, "no prompt"),
        ({"prompt": 3}, "prompt: got '3', expected text"),
        ({"prompt": "a", "sead": 1}, "unknown option 'sead', did you mean 'seed'?"),
        ({"prompt": "a", "steps": 0}, "steps: got 0, allowed 1 to 1000"),
        ({"prompt": "a", "steps": 2.5}, "steps: got '2.5', expected a whole number"),
        ({"prompt": "a", "steps": True}, "expected a whole number"),
        ({"prompt": "a", "seed": 2**64}, "seed: got"),
        ({"prompt": "a", "guidance": "x"}, "guidance: got 'x', expected a number"),
        ({"prompt": "a", "guidance": 101}, "allowed 0 to 100"),
        ({"prompt": "a", "size": "big"}, "expected WIDTHxHEIGHT"),
        ({"prompt": "a", "width": 10**6}, "allowed 1 to 8192"),
        ({"prompt": "a", "width": 32, "size": "32"}, "width is given twice"),
        ({"prompt": "a", "scheduler": "fast"}, "unknown scheduler 'fast'"),
        ({"prompt": "a", "dtype": "int3"}, "dtype: got 'int3'"),
        ({"prompt": "a", "batch_count": 0}, "images per prompt: got 0"),
        ({"prompt": "a", "output": "../x.png"}, "leads out of the output folder"),
        ({"prompt": "a", "output": "/tmp/x.png"}, "leads out of the output folder"),
        ({"prompt": "a", "output": "C:\\x.png"}, "leads out of the output folder"),
        ([1], "expected a JSON object, got list"),
    ],
)
def test_what_is_wrong_names_the_file_the_line_and_what_is_allowed(row: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(read_rows([json.dumps({"prompt": "fine"}), "", json.dumps(row)], ".jsonl", "rows.jsonl"))
    assert caught.value.message.startswith("rows.jsonl, line 3: ")
    assert said in caught.value.message
    if "unknown option" in said:
        assert all(option in str(caught.value.hint) for option in NAMES)


def test_what_no_row_can_be_is_exit_2_and_nothing_is_drawn(t2i: Run, here: Path) -> None:
    for name, text, said in (
        ("a.jsonl", '{"prompt": "a"', "a.jsonl, line 1: not valid JSON"),
        ("a.csv", "a horse\n", "names no column 'prompt'"),
        ("b.csv", "prompt,seed\na horse, oil,1\n", "b.csv, line 2: 3 values for 2 columns"),
        ("c.jsonl", "\n", "no prompt"),
        ("d.json", "[]", "one JSON object per line"),
        (
            "e.jsonl",
            '{"prompt": "a", "size": "33"}',
            "e.jsonl, line 1: width: got 33, this model needs",
        ),
    ):
        (here / name).write_text(text)
        ran = t2i("--prompts", name, "-o", "out/")
        assert (ran.code, ran.out) == (2, ""), name
        assert said in ran.err, (name, ran.err)
    assert not (here / "out").exists()


def test_rows_that_name_files_want_a_folder(t2i: Run, here: Path) -> None:
    (here / "rows.jsonl").write_text('{"prompt": "a", "output": "b.png"}')
    ran = t2i("--prompts", "rows.jsonl", "-o", "c.png")
    assert (ran.code, "give a folder/" in ran.err) == (2, True)


# --- the prompt language ---


def test_template_and_resolved_prompt_are_recorded_and_the_seed_decides(t2i: Run, here: Path) -> None:
    (here / "wildcards").mkdir()
    (here / "wildcards" / "animal.txt").write_text("horse\ncat\n")
    template = "a {red|blue} __animal__"
    many = t2i(template, "-b", "6", "-s", "10", "-o", "many/").lines
    made = [recipe.read(Path(path)).recipe for path in many]
    assert {m.template for m in made if m} == {template}
    prompts = [m.prompt for m in made if m]
    assert set(prompts) <= {f"a {colour} {animal}" for colour in ("red", "blue") for animal in ("horse", "cat")}
    assert len(set(prompts)) > 1
    alone = recipe.read(Path(t2i(template, "-s", "13", "-o", "alone/").lines[0])).recipe
    assert alone is not None
    assert alone.prompt == prompts[3]
    again = t2i("--from", many[3], "-o", "again/", steps="")  # the wildcards are not asked again
    assert "identical" in again.err
    assert recipe.read(Path(again.lines[0])).recipe.template == template  # type: ignore[union-attr]


def test_raw_takes_a_prompt_as_it_is(t2i: Run) -> None:
    ran = t2i("a {red|blue horse __x__", "--raw", "--json")
    assert (ran.code, recorded(ran.lines[0])["prompt"]) == (0, "a {red|blue horse __x__")
    ran = t2i("a {red|blue horse")
    assert (ran.code, "--raw" in ran.err) == (2, True)


def test_another_folder_of_wildcards(t2i: Run, here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "animal.txt").write_text("horse\n")
    assert recorded(t2i("a __animal__", "--wildcards", "mine", "--json").lines[0])["prompt"] == "a horse"
    ran = t2i("a __animal__")
    assert (ran.code, "no wildcard __animal__" in ran.err) == (2, True)
