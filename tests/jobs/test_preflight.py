"""`t2i generate --dry-run`: what it says is what a run then does; nothing is loaded, written or downloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from generate_kit import Run, files

from t2i.metadata import recipe
from t2i.pipelines.loading import retry

ROOT = Path(__file__).parents[3]


def load_nothing(*_: Any) -> Any:
    raise AssertionError("weights were loaded")


def test_it_says_what_a_run_then_does(t2i: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ["a horse", "a cat", "-b", "2", "-s", "7", "-o", "out/{seed}-{prompt}.png"]
    with monkeypatch.context() as patch:
        patch.setattr(retry, "load_pipeline", load_nothing)
        dry = t2i(*call, "--dry-run", "--json")
    assert (dry.code, dry.err) == (0, "")
    assert files(here) == []
    said = json.loads(dry.out)
    model = said["models"][0]
    ran = t2i(*call)
    told = recipe.read(Path(ran.lines[0])).recipe
    assert told is not None
    assert said["files"] == ran.lines
    assert (said["images"], said["missing"], said["seeds"]) == (4, 4, [7, 8])
    assert (model["model"], model["dtype"], model["device"]) == (told.model, told.dtype, told.device)
    assert (model["steps"], model["steps_each"], model["size"]) == (8, [2], f"{told.width}x{told.height}")
    assert model["at_once"] == told.batch_size
    assert model["memory"]["needed"] == model["memory"]["weights"] + model["memory"]["computing"]
    assert (model["path"], model["download"]) == (os.environ["T2I_MODEL"], 0)


def test_a_reader_gets_two_columns(t2i: Run) -> None:
    ran = t2i("a horse", "-b", "9", "-s", "7", "--dry-run")
    rows = dict(line.split(maxsplit=1) for line in ran.lines if line.startswith("  ") and len(line.split()) > 1)
    assert rows["device"] == "cpu"
    assert rows["dtype"] == "float32 (a small model: its images are equal on every machine)"
    assert rows["class"] == "StableDiffusionPipeline"
    assert rows["images"] == "9"  # of the output; the model's line comes before
    assert "9 of 2 steps (18 in all), 8 at once" in ran.out
    assert "weights + " in rows["memory"]
    assert "and 4 more" in ran.out
    assert rows["adjustments"] == "none"
    assert "adjustments  tiled decoding (asked for)" in t2i("a horse", "--tiling", "--dry-run").out


def test_words_that_will_be_cut_are_said(t2i: Run) -> None:
    ran = t2i("horse " * 20, "--dry-run", "--json")
    assert "cut off: 'horse" in ran.err
    assert ran.err.strip() == json.loads(ran.out)["models"][0]["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a horse", "-W", "33"], 2, "width"),
        (["a horse", "-m", "nothing-of-the-kind"], 4, "no model named"),
        (["a horse", "-m", "sdxl"], 4, "'sdxl' is not in the cache"),
        (["a horse", "--offload", "model"], 2, "no memory of its own"),
        (["a horse", "-o", "there.png"], 2, "there.png exists already"),
        (["--prompts", "empty.txt", "-o", "out/"], 2, "no prompt"),
    ],
)
def test_exit_codes_are_those_of_the_run(t2i: Run, here: Path, arguments: list[str], code: int, words: str) -> None:
    (here / "there.png").write_bytes(b"mine")
    (here / "empty.txt").write_text("\n")
    dry, run = t2i(*arguments, "--dry-run"), t2i(*arguments)
    assert (dry.code, run.code) == (code, code)
    assert words in dry.err
    assert dry.err.splitlines()[-2:] == run.err.splitlines()[-2:]
    assert files(here) == ["empty.txt", "there.png"]


def test_of_a_batch_it_counts_what_is_missing(t2i: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"a {{horse|cat}} {k}", "size": "40x32" if k % 2 else "32x32"} for k in range(7)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    call = ["--prompts", "rows.jsonl", "-o", "out/"]
    first = json.loads(t2i(*call, "-s", "5", "--dry-run", "--json").out)
    assert (first["images"], first["missing"], first["seeds"]) == (7, 7, [5])
    assert not (here / "out").exists()
    ran = t2i(*call, "-s", "5")
    assert first["files"] == ran.lines[:5]
    for path in ran.lines[:3]:
        Path(path).unlink()
    monkeypatch.setattr(retry, "load_pipeline", load_nothing)
    again = json.loads(t2i(*call, "--dry-run", "--json").out)  # the folder's seed holds
    assert (again["missing"], again["seeds"], again["models"][0]["size"]) == (3, [5], "40x32")
    rows[2] |= {"size": "33x33"}
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert json.loads(t2i(*call, "-s", "5", "--dry-run", "--json").out)["wrong"] == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_a_long_list_takes_the_memory_of_a_short_one(here: Path) -> None:
    code = "import resource, sys\nfrom t2i.cli.main import main\ncode = main(sys.argv[1:])\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\nsys.exit(code)"
    peaks = []
    for count in (2_000, 20_000):
        with (here / "rows.jsonl").open("w") as file:
            file.writelines(f'{{"prompt": "a {{red|blue}} horse, number {k}"}}\n' for k in range(count))
        command = ["generate", "--prompts", "rows.jsonl", "-o", "out/", "-m", "mini", "--dry-run", "--json"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        ran = subprocess.run(
            [sys.executable, "-c", code, *command], env=env, capture_output=True, text=True, check=True
        )
        said, peak = ran.stdout.splitlines()
        assert json.loads(said)["missing"] == count
        peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 8  # MB; a list of the tasks would be over 20
