"""`t2i generate` as a user meets it: prompts in, files and paths out, errors in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate_kit import Run, files
from PIL import Image

from t2i.jobs.spec import output_paths
from t2i.jobs.spec.tasks import Prompt, make_tasks
from t2i.metadata import recipe

OPTIONS = """
--prompt --prompts --negative-prompt --model --steps --num-inference-steps --guidance --cfg-scale --guidance-scale
--seed --batch-count --num-images --batch-size --width --height --size --scheduler --sampler --output --overwrite
--grid --format --json --device --dtype --revision --offline --quiet --debug T2I_MODEL --from --raw --wildcards
"""


# --- what comes out ---


def test_a_prompt_becomes_a_file_and_stdout_its_path(t2i: Run, here: Path) -> None:
    ran = t2i("a horse", "-s", "7")
    assert ran.code == 0
    assert len(ran.lines) == 1
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/00001-7\.png", ran.lines[0])
    assert files(here) == ran.lines
    with Image.open(ran.lines[0]) as image:
        assert image.size == (32, 32)
    said = ran.err.strip().splitlines()
    assert len(said) == 1  # one line of ours, and not a word of the libraries'
    for fact in ("tiny", "cpu", "float32", "32x32", "2 steps", "dpm++2m", "guidance 7.5", "seed 7"):
        assert fact in said[0]


def test_the_file_carries_its_recipe(t2i: Run) -> None:
    path = Path(t2i("a horse", "-n", "a cat", "-s", "7", "--guidance", "3", "--sampler", "Euler a").lines[0])
    record = recipe.read(path)
    assert record.recipe is not None
    assert record.generated
    made = record.recipe
    assert (made.prompt, made.negative_prompt, made.seed, made.guidance) == ("a horse", "a cat", 7, 3)
    assert (made.steps, made.scheduler, made.model) == (2, "euler-a", "tiny")
    assert str(record.parameters).startswith("a horse\nNegative prompt: a cat\nSteps: 2, Sampler: Euler a")


def test_drawing_by_the_recipe_gives_the_same_picture(t2i: Run) -> None:
    eight = t2i("a horse", "-b", "8", "-s", "100", "--scheduler", "euler-a", "-o", "many/").lines
    alone = t2i("a horse", "-s", "105", "--sampler", "Euler a", "-o", "one.png").lines
    a, b = (np.asarray(Image.open(path), np.int16) for path in (eight[5], alone[0]))
    assert np.abs(a - b).max() <= 1


def test_json_is_one_object_per_image(t2i: Run, here: Path) -> None:
    ran = t2i("a horse", "a cat", "-b", "2", "-s", "5", "--json", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    records = [json.loads(line) for line in ran.lines]
    assert [(record["prompt"], record["seed"]) for record in records] == [
        ("a horse", 5),
        ("a horse", 6),
        ("a cat", 5),
        ("a cat", 6),
    ]
    assert sorted(record["path"] for record in records) == files(here)
    assert str(here) not in ran.out


def test_a_random_seed_is_shown_and_recorded(t2i: Run) -> None:
    shown = [t2i("a horse", "-s", "-1"), t2i("a horse")]
    seeds = [int(Path(ran.lines[0]).stem.split("-")[1]) for ran in shown]
    assert seeds[0] != seeds[1]
    for ran, seed in zip(shown, seeds, strict=True):
        assert f"seed {seed}" in ran.err
        assert recipe.read(Path(ran.lines[0])).recipe.seed == seed  # type: ignore[union-attr]


def test_seeds_may_be_repeated(t2i: Run) -> None:
    lines = t2i("a horse", "-s", "3", "-s", "9", "-b", "2", "-o", "{seed}").lines
    assert lines == ["3.png", "4.png", "9.png", "10.png"]


def test_the_grid_comes_last_and_holds_all(t2i: Run) -> None:
    ran = t2i("a horse", "a cat", "-b", "3", "--grid", "-o", "g/", "--json")
    assert ran.code == 0
    last = json.loads(ran.lines[-1])
    assert last["grid"] is True
    with Image.open(last["path"]) as sheet:
        assert sheet.width > 3 * 32 > sheet.height > 2 * 32
    assert len(ran.lines) == 7


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_formats(t2i: Run, suffix: str, kind: str) -> None:
    path = t2i("a horse", "--format", suffix).lines[0]
    with Image.open(path) as image:
        assert image.format == kind
    assert recipe.read(Path(path)).recipe is not None


def test_an_output_is_never_overwritten_unless_asked(t2i: Run, here: Path) -> None:
    assert t2i("a horse", "-s", "1", "-o", "x.png").code == 0
    before = (here / "x.png").read_bytes()
    ran = t2i("a horse", "-s", "2", "-o", "x.png")
    assert (ran.code, ran.out) == (2, "")
    assert "x.png exists already" in ran.err
    assert (here / "x.png").read_bytes() == before
    assert t2i("a horse", "-s", "2", "-o", "x.png", "--overwrite").code == 0
    assert (here / "x.png").read_bytes() != before


def test_default_names_count_on(t2i: Run, here: Path) -> None:
    for _ in range(2):
        t2i("a horse", "-b", "2", "-s", "1")
    assert [Path(name).name for name in files(here)] == ["00001-1.png", "00002-2.png", "00003-1.png", "00004-2.png"]


def test_two_jobs_in_one_folder_never_clobber(t2i: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t2i("a horse", "-s", "1", "-o", "both/")
    before = (here / "both" / "00001-1.png").read_bytes()
    monkeypatch.setattr(output_paths, "_first_free", lambda *_: 1)  # as if the other had not written yet when we looked
    assert t2i("a dog", "-s", "1", "-o", "both/").lines == ["both/00002-1.png"]
    assert (here / "both" / "00001-1.png").read_bytes() == before


# --- what goes in ---


def test_prompts_from_everywhere(t2i: Run, here: Path) -> None:
    (here / "more.txt").write_bytes("\ufeffa dog\r\n\r\nein Käfer\r\n".encode())
    ran = t2i("a horse", "-", "-p", "a cat", "--prompts", "more.txt", "-s", "5", "--json", stdin=b"a fish\n")
    records = [json.loads(line) for line in ran.lines]
    assert [record["prompt"] for record in records] == ["a horse", "a fish", "a cat", "a dog", "ein Käfer"]
    assert [record["seed"] for record in records] == [5, 5, 5, 5, 6]  # rows of a file have seeds of their own


def test_rows_of_a_file_shift_the_seeds() -> None:
    jobs = [task.job for task in make_tasks([Prompt("a"), Prompt("b", 0), Prompt("c", 1), Prompt("d", 2)], [10], 3)]
    assert [job.seed for job in jobs] == [10, 11, 12, 10, 11, 12, 13, 14, 15, 16, 17, 18]


def test_single_words_get_a_hint_about_quotes(t2i: Run) -> None:
    ran = t2i("a", "horse", "runs")
    assert (ran.code, len(ran.lines)) == (0, 3)
    assert '"a horse runs"' in ran.err
    assert "hint" not in t2i("a horse", "a cat").err
    assert "hint" not in t2i("horse").err


def test_a_number_as_negative_prompt_gets_a_hint(t2i: Run) -> None:
    ran = t2i("a horse", "-n", "4")  # elsewhere -n is a count
    assert (ran.code, len(ran.lines)) == (0, 1)
    assert "for 4 images give --batch-count 4" in ran.err
    assert "hint" not in t2i("a horse", "-n", "4 legs").err


@pytest.mark.parametrize("prompt", ["../../x", "/etc/x", "CON", "\U0001f40e" * 300, "\u202egnp.exe", "a\nb", "-n"])
def test_any_prompt_names_a_file_inside_the_folder(t2i: Run, here: Path, prompt: str) -> None:
    ran = t2i("-p", prompt, "-o", "out/{prompt}.png")
    assert ran.code == 0
    assert files(here) == ran.lines
    assert re.fullmatch(r"out/[^/]+\.png", ran.lines[0])
    assert recipe.read(Path(ran.lines[0])).recipe.prompt == prompt  # type: ignore[union-attr]


def test_a_prompt_with_nul_is_drawn(t2i: Run, here: Path) -> None:
    ran = t2i("-", "-o", "{prompt}", stdin=b"a\0b\n")
    assert (ran.code, files(here)) == (0, ["a-b.png"])


def test_an_empty_prompt_is_drawn_unconditionally_and_said(t2i: Run) -> None:
    ran = t2i("")
    assert (ran.code, len(ran.lines)) == (0, 1)
    assert "unconditionally" in ran.err


def test_words_beyond_the_encoder_are_named(t2i: Run) -> None:
    ran = t2i(" ".join(["horse"] * 14 + ["van", "cat"]))
    assert ran.code == 0
    assert "'van cat'" in ran.err


def test_a_negative_prompt_without_effect_is_said(t2i: Run) -> None:
    assert "negative prompt does nothing" in t2i("a horse", "-n", "a cat", "--guidance", "1").err
    assert "negative prompt" not in t2i("a horse", "-n", "a cat").err


def test_the_model_may_bring_its_defaults(t2i: Run, pipeline_copy: Path) -> None:
    (pipeline_copy / "t2i.json").write_text('{"steps": 3, "guidance": 2, "size": [40, 48], "scheduler": "euler"}')
    ran = t2i("a horse", "-m", str(pipeline_copy), steps="")
    for fact in ("3 steps of euler", "guidance 2", "40x48"):
        assert fact in ran.err


@pytest.mark.parametrize(
    "options", [("--size", "40x48"), ("-W", "40", "-H", "48"), ("--width", "40", "--height", "48")]
)
def test_sizes(t2i: Run, options: tuple[str, ...]) -> None:
    with Image.open(t2i("a horse", *options).lines[0]) as image:
        assert image.size == (40, 48)


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "33x32"], ["width", "33", "multiple of 8", "nearest size is 32"]),
        (["--size", "0x32"], ["width", "allowed 1 to 8192"]),
        (["--size", "1000000"], ["width", "allowed 1 to 8192"]),
        (["--size", "big"], ["--size", "512x512"]),
        (["--size", "32", "-W", "32"], ["either --size"]),
        (["-H", "-1"], ["height", "allowed 1 to 8192"]),
        (["--steps", "0"], ["steps", "1 to 1000"]),
        (["--guidance", "nan"], ["guidance", "0 to 100"]),
        (["-s", "-2"], ["seed", "18446744073709551615"]),
        (["-s", str(2**64)], ["seed", "18446744073709551615"]),
        (["-s", str(2**64 - 1), "-b", "2"], ["seed", "for every image"]),
        (["-b", "0"], ["images per prompt"]),
        (["--batch-size", "0"], ["batch size"]),
        (["--columns", "3"], ["--columns 3", "add --grid"]),
        (["--scheduler", "fast"], ["'fast'", "dpm++2m"]),
        (["--scheduler", "pndm"], ["'pndm'", "does not work", "dpm++2m", "unipc"]),
        (["--device", "tpu"], ["'tpu'", "cpu"]),
        (["--dtype", "int3"], ["'int3'", "float32"]),
        (["--revision", "main"], ["revision"]),
        (["--format", "bmp"], ["png"]),
        (["-o", "x.tiff"], [".tiff", ".png"]),
        (["-o", "{nothing}.png"], ["{nothing}", "{seed}"]),
        (["--prompts", "absent.txt"], ["absent.txt"]),
        (["--prompts", "rows.jsonl"], [".jsonl"]),
        (["-", "-"], ["once only"]),
        (["-p", "x" * 1_000_001], ["1000001 bytes", "allowed are 1000000"]),
        (["-n", "x" * 1_000_001], ["negative prompt"]),
    ],
)
def test_wrong_usage_is_exit_2_with_the_way_out_and_no_file(
    t2i: Run, here: Path, arguments: list[str], said: list[str]
) -> None:
    steps = "" if "--steps" in arguments else "2"
    ran = t2i("a horse", *arguments, steps=steps)
    assert (ran.code, ran.out, files(here)) == (2, "", [])
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err
    assert len(ran.err) < 1500
    for part in said:
        assert part in ran.err


def test_no_prompt_is_an_error_with_an_example(t2i: Run) -> None:
    for arguments, stdin in (([], b""), (["-"], b"\n \n")):
        ran = t2i(*arguments, stdin=stdin)
        assert ran.code == 2
        assert "t2i generate" in ran.err


def test_prompts_that_are_no_text_are_refused(t2i: Run) -> None:
    ran = t2i("-", stdin=b"a horse\n\xff\xfe\n")
    assert (ran.code, "not UTF-8 text (byte 8)" in ran.err) == (2, True)


def test_wrong_usage_is_told_before_anything_heavy_is_loaded(here: Path) -> None:
    program = (
        "import sys\nfrom t2i.cli.main import main\n"
        "code = main(['generate', 'x', '--steps', '0'])\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\nsys.exit(code)"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (2, "error: steps: got 0, allowed 1 to 1000\n")


@pytest.mark.parametrize("model", ["owner/absent", "sd15", "sd51"])
def test_a_model_that_cannot_be_had_is_exit_4(t2i: Run, tmp_path: Path, monkeypatch: Any, model: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    ran = t2i("a horse", "-m", model, "--offline")
    assert (ran.code, ran.out) == (4, "")
    assert model in ran.err
    assert "gets it" in ran.err or "did you mean sd15" in ran.err


def test_a_token_stays_secret(t2i: Run, tmp_path: Path, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    token = "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"
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # asks the closed port that conftest names
    told = t2i("a horse", "-m", "owner/absent", "--debug")
    assert told.code == 4
    drawn = t2i("a horse", "--json")
    assert drawn.code == 0
    everything = (told.out + told.err + drawn.out + drawn.err).encode()
    everything += Path(json.loads(drawn.lines[0])["path"]).read_bytes()
    assert token.encode() not in everything


def test_non_finite_weights_leave_no_file(t2i: Run, here: Path, pipeline_copy: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = pipeline_copy / "unet" / "diffusion_pytorch_model.safetensors"
    nan = {name: torch.full_like(value, float("nan")) for name, value in load_file(weights).items()}
    save_file(nan, weights, {"format": "pt"})
    ran = t2i("a horse", "-m", str(pipeline_copy), "--dtype", "bfloat16")
    assert (ran.code, ran.out, files(here)) == (1, "", [])
    assert "non-finite image" in ran.err
    assert "try --dtype float32" in ran.err


def test_a_pickled_model_is_refused(t2i: Run, here: Path) -> None:
    (here / "model.ckpt").write_bytes(b"\x80\x04.")
    ran = t2i("a horse", "-m", "model.ckpt")
    assert (ran.code, ran.out) == (1, "")
    assert "pickle" in ran.err


def test_what_was_drawn_before_a_failure_is_kept(t2i: Run, here: Path, monkeypatch: Any) -> None:
    import torch

    from t2i.pipelines.text_to_image.runner import PipelineRunner

    draw = PipelineRunner.draw

    def fail_on_13(self: Any, batch: Any, *rest: Any) -> Any:
        x, blanked = draw(self, batch, *rest)
        x[[job.seed == 13 for job in batch]] = torch.nan
        return x, blanked

    monkeypatch.setattr(PipelineRunner, "draw", fail_on_13)
    ran = t2i("a horse", "-s", "11", "-b", "4", "--batch-size", "2", "-o", "{seed}")
    assert ran.code == 3
    assert ran.lines == files(here) == ["11.png", "12.png", "14.png"]
    assert "seed 13" in ran.err


def test_a_name_that_is_taken_while_drawing_is_a_partial_failure(t2i: Run, here: Path, monkeypatch: Any) -> None:
    from t2i.pipelines.text_to_image.runner import PipelineRunner

    draw = PipelineRunner.draw

    def with_another_job(self: Any, batch: Any, *rest: Any) -> Any:
        if batch[0].seed == 2:
            (here / "2.png").write_bytes(b"theirs")
        return draw(self, batch, *rest)

    monkeypatch.setattr(PipelineRunner, "draw", with_another_job)
    ran = t2i("a horse", "-s", "1", "-b", "3", "--batch-size", "1", "-o", "{seed}")
    assert (ran.code, ran.lines, files(here)) == (3, ["1.png"], ["1.png", "2.png"])
    assert "2.png exists already (1 of 3 images are written)" in ran.err
    assert (here / "2.png").read_bytes() == b"theirs"


def test_a_picture_blanked_by_a_safety_checker_is_no_success(t2i: Run, here: Path, monkeypatch: Any) -> None:
    from t2i.pipelines.text_to_image.runner import PipelineRunner

    draw = PipelineRunner.draw
    monkeypatch.setattr(PipelineRunner, "draw", lambda self, *rest: (draw(self, *rest)[0], [False, True]))
    ran = t2i("a horse", "-s", "1", "-b", "2", "-o", "{seed}")
    assert (ran.code, files(here)) == (3, ["1.png"])
    assert "safety checker blanked seed 2" in ran.err


def test_help_names_every_option_and_its_other_spellings(t2i: Run) -> None:
    ran = t2i("--help", steps="")
    assert ran.code == 0
    for name in OPTIONS.split():
        assert name in ran.out
