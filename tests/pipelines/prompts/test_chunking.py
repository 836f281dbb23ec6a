"""`t2i generate`: weights, long prompts and the choices of a negative prompt, as a user meets them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate_kit import LONG, SHORT, Run, files

from t2i import load
from t2i.imaging import images
from t2i.jobs.replay.a1111_import import import_settings
from t2i.metadata import recipe
from t2i.metadata.a1111 import parse
from t2i.metadata.recipe import Recipe
from t2i.pipelines.prompts.dynamic_prompts import resolve, resolve_negative

SIZE = ("--size", "32", "--guidance", "3", "-s", "5")


def recorded(line: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(line)
    return record


def record(path: str | Path) -> Recipe:
    made = recipe.read(Path(path)).recipe
    assert made is not None
    return made


def again(t2i: Run, path: str, *options: str) -> str:
    """What is said when an image is made again."""
    ran = t2i("--from", path, "-o", "again/", *options, steps="")
    assert ran.code == 0, ran.err
    return ran.err


# --- weights ---


def test_weights_are_applied_recorded_and_made_again(t2i: Run) -> None:
    path = t2i("a (red:1.4) horse", "-n", "(cat:0.5)", *SIZE).lines[0]
    made = record(path)
    assert (made.prompt, made.negative_prompt) == ("a (red:1.4) horse", "(cat:0.5)")
    assert made.reading == {"weights": "applied"}
    assert "compel" in made.versions
    assert f"{path}: identical" in again(t2i, path)
    plain = record(t2i("a red horse", "-n", "cat", *SIZE).lines[0])
    assert plain.image_hash != made.image_hash
    assert plain.reading == {}
    assert "compel" not in plain.versions


def test_raw_reads_weights_as_words_and_so_does_making_it_again(t2i: Run) -> None:
    path = t2i("a (red:1.4) horse", "--raw", *SIZE).lines[0]
    weighted = record(t2i("a (red:1.4) horse", *SIZE).lines[0])
    assert record(path).reading == {}
    assert record(path).image_hash != weighted.image_hash
    assert f"{path}: identical" in again(t2i, path)
    ran = t2i("--from", path, "a (blue:1.4) horse", "--json", steps="")
    assert recorded(ran.lines[0])["reading"]  # another prompt is read as ever


def test_a_record_from_before_weights_is_read_as_it_was(t2i: Run) -> None:
    """It says nothing of how its prompt was read: as plain text."""
    path = t2i("a ((red)) horse", "--raw", *SIZE, "-o", "old.png").lines[0]
    data = json.loads(record(path).to_json())
    for name in ("reading", "negative_template"):
        del data[name]
    old = Recipe.from_json(json.dumps(data))
    assert (old.reading, old.negative_template) == ({}, "")
    images.save(images.decode(Path(path)), Path("older.png"), recipe=old)
    assert "older.png: identical" in again(t2i, "older.png")


@pytest.mark.parametrize("prompt", ["a horse (brown)", "a map (scale 1:50)", "a [horse] :) on a screen (16:9)"])
def test_prose_with_brackets_is_plain_text(t2i: Run, prompt: str) -> None:
    ours, raw = (record(t2i(prompt, *SIZE, *more).lines[0]) for more in ((), ("--raw",)))
    assert ours.reading == {}
    assert ours.image_hash == raw.image_hash


def test_a_weight_out_of_range_is_refused_before_anything_is_loaded(t2i: Run, here: Path) -> None:
    ran = t2i("a (red:12) horse")
    assert ran.code == 2
    assert "prompt: weight 12 of 'red', expected 0 to 10" in ran.err
    (here / "rows.jsonl").write_text('{"prompt": "a horse"}\n{"prompt": "a cat", "negative_prompt": "(red:12)"}\n')
    ran = t2i("--prompts", "rows.jsonl", "-o", "a.png")
    assert ran.code == 2
    assert "rows.jsonl, line 2: prompt: weight 12 of 'red'" in ran.err
    assert files(here) == ["rows.jsonl"]


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_an_encoder_that_takes_no_weights_reads_the_words(kind: str, t2i: Run, family: Callable[[str], Path]) -> None:
    model = str(family(kind))
    ran = t2i("a (red:1.4) horse", "-m", model, *SIZE)
    words = t2i("a red horse", "-m", model, *SIZE)
    said = f"note: tiny-{kind} takes no attention weights: 'a (red:1.4) horse' is read without them"
    assert said in ran.err
    assert "takes no attention weights" not in words.err
    assert record(ran.lines[0]).reading == {"weights": "left out"}
    assert record(ran.lines[0]).image_hash == record(words.lines[0]).image_hash
    assert f"{ran.lines[0]}: identical" in again(t2i, ran.lines[0], "-m", model)


def test_single_brackets_in_another_tools_record_are_weights() -> None:
    line = "Steps: 3, Sampler: Euler a, CFG scale: 6.5, Seed: 77, Size: 40x48"
    text = import_settings(parse(f"a (red) horse\nNegative prompt: [blurry]\n{line}, Version: v1.10.1"))
    assert (text.prompt, text.values["negative_prompt"]) == ("a (red:1.1) horse", "(blurry:0.9091)")
    ours = import_settings(parse(f"a (red) horse\nNegative prompt: [blurry]\n{line}, Version: t2i 0.1"))
    assert (ours.prompt, ours.values["negative_prompt"]) == ("a (red) horse", "[blurry]")


def test_weights_and_chunks_in_python(tiny_pipeline: Path, family: Callable[[str], Path]) -> None:
    draw = load(tiny_pipeline)
    weighted, raw = (draw("a (red:1.4) horse", seed=1, steps=1, raw=raw)[0] for raw in (False, True))
    assert (bool(weighted.recipe.reading), raw.recipe.reading) == (True, {})
    assert weighted.recipe.image_hash != raw.recipe.image_hash
    template = "{cat|dog|fish}"
    pictures = draw("a horse", seed=1, num_images=3, steps=1, guidance=3, negative_prompt=template)
    assert [p.recipe.negative_prompt for p in pictures] == [resolve_negative(template, seed) for seed in (1, 2, 3)]
    assert {p.recipe.negative_template for p in pictures} == {template}
    long = load(family("sd15"))
    size: dict[str, Any] = {"seed": 1, "steps": 1, "width": 32}
    assert long(LONG, **size)[0].recipe.reading == {"chunks": 2}
    with pytest.warns(UserWarning, match="reads no further than its text encoder; cut off: 'gogh"):
        assert long(LONG, **size, chunks=False)[0].recipe.reading == {}


# --- long prompts ---


def test_a_long_prompt_is_read_in_chunks_and_that_is_recorded(t2i: Run, family: Callable[[str], Path]) -> None:
    model = ("-m", str(family("sd15")))
    ran = t2i(LONG, *model, *SIZE)
    path = ran.lines[0]
    assert "note: longer than the text encoder reads at once: 2 chunks of 75 tokens" in ran.err
    assert "cut off" not in ran.err
    assert record(path).reading == {"chunks": 2}
    assert f"{path}: identical" in again(t2i, path, *model)
    cut = t2i(LONG, *model, *SIZE, "--no-chunks")
    assert "cut off:" in cut.err
    assert "chunks" not in cut.err
    assert record(cut.lines[0]).reading == {}
    assert record(cut.lines[0]).image_hash != record(path).image_hash
    assert f"{cut.lines[0]}: identical" in again(t2i, cut.lines[0], *model)  # as records from before chunks
    raw = t2i(LONG, *model, *SIZE, "--raw")
    assert record(raw.lines[0]).image_hash == record(cut.lines[0]).image_hash
    assert "chunks" not in t2i(SHORT, *model, *SIZE).err


def test_what_is_cut_is_what_plain_diffusers_cuts(t2i: Run, family: Callable[[str], Path]) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(family("sd15"))
    pipe.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(5)]
    size: dict[str, Any] = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": 3.0}
    theirs = pipe(LONG, generator=generator, output_type="np", **size).images[0]
    path = t2i(LONG, "-m", str(family("sd15")), *SIZE, "--no-chunks").lines[0]
    ours = np.asarray(images.decode(Path(path)), np.float32) / 255
    assert np.abs(ours - theirs).max() <= 1.5 / 255


def test_where_chunks_cannot_be_the_end_is_cut_and_that_is_said(t2i: Run, family: Callable[[str], Path]) -> None:
    ran = t2i(LONG * 5, "-m", str(family("flux")), *SIZE, "--chunks")
    assert (ran.code, "cut off:" in ran.err, "chunks" in ran.err) == (0, True, False)
    asked = t2i("a horse " * 10, "--chunks", *SIZE)  # an encoder of 16 tokens: when it is asked to
    assert "2 chunks of 14 tokens" in asked.err
    assert "cut off: 'a horse" in t2i("a horse " * 10, *SIZE).err


def test_too_many_chunks_are_refused_before_anything_is_loaded(t2i: Run, family: Callable[[str], Path]) -> None:
    ran = t2i("a horse, " * 700, "-m", str(family("sd15")))
    assert ran.code == 2
    assert "prompt: more than 20 chunks of 75 tokens" in ran.err
    assert "--no-chunks" in ran.err


# --- negative prompts ---


def test_a_negative_prompt_is_chosen_by_the_images_seed(t2i: Run, here: Path) -> None:
    (here / "wildcards").mkdir()
    (here / "wildcards" / "bad.txt").write_text("blurry\ngrainy\n")
    template = "{cat|dog|fish}, __bad__"
    ran = t2i("a {cat|dog|fish}", "-n", template, "--guidance", "3", "-s", "1", "-b", "12", "--json")
    made = [recorded(line) for line in ran.lines]
    chosen = [row["negative_prompt"] for row in made]
    assert len(set(chosen)) > 3
    assert all(text.split(", ")[0] in ("cat", "dog", "fish") for text in chosen)
    assert {row["negative_template"] for row in made} == {template}
    assert [row["prompt"] for row in made] == [resolve("a {cat|dog|fish}", seed) for seed in range(1, 13)]
    # draws of its own: not always what the prompt drew
    assert any(text.split(",")[0] != row["prompt"][2:] for text, row in zip(chosen, made, strict=True))
    one = recorded(t2i("a horse", "-n", template, "--guidance", "3", "-s", "7", "--json").lines[0])
    assert one["negative_prompt"] == chosen[6]


def test_a_chosen_negative_prompt_is_made_again_and_raw_chooses_nothing(t2i: Run) -> None:
    path = t2i("a horse", "-n", "{cat|dog}", *SIZE).lines[0]
    assert f"{path}: identical" in again(t2i, path)
    assert record("again/00001-5.png").negative_template == "{cat|dog}"
    assert record("again/00001-5.png").negative_prompt in ("cat", "dog")
    raw = t2i("a horse", "-n", "{cat|dog}", "--raw", *SIZE).lines[0]
    assert (record(raw).negative_prompt, record(raw).negative_template) == ("{cat|dog}", "{cat|dog}")
    ran = t2i("--from", raw, "a {red|red} horse", "--json", steps="")
    row = recorded(ran.lines[0])
    assert (row["prompt"], row["negative_prompt"]) == ("a red horse", "{cat|dog}")  # a record's is as it was


def test_rows_choose_their_negative_prompts(t2i: Run, here: Path) -> None:
    rows = [{"prompt": "a horse", "negative_prompt": "{cat|dog}", "seed": k, "guidance": 3} for k in range(8)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = t2i("--prompts", "rows.jsonl", "-o", "out/", "--batch-size", "4", "--json")
    made = [recorded(line) for line in ran.lines]
    assert [row["negative_prompt"] for row in made] == [resolve_negative("{cat|dog}", k) for k in range(8)]
    assert {row["negative_prompt"] for row in made} == {"cat", "dog"}
    before = {name: os.stat(here / "out" / name).st_mtime_ns for name in files(here / "out") if name.endswith(".png")}
    assert len(before) == 8
    assert t2i("--prompts", "rows.jsonl", "-o", "out/", "--batch-size", "4").lines == []
    assert before == {name: os.stat(here / "out" / name).st_mtime_ns for name in before}


def test_a_batch_of_long_and_short_prompts(t2i: Run, here: Path, family: Callable[[str], Path]) -> None:
    """Every image under its own name, and the same as alone."""
    model = ("-m", str(family("sd15")), "--size", "32")
    (here / "p.txt").write_text(f"{SHORT}\n{LONG}\na (cat:1.3)\n{LONG}\n")
    ran = t2i("--prompts", "p.txt", "-o", "out/", "--batch-size", "4", "-s", "3", *model)
    assert ran.code == 0, ran.err
    drawn = [record(path) for path in ran.lines]
    assert [made.prompt for made in drawn] == [SHORT, LONG, "a (cat:1.3)", LONG]
    assert [int(Path(path).name[:6]) for path in ran.lines] == [1, 2, 3, 4]
    for made in drawn:
        alone = t2i(made.prompt, "-s", str(made.seed), *model).lines[0]
        assert record(alone).image_hash == made.image_hash


def test_a_job_keeps_its_name_unless_its_prompts_hold_weights(t2i: Run, here: Path) -> None:
    (here / "plain.txt").write_text("a horse (brown)\n")
    (here / "weights.txt").write_text("a (brown:1.2) horse\n")
    names = {}
    for name in ("plain", "weights"):
        for more in ((), ("--raw",)):
            t2i("--prompts", f"{name}.txt", "-o", f"{name}{len(more)}/", "-s", "1", "--size", "32", *more)
            names[name, bool(more)] = next(f for f in files(here / f"{name}{len(more)}") if f.endswith(".png"))
    assert names["plain", False] == names["plain", True]
    assert names["weights", False] != names["weights", True]


def test_info_tells_how_prompts_were_read(t2i: Run, capfd: pytest.CaptureFixture[str]) -> None:
    from t2i.cli.main import main

    first = t2i("a (red:1.4) horse", "-n", "{cat|dog}", *SIZE).lines[0]
    second = t2i("a (red:1.4) horse", "-n", "{cat|dog}", *SIZE, "--raw").lines[0]
    assert main(["info", first]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "prompts read weights: applied" in shown
    assert "negative template {cat|dog}" in shown
    assert main(["info", first, second]) == 0
    assert "reading.weights" in capfd.readouterr().out


def test_a_negative_prompt_that_flux_does_not_read_is_said(t2i: Run, family: Callable[[str], Path]) -> None:
    """Its guidance is a number that the network is given; a negative prompt needs another, true_cfg_scale."""
    ran = t2i("a horse", "-n", "a cat", "-m", str(family("flux")), *SIZE)
    assert "warning: the negative prompt does nothing (guidance 3 of tiny-flux)" in ran.err
