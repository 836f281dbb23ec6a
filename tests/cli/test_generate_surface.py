"""The surface of `t2i generate`, row by row as it is promised: each option, its other spellings, and what it means.

Details stand in the files of each part (test_generate, test_runner, test_replay, test_passes, ...); here is one proof
per row, through the command itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from generate_kit import Run, files
from PIL import Image

from t2i.cli.generate import generate
from t2i.metadata import recipe

SPELLINGS = [
    ("-p", "--prompt"),
    ("--prompts",),
    ("--raw",),
    ("-n", "--negative-prompt"),
    ("-m", "--model"),
    ("--steps", "--num-inference-steps"),
    ("--guidance", "--cfg-scale", "--guidance-scale"),
    ("-s", "--seed"),
    ("-b", "--batch-count", "--num-images"),
    ("--batch-size",),
    ("-W", "--width"),
    ("-H", "--height"),
    ("--size",),
    ("--scheduler", "--sampler"),
    ("-i", "--image", "--init-image"),
    ("--mask",),
    ("--strength",),
    ("--lora",),
    ("--control",),
    ("--from",),
    ("-o", "--output"),
    ("--overwrite",),
    ("--grid",),
    ("--format",),
    ("--device",),
    ("--dtype",),
    ("--compile",),
    ("--offload",),
    ("--quantize",),
    ("--auto-retry",),
    ("--no-safety",),
    ("--dry-run",),
    ("--json",),
    ("--revision",),
    ("--offline",),
    ("--quiet",),
]


@pytest.mark.parametrize("spellings", SPELLINGS, ids=lambda spellings: spellings[-1])
def test_every_spelling_is_one_option_with_help(spellings: tuple[str, ...]) -> None:
    (option,) = [parameter for parameter in generate.params if spellings[0] in parameter.opts]
    assert set(spellings) <= set(option.opts)
    assert getattr(option, "help", None)


def test_no_q_since_it_means_quantize_elsewhere() -> None:
    assert not [parameter for parameter in generate.params if "-q" in parameter.opts]


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def made(path: str | Path) -> recipe.Recipe:
    found = recipe.read(Path(path)).recipe
    assert found is not None
    return found


def test_prompts_as_arguments_options_files_and_stdin(t2i: Run, here: Path) -> None:
    (here / "a.txt").write_text("a cat\n", encoding="utf-8")
    (here / "b.csv").write_text("prompt,steps\na horse,1\n", encoding="utf-8")
    (here / "c.jsonl").write_text('{"prompt": "a dog", "guidance": 1}\n', encoding="utf-8")
    assert made(t2i("a fish", "-s", "1").lines[0]).prompt == "a fish"
    assert made(t2i("-p", "a fish", "-s", "1").lines[0]).prompt == "a fish"
    assert made(t2i("-", "-s", "1", stdin=b"a fish\n").lines[0]).prompt == "a fish"
    for name, prompt in (("a.txt", "a cat"), ("b.csv", "a horse"), ("c.jsonl", "a dog")):
        assert made(t2i("--prompts", name, "-s", "1", "-o", f"{name[0]}/").lines[0]).prompt == prompt
    assert "one prompt is one argument" in t2i("a", "horse", "-s", "1").err


def test_raw_switches_the_prompt_language_off(t2i: Run) -> None:
    chosen, raw = made(t2i("a {cat|cat}", "-s", "1").lines[0]), made(t2i("a {cat|cat}", "--raw", "-s", "1").lines[0])
    assert (chosen.prompt, chosen.template) == ("a cat", "a {cat|cat}")
    assert (raw.prompt, raw.template) == ("a {cat|cat}", "a {cat|cat}")


def test_the_prompt_language(t2i: Run, here: Path) -> None:
    (here / "wildcards").mkdir()
    (here / "wildcards" / "animal.txt").write_text("horse\n", encoding="utf-8")
    lines = t2i("{0.5::a|b} {2$$ and $$x|y} __animal__", "-b", "12", "-s", "1").lines
    prompts = {made(line).prompt for line in lines}
    assert prompts <= {f"{one} {two} horse" for one in "ab" for two in ("x and y", "y and x")}
    assert len(prompts) > 1


def test_a_negative_prompt_pushes_away(t2i: Run) -> None:
    plain = t2i("a horse", "-s", "1", "-o", "plain.png").lines[0]
    against = t2i("a horse", "-n", "a cat", "-s", "1", "-o", "against.png").lines[0]
    assert made(against).negative_prompt == "a cat"
    assert (pixels(plain) != pixels(against)).any()


def test_a_model_by_option_variable_and_config_file(t2i: Run, epsilon_pipeline: Path) -> None:
    assert made(t2i("a horse", "-s", "1").lines[0]).model == "tiny"  # T2I_MODEL
    assert made(t2i("a horse", "-s", "1", "-m", str(epsilon_pipeline)).lines[0]).model == "tiny-epsilon"


def test_steps_and_guidance(t2i: Run) -> None:
    record = made(t2i("a horse", "--num-inference-steps", "3", "--cfg-scale", "2.5", "-s", "1", steps="").lines[0])
    assert (record.steps, record.guidance) == (3, 2.5)
    said = t2i("a horse", "-n", "a cat", "--guidance", "1", "-s", "1").err
    assert "(off)" in said
    assert "negative prompt does nothing" in said


def test_seeds_count_up_for_each_prompt_anew(t2i: Run, here: Path) -> None:
    lines = t2i("a horse", "a cat", "-b", "2", "-s", "5").lines
    assert [made(line).seed for line in lines] == [5, 6, 5, 6]
    (here / "rows.txt").write_text("a horse\na cat\n", encoding="utf-8")
    lines = t2i("--prompts", "rows.txt", "-b", "2", "-s", "5", "-o", "rows/").lines
    assert [made(line).seed for line in sorted(lines)] == [5, 6, 7, 8]


def test_batch_size_changes_no_picture(t2i: Run) -> None:
    one = t2i("a horse", "-b", "3", "-s", "5", "--batch-size", "1", "-o", "one/").lines
    three = t2i("a horse", "-b", "3", "-s", "5", "--batch-size", "3", "-o", "three/").lines
    for a, b in zip(one, three, strict=True):
        assert np.abs(pixels(a) - pixels(b)).max() <= 1


def test_sizes_and_the_nearest_one(t2i: Run) -> None:
    assert pixels(t2i("a horse", "-W", "48", "-H", "32", "-s", "1").lines[0]).shape == (32, 48, 3)
    assert pixels(t2i("a horse", "--size", "32x48", "-s", "1").lines[0]).shape == (48, 32, 3)
    ran = t2i("a horse", "-W", "50")
    assert ran.code == 2
    assert "the nearest size is 48" in ran.err


def test_schedulers_by_our_names_and_a1111s(t2i: Run) -> None:
    ours, theirs = (
        t2i("a horse", "--scheduler", "euler-a", "-s", "1"),
        t2i("a horse", "--sampler", "Euler a", "-s", "1"),
    )
    assert made(ours.lines[0]).scheduler == made(theirs.lines[0]).scheduler == "euler-a"


def test_an_image_a_mask_and_a_strength(t2i: Run, here: Path) -> None:
    start = t2i("a horse", "-s", "1", "-o", "start.png").lines[0]
    near = t2i("a cat", "-i", start, "--strength", "0.5", "-s", "2", "-o", "near.png", steps="4")
    far = t2i("a cat", "--init-image", start, "--strength", "1", "-s", "2", "-o", "far.png", steps="4")
    assert (near.code, far.code) == (0, 0), near.err + far.err
    distance = [np.abs(pixels(ran.lines[0]) - pixels(start)).mean() for ran in (near, far)]
    assert distance[0] < distance[1]
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    mask.save("mask.png")
    painted = t2i("a cat", "-i", start, "--mask", "mask.png", "--strength", "1", "-s", "2", "-o", "painted.png")
    assert painted.code == 0, painted.err
    assert (pixels(painted.lines[0])[:, 24:] == pixels(start)[:, 24:]).all()
    assert (pixels(painted.lines[0])[:, :16] != pixels(start)[:, :16]).any()


def test_from_makes_the_same_picture_again(t2i: Run) -> None:
    first = t2i("a horse", "-s", "7", "-o", "first.png").lines[0]
    again = t2i("--from", first, "-o", "again.png", steps="")
    assert again.code == 0, again.err
    assert "identical" in again.err
    assert (pixels(first) == pixels(again.lines[0])).all()


def test_outputs_are_files_folders_and_patterns(t2i: Run, here: Path) -> None:
    assert t2i("a horse", "-s", "1", "-o", "x.png").lines == ["x.png"]
    assert t2i("a horse", "-s", "1", "-o", "folder/").lines == ["folder/00001-1.png"]
    assert t2i("a horse", "-s", "1", "-o", "{model}/{prompt}-{seed}").lines == ["tiny/a-horse-1.png"]
    assert t2i("a horse", "-s", "1", "-o", "x.png").code == 2  # never overwrites
    assert t2i("a horse", "-s", "2", "-o", "x.png", "--overwrite").code == 0
    assert made(here / "x.png").seed == 2


def test_a_batch_makes_only_what_is_missing(t2i: Run, here: Path) -> None:
    (here / "p.txt").write_text("a horse\na cat\n", encoding="utf-8")
    first = t2i("--prompts", "p.txt", "-s", "1", "-o", "out/")
    Path(first.lines[0]).unlink()
    assert t2i("--prompts", "p.txt", "-s", "1", "-o", "out/").lines == first.lines[:1]


def test_a_sheet_and_formats(t2i: Run) -> None:
    lines = t2i("a horse", "-b", "2", "-s", "1", "--grid", "--format", "webp", "-o", "sheet/").lines
    assert len(lines) == 3
    assert all(line.endswith(".webp") for line in lines)


def test_device_and_dtype(t2i: Run) -> None:
    record = made(t2i("a horse", "-s", "1", "--device", "cpu", "--dtype", "bf16").lines[0])
    assert (record.device, record.dtype) == ("cpu", "bfloat16")


def test_a_dry_run_plans_and_writes_nothing(t2i: Run, here: Path) -> None:
    ran = t2i("a horse", "-b", "3", "-s", "1", "-o", "out/", "--dry-run")
    assert ran.code == 0, ran.err
    assert files(here) == []
    for word in ("licence", "memory", "device", "dtype", "out/"):
        assert word in ran.out
    plan = json.loads(t2i("a horse", "-s", "1", "--dry-run", "--json").out)
    assert plan["models"][0]["device"] == "cpu"


def test_json_is_one_object_per_image(t2i: Run) -> None:
    (line,) = t2i("a horse", "-s", "1", "--json", "--quiet").lines
    assert json.loads(line)["prompt"] == "a horse"


def test_offline_and_revision(t2i: Run) -> None:
    ran = t2i("a horse", "-m", "sdxl", "--offline")
    assert ran.code == 4
    assert "t2i models pull sdxl" in ran.err
    assert t2i("a horse", "--revision", "main").code == 2  # a folder has none


def test_exit_codes(t2i: Run, here: Path) -> None:
    assert t2i("a horse", "-s", "1").code == 0
    assert t2i("a horse", "--steps", "0", steps="").code == 2
    assert t2i("a horse", "-m", "no/such-model").code == 4
    (here / "p.jsonl").write_text('{"prompt": "a horse"}\n{"prompt": "a cat", "size": "50"}\n', encoding="utf-8")
    ran = t2i("--prompts", "p.jsonl", "-s", "1", "-o", "out/")
    assert ran.code == 2  # all rows are judged before the first one is drawn
    assert "line 2" in ran.err
    assert not (here / "out").exists()
