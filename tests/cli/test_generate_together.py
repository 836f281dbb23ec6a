"""What the options of `t2i generate` do together: adapters, pictures to start from, the machine, speed, and rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapter_kit import save_ip_adapter, save_lora
from editing_kit import half_mask, picture, pixels, save_control
from generate_kit import Run

from t2i import load
from t2i.cli.user_config import config_path
from t2i.errors import UsageError
from t2i.metadata import recipe
from t2i.pipelines.loading import quantize
from t2i.pipelines.text_to_image.runner import PipelineRunner

Family = Callable[[str], Path]
SIZE = ("--size", "32", "-s", "5")


@pytest.fixture
def kit(family: Family, here: Path) -> dict[str, str]:
    """Files for the small Stable Diffusion 1, in the working folder."""
    model = family("sd15")
    picture().save(here / "pic.png")
    half_mask().save(here / "mask.png")
    save_lora(model, here / "style.safetensors")
    save_control(model, here / "edges")
    return {"model": str(model)}


def rows(path: Path, *values: dict[str, Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in values) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        ("--cache", "reuse", "-i", "pic.png", "--control", "edges:pic.png", "--upscale", "2"),
        ("--cache", "taylor", "--lora", "style.safetensors:0.5", "--preview", "1", "--upscale", "1.5"),
        ("--preview", "2", "-i", "pic.png", "--mask", "mask.png", "--lora", "style.safetensors"),
        ("--quantize", "8", "--lora", "style.safetensors", "-i", "pic.png", "--control", "edges:pic.png"),
    ],
    ids=lambda options: " ".join(options[::2]),
)
def test_options_together_are_recorded_and_replayed(options: tuple[str, ...], kit: dict[str, str], t2i: Run) -> None:
    if "--quantize" in options:
        pytest.importorskip("torchao")
    ran = t2i("a (horse:1.3)", "-m", kit["model"], *SIZE, *options, "-o", "first.png", steps="5")
    assert ran.code == 0, ran.err
    assert not list(Path().glob("preview-*"))
    ran = t2i("-m", kit["model"], "--from", "first.png", "-o", "again.png", steps="")
    assert (ran.code, "first.png: identical" in ran.err) == (0, True), ran.err


def test_adapters_are_on_again_where_the_model_is_loaded_anew(
    kit: dict[str, str], t2i: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda _: None)  # the ladder ends with tiling
    draw = PipelineRunner.draw

    def limited(self: PipelineRunner, *rest: Any) -> Any:
        if not self.pipe.vae.use_tiling:
            raise MemoryError
        return draw(self, *rest)

    asked = ("a horse", "-m", kit["model"], *SIZE, "-i", "pic.png", "--control", "edges:pic.png", "--cache", "reuse")
    worn = ("--lora", "style.safetensors")
    machine = ("--dtype", "bfloat16", "--tiling")
    assert t2i(*asked, *worn, *machine, "-o", "direct.png", steps="5").code == 0
    assert t2i(*asked, *machine, "-o", "bare.png", steps="5").code == 0
    monkeypatch.setattr(PipelineRunner, "draw", limited)
    ran = t2i(*asked, *worn, "--auto-retry", "-o", "retried.png", steps="5")
    assert (ran.code, "going on with tiled decoding" in ran.err) == (0, True), ran.err
    assert (pixels("retried.png") == pixels("direct.png")).all()
    assert (pixels("retried.png") != pixels("bare.png")).any()
    found = recipe.read(Path("retried.png")).recipe
    assert found is not None
    assert ([one["kind"] for one in found.adapters], found.machine["retries"]) == (["lora"], 2)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_cache_is_not_compiled(more: tuple[str, ...], t2i: Run) -> None:
    ran = t2i("a horse", "--compile", "--cache", "reuse", *more)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "error: --cache reuse:2 with --compile: every step would be compiled anew\n"
        "hint: leave --compile out, or --cache none\n"
    )


def test_a_quantised_u_net_takes_no_ip_adapter(family: Family, kit: dict[str, str], t2i: Run, here: Path) -> None:
    pytest.importorskip("torchao")
    save_ip_adapter(family("sd15"), here / "ip.safetensors")
    ran = t2i("a horse", "-m", kit["model"], *SIZE, "--quantize", "8", "--ip-adapter", "ip.safetensors:pic.png")
    assert (ran.code, ran.out) == (2, "")
    assert "error: --ip-adapter with quantised weights: the U-Net of tiny-sd15 cannot take one" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--lora", "gone.safetensors"), 2, "error: --lora gone.safetensors: no such file"),
        (("--ip-adapter", "gone:pic.png"), 2, "error: --ip-adapter gone: no such file"),
        (("--embedding", "some/word"), 4, "error: --embedding some/word: no such file here, not in the cache"),
        (("--control", "gone:pic.png"), 2, "error: control 'gone': no folder, and no type known for this model"),
        (("--control", "canny:pic.png"), 4, "error: 'lllyasviel/control_v11p_sd15_canny' is not in the cache"),
        (("--cache", "first-block"), 2, "error: cache 'first-block' does not work with this model's network"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_dry_run_judges_as_the_run(
    arguments: tuple[str, ...], code: int, said: str, kit: dict[str, str], t2i: Run
) -> None:
    run = t2i("a horse", "-m", kit["model"], *SIZE, *arguments)
    assert (run.code, said in run.err) == (code, True), run.err
    dry = t2i("a horse", "-m", kit["model"], *SIZE, *arguments, "--dry-run")
    assert (dry.code, dry.err) == (code, run.err)


def test_a_dry_run_names_what_comes_beside_the_model(kit: dict[str, str], t2i: Run, here: Path) -> None:
    wanted = ("--lora", "style.safetensors:0.5", "--control", "edges:pic.png", "--upscale", "2", "--cache", "reuse")
    asked = ("a horse", "-m", kit["model"], *SIZE, *wanted, "--dry-run")
    facts = json.loads(t2i(*asked, "--json", steps="5").out)["models"][0]
    network = (here / "edges" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert [(one["kind"], one["name"], one["bytes"]) for one in facts["besides"]] == [
        ("lora", "style.safetensors", (here / "style.safetensors").stat().st_size),
        ("control", "edges", network),
    ]
    assert (facts["size"], facts["cache"]) == ("64x64", "reuse:2")  # of the second pass
    assert facts["starts"] == ["guided by edges pic.png x 1, then 2 times larger, strength 0.4"]
    page = t2i(*asked, steps="5").lines
    assert any(line.split()[:4] == ["lora", "style.safetensors", "x", "0.5"] for line in page)
    assert any(line.split()[:2] == ["control", "edges"] for line in page)


def test_all_controls_are_found_before_the_first_picture(kit: dict[str, str], t2i: Run, here: Path) -> None:
    for name, options in (("one", ()), ("two", ("--control", "edges:pic.png", "--dtype", "bfloat16"))):
        assert t2i("a horse", "-m", kit["model"], *SIZE, *options, "-o", f"{name}.png").code == 0
    (here / "edges").rename(here / "elsewhere")
    ran = t2i("-m", kit["model"], "--from", "one.png", "--from", "two.png", "-o", "again/", steps="")
    assert (ran.code, ran.out, (here / "again").exists()) == (2, "", False)
    assert ran.err == (
        "error: --from two.png: control 'edges': no folder, and no type known for this model\n"
        "hint: put its folder here, or give its place: --control FOLDER:IMAGE\n"
    )
    ran = t2i("-m", kit["model"], "--from", "two.png", "--control", "elsewhere:pic.png", "-o", "again/", steps="")
    assert "drawn anew, with another input image, strength or ControlNet" in ran.err
    assert (pixels(ran.lines[0]) == pixels("two.png")).all()


def test_rows_set_speed_and_machine(kit: dict[str, str], t2i: Run, here: Path) -> None:
    file = rows(
        here / "rows.jsonl",
        {"prompt": "a horse", "cache": "reuse", "steps": 5},
        {"prompt": "a horse", "tiling": True, "deterministic": True},
        {"prompt": "a (horse:1.3)", "raw": True},
        {"prompt": "a (horse:1.3)", "chunks": False},
    )
    ran = t2i("-m", kit["model"], "--prompts", file, *SIZE, "-o", "out/")
    assert ran.code == 0, ran.err
    found = [recipe.read(Path(line)).recipe for line in ran.lines]
    assert [one and one.machine for one in found] == [
        {"cache": "reuse:2"},
        {"tiling": True, "deterministic": True},
        {},
        {},
    ]
    assert ["weights" in one.reading for one in found if one] == [False, False, False, True]
    table = here / "rows.csv"
    table.write_text("prompt,tiling,quantize\na horse,true,none\na cat,false,\n", encoding="utf-8")
    ran = t2i("-m", kit["model"], "--prompts", str(table), *SIZE, "-o", "table/")
    found = [recipe.read(Path(line)).recipe for line in ran.lines]
    assert [one and one.machine.get("tiling") for one in found] == [True, None]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tiling": 1}, "tiling: got '1', allowed true, false"),
        ({"quantize": 7}, "quantize: got '7', allowed none, 8, 4"),
        ({"cache": "resue"}, "cache: got 'resue'"),
        ({"quantise": 8}, "unknown option 'quantise', did you mean 'quantize'?"),
        ({"compile": True}, "compile is an option of the whole run, not of a row\nhint: set --compile for the run"),
        ({"lora": "gone.safetensors"}, "--lora gone.safetensors: no such file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("out", ["out/", "{index}.png"])
def test_a_wrong_row_is_named(row: dict[str, Any], said: str, out: str, t2i: Run, here: Path) -> None:
    file = rows(here / "rows.jsonl", {"prompt": "a horse"}, {"prompt": "a cat"} | row)
    for more in ((), ("--dry-run",)):
        ran = t2i("--prompts", file, "-o", out, *more)
        assert (ran.code, ran.out, f"line 2: {said}" in ran.err) == (2, "", True), ran.err
    assert not (here / "out").exists()


def test_a_default_strength_waits_for_a_picture_and_adds_nothing_to_a_record(
    kit: dict[str, str], t2i: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert t2i("a horse", "-m", kit["model"], *SIZE, "-o", "words.png").code == 0
    config_path().parent.mkdir(parents=True)
    config_path().write_text("generate:\n  strength: 0.5\n", encoding="utf-8")
    assert t2i("a horse", "-m", kit["model"], *SIZE, "-o", "same.png").code == 0
    assert (pixels("same.png") == pixels("words.png")).all()
    ran = t2i("a horse", "-m", kit["model"], *SIZE, "-i", "pic.png")
    assert "from pic.png, strength 0.5 (1 step run)" in ran.err
    config_path().write_text("generate:\n  upscale: '2'\n", encoding="utf-8")
    ran = t2i("--from", "words.png", "-m", kit["model"], steps="")
    assert "words.png: identical" in ran.err, ran.err


def test_info_says_in_words_how_a_picture_was_computed(
    kit: dict[str, str], t2i: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    from t2i.cli.main import main

    options = ("--tiling", "--deterministic", "--cache", "reuse:3")
    assert t2i("a horse", "-m", kit["model"], *SIZE, *options, "-o", "one.png").code == 0
    sys.stdout.flush()
    assert main(["info", "one.png"]) == 0
    line = next(line for line in capfd.readouterr().out.splitlines() if line.split()[:1] == ["machine"])
    assert line.split(maxsplit=1)[1] == "tiled decoding, deterministic, cache reuse:3"


def test_python_reads_what_the_command_reads(tiny_pipeline: Path) -> None:
    draw = load(tiny_pipeline)
    with pytest.raises(UsageError, match=r"there is no loras/style.safetensors"):
        draw("a horse <lora:style:0.5>", seed=1, steps=2)
    with pytest.warns(UserWarning, match="reads no further than its text encoder"):
        assert draw("a <lora:style:0.5>", seed=1, steps=2, raw=True)[0].recipe.prompt == "a <lora:style:0.5>"
    with pytest.raises(UsageError, match="every step would be compiled anew"):
        load(tiny_pipeline, compile=True, cache="reuse")
