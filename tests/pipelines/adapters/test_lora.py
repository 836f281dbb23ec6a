"""`t2i generate --lora`: what diffusers draws with the same files, every tensor counted, every wrong file named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_kit import OPTIONS, draw, kohya_names, load, pixels, save, save_lora
from family_kit import FAMILIES
from generate_kit import Run

from t2i.errors import UsageError
from t2i.metadata import recipe
from t2i.metadata.recipe import Recipe
from t2i.pipelines.adapters.specs import Adapters, Embedding, IPAdapter, Lora

Family = Callable[[str], Path]


def record(path: str | Path) -> Recipe:
    made = recipe.read(Path(path)).recipe
    assert made is not None
    return made


# --- how they are written ---


def test_paths_scales_tokens_and_pictures() -> None:
    assert Adapters.read("a.safetensors", "b.safetensors:cat", "c.safetensors:d.png:0.5") == Adapters(
        (Lora("a.safetensors"),), (Embedding("b.safetensors", "cat"),), (IPAdapter("c.safetensors", "d.png", 0.5),)
    )
    assert Adapters.read(["a:-0.5", "owner/name/x.safetensors:2"]).loras == (
        Lora("a", -0.5),
        Lora("owner/name/x.safetensors", 2.0),
    )
    assert Adapters.read(r"C:\a.safetensors:0.5", r"D:\b.safetensors", r"E:\c.safetensors:F:\d.png").ip_adapters == (
        IPAdapter(r"E:\c.safetensors", r"F:\d.png"),
    )
    assert not Adapters.read()


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("loras", "a.safetensors:nan", "`lora=a.safetensors`: scale: got 'nan', expected a finite number"),
        ("loras", "a.safetensors:1e999", "`lora=a.safetensors`: scale: got '1e999', expected a finite number"),
        ("loras", "a.safetensors:strong", "`lora=a.safetensors`: scale: got 'strong', expected a number"),
        ("loras", ":0.5", "`lora`: no path"),
        ("embeddings", "a.safetensors:two words", "`embedding=a.safetensors:two words`: the token must be one word"),
        ("ip_adapters", "a.safetensors", "`ip_adapter=a.safetensors`: expected PATH:IMAGE or PATH:IMAGE:SCALE"),
    ],
)
def test_what_is_written_wrong(kind: str, spec: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Adapters.read(**{kind: [spec]})
    assert error.value.message.startswith(message)


def test_the_same_lora_twice() -> None:
    with pytest.raises(UsageError) as error:
        Adapters.read(["a:0.5", "a:0.7"])
    assert error.value.message == "`lora=a`: given twice"


# --- the same pictures as plain diffusers ---


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_lora_of_each_family(kind: str, family: Family, t2i: Run, tmp_path: Path) -> None:
    file = save_lora(family(kind), tmp_path / "style.safetensors")
    ran = t2i("a horse", "-m", str(family(kind)), *OPTIONS, "--lora", f"{file}:0.8", "-o", "horse.png")
    assert ran.code == 0, ran.err
    pipe = load(family(kind))
    without = draw(pipe)
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    pipe.set_adapters(["style"], [0.8])
    assert np.abs(pixels("horse.png") - draw(pipe)).max() <= 1.5
    assert np.abs(pixels("horse.png") - without).max() > 10
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        count = len(list(opened.keys()))
    assert f"lora style.safetensors: {count} of {count} tensors, scale 0.8" in ran.err


def test_a_kohya_lora_is_the_same_lora(family: Family, t2i: Run, tmp_path: Path) -> None:
    file = save_lora(family("sd15"), tmp_path / "style.safetensors")
    save(kohya_names(file), tmp_path / "kohya.safetensors")
    for name in ("style", "kohya"):
        assert (
            t2i(
                "a horse",
                "-m",
                str(family("sd15")),
                "--lora",
                f"{tmp_path / name}.safetensors",
                *OPTIONS,
                "-o",
                f"{name}.png",
            ).code
            == 0
        )
    assert np.abs(pixels("style.png") - pixels("kohya.png")).max() <= 1
    pipe = load(family("sd15"))
    pipe.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    assert np.abs(pixels("kohya.png") - draw(pipe)).max() <= 1.5


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_loras_work_together(family: Family, t2i: Run, tmp_path: Path) -> None:
    first = save_lora(family("sd15"), tmp_path / "first.safetensors", seed=1)
    second = save_lora(family("sd15"), tmp_path / "second.safetensors", seed=2, rank=3, text=False)
    wanted = ("--lora", f"{first}:0.5", "--lora", f"{second}:-0.7")
    assert t2i("a horse", "-m", str(family("sd15")), *OPTIONS, *wanted, "-o", "both.png").code == 0
    pipe = load(family("sd15"))
    pipe.load_lora_weights(tmp_path, weight_name="first.safetensors", adapter_name="one")
    pipe.load_lora_weights(tmp_path, weight_name="second.safetensors", adapter_name="two")
    pipe.set_adapters(["one", "two"], [0.5, -0.7])
    assert np.abs(pixels("both.png") - draw(pipe)).max() <= 1.5
    assert [one["scale"] for one in record("both.png").adapters] == [0.5, -0.7]


def test_scale_0_is_no_lora(family: Family, t2i: Run, tmp_path: Path) -> None:
    file = save_lora(family("sdxl"), tmp_path / "style.safetensors")
    assert t2i("a horse", "-m", str(family("sdxl")), *OPTIONS, "--lora", f"{file}:0", "-o", "zero.png").code == 0
    assert t2i("a horse", "-m", str(family("sdxl")), *OPTIONS, "-o", "none.png").code == 0
    assert record("zero.png").image_hash == record("none.png").image_hash


def test_an_image_is_the_same_alone_and_in_a_batch(family: Family, t2i: Run, tmp_path: Path) -> None:
    file = save_lora(family("sd15"), tmp_path / "style.safetensors")
    wanted = ("-m", str(family("sd15")), "--lora", str(file), "--guidance", "3")
    assert t2i("a horse", *wanted, "-s", "7", "-b", "3", "--batch-size", "3", "-o", "three-{seed}.png").code == 0
    assert t2i("a horse", *wanted, "-s", "9", "-o", "alone.png").code == 0
    assert np.abs(pixels("three-9.png") - pixels("alone.png")).max() <= 1


def test_a_lora_for_mini(here: Path, t2i: Run, tmp_path: Path) -> None:
    from t2i.model_files.registry import resolve

    file = save_lora(Path(resolve("mini").location), tmp_path / "style.safetensors", text=False)
    assert t2i("a horse", "-m", "mini", "-s", "5", "--lora", f"{file}:0.2", "-o", "mini.png").code == 0
    assert record("mini.png").adapters[0]["name"] == "style.safetensors"


# --- the base model stays as it was ---


@pytest.mark.slow
def test_taken_off_the_pictures_are_those_of_a_fresh_load_bit_for_bit(family: Family, tmp_path: Path) -> None:
    from adapter_kit import random, save_ip_adapter
    from PIL import Image

    from t2i.pipelines.text_to_image.pipeline import TextToImage

    for kind in ("sd15", "sdxl", "flux"):
        folder = tmp_path / kind
        lora = save_lora(family(kind), folder / "style.safetensors")
        word = save({"emb_params": random(3, 32 if kind == "flux" else 16)}, folder / "odd.safetensors")
        adapter = save_ip_adapter(family(kind), folder / "ip" / "adapter.safetensors")
        Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / "red.png")
        worn = Adapters.read(lora, word, f"{adapter}:{folder / 'red.png'}")
        drawer = TextToImage.load(family(kind))

        def hashes(drawer: TextToImage = drawer) -> Any:
            return [one.recipe.image_hash for one in drawer("a horse odd", seeds=[1, 2], steps=2, width=32)]

        fresh = hashes()
        drawer.set_adapters(worn)
        has_adapters = hashes()
        assert has_adapters != fresh
        drawer.set_adapters(Adapters())
        assert hashes() == fresh
        drawer.set_adapters(worn)
        assert hashes() == has_adapters
        again = TextToImage.load(family(kind), adapters=worn)
        assert hashes(again) == has_adapters


@pytest.mark.slow
def test_rows_with_other_adapters_share_one_base(family: Family, t2i: Run, tmp_path: Path, monkeypatch: Any) -> None:
    from t2i.pipelines.loading import retry

    loads: list[str] = []
    load_pipeline = retry.load_pipeline

    def counted(*arguments: Any) -> Any:
        loads.append("one")
        return load_pipeline(*arguments)

    monkeypatch.setattr(retry, "load_pipeline", counted)
    file = save_lora(family("sd15"), tmp_path / "style.safetensors")
    rows: list[dict[str, Any]] = [{"lora": f"{file}:0.5"}, {}, {"lora": [f"{file}:0.9"]}, {"lora": f"{file}:0.5"}]
    lines = [json.dumps({"prompt": "a horse", "seed": 5, "output": f"{k}.png"} | row) for k, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for run, options in enumerate((("-o", "batch/"), ("-o", "batch/"))):
        ran = t2i("--prompts", str(tmp_path / "rows.jsonl"), "-m", str(family("sd15")), *options)
        assert ran.code == 0, ran.err
        assert len(ran.lines) == (0 if run else 4)
    made = [record(Path("batch") / f"{k}.png") for k in range(4)]
    assert loads == ["one", "one"]  # one for each run
    assert [one.adapters[0]["scale"] if one.adapters else None for one in made] == [0.5, None, 0.9, 0.5]
    assert made[0].image_hash == made[3].image_hash
    assert len({one.image_hash for one in made}) == 3
    assert t2i("a horse", "-m", str(family("sd15")), "-s", "5", "-o", "plain.png").code == 0
    assert record("plain.png").image_hash == made[1].image_hash


# --- what is recorded, and made again ---


def test_a_picture_with_a_lora_is_made_again(family: Family, t2i: Run, tmp_path: Path) -> None:
    file = save_lora(family("sd15"), tmp_path / "style.safetensors")
    model = ("-m", str(family("sd15")))
    assert t2i("a horse", *model, *OPTIONS, "--lora", f"{file}:0.8", "-o", "made/a.png").code == 0
    told = record("made/a.png").adapters
    assert [(one["kind"], one["name"], one["scale"]) for one in told] == [("lora", "style.safetensors", 0.8)]
    text = recipe.read(Path("made/a.png")).parameters
    assert text is not None
    assert f'Lora hashes: "style: {told[0]["autov3"][:12]}"' in text
    assert str(tmp_path) not in text + record("made/a.png").to_json()

    gone = t2i("--from", "made/a.png", *model, steps="")
    assert gone.code == 4
    assert f"--from made/a.png: its lora style.safetensors (sha256 {told[0]['sha256'][:10]}) is not here" in gone.err
    for place in ("style.safetensors", "made/style.safetensors", "loras/style.safetensors"):
        Path(place).parent.mkdir(exist_ok=True)
        file.rename(place)
        again = t2i("--from", "made/a.png", *model, "-o", "b.png", "--overwrite", steps="")
        assert "made/a.png: identical" in again.err
        file = Path(place)
    given = t2i("--from", "made/a.png", *model, "--lora", f"{file}:0.2", "-o", "c.png", steps="")
    assert "drawn anew, with another set of adapters" in given.err
    assert record("c.png").adapters[0]["scale"] == 0.2

    save_lora(family("sd15"), Path("style.safetensors"), seed=9)
    file.unlink()
    other = t2i("--from", "made/a.png", *model, steps="")
    assert other.code == 1
    assert "is not here: style.safetensors is another one, sha256 " in other.err


def test_a_record_with_adapters_that_make_no_sense_is_no_record() -> None:
    from t2i.errors import ImageError

    made = Recipe(prompt="", steps=1, sampler="", scheduler="", guidance=1, seed=1, width=8, height=8, model="mini")
    data = json.loads(made.to_json())
    for adapters in ("lora", [1], [{"kind": ["lora"]}], [{"scale": float("nan")}], [{"a": {"b": 1}}]):
        with pytest.raises(ImageError):
            Recipe.from_json(json.dumps(data | {"adapters": adapters}))
    del data["adapters"]  # as all records before this version
    assert Recipe.from_json(json.dumps(data)).adapters == []


def test_info_shows_adapters(family: Family, t2i: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from t2i.cli.main import main

    file = save_lora(family("sd15"), tmp_path / "style.safetensors")
    assert t2i("a horse", "-m", str(family("sd15")), *OPTIONS, "--lora", f"{file}:0.8", "-o", "a.png").code == 0
    digest = record("a.png").adapters[0]["sha256"][:10]
    assert main(["info", "a.png"]) == 0
    assert f"style.safetensors, scale 0.8, sha256 {digest}" in capfd.readouterr().out


def test_another_adapter_is_another_job(family: Family, t2i: Run, tmp_path: Path) -> None:
    file = save_lora(family("sd15"), tmp_path / "style.safetensors")
    (tmp_path / "rows.txt").write_text("a horse\n", encoding="utf-8")
    wanted = ("--prompts", str(tmp_path / "rows.txt"), "-m", str(family("sd15")), "-s", "5")
    names = set()
    for scale in ("", "0.5", "0.7"):
        options = ("--lora", f"{file}:{scale}") if scale else ()
        ran = t2i(*wanted, *options)
        assert ran.code == 0, ran.err
        names.add(tuple(Path(ran.lines[0]).parts[-2:]))
    assert len({folder for folder, _ in names}) == 3
    assert len({name for _, name in names}) == 3
    again = t2i(*wanted, "--lora", f"{file}:0.7")
    assert again.lines == []
    assert again.code == 0


# --- files that do not fit, or are no LoRA ---


@pytest.mark.parametrize(("model", "other"), [("sd15", "sdxl"), ("sdxl", "sd15"), ("sd15", "flux"), ("flux", "sd3")])
def test_a_lora_of_another_family(model: str, other: str, family: Family, t2i: Run, tmp_path: Path) -> None:
    file = save_lora(family(other), tmp_path / "style.safetensors", text=False)
    ran = t2i("a horse", "-m", str(family(model)), *OPTIONS, "--lora", str(file), "-o", "never.png")
    assert ran.code == 1
    made = {"sdxl": "Stable Diffusion XL", "flux": "FLUX.1", "sd3": "Stable Diffusion 3", "sd15": "a U-Net that reads"}
    first, second = ran.err.splitlines()[-2:]
    assert first.startswith("error: style.safetensors")
    assert f"tiny-{model}" in first
    assert f"it seems to be for {made[other]}" in second
    assert f"this model is {made[model]}" in second
    assert not Path("never.png").exists()


def test_tensors_that_fit_nothing_are_counted_and_named(family: Family, t2i: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(save_lora(family("sd15"), tmp_path / "style.safetensors"))
    lost = {"unet.nowhere.to_q.lora_A.weight", "unet.nowhere.to_q.lora_B.weight"}
    save(tensors | {name: next(iter(tensors.values())) for name in lost}, tmp_path / "more.safetensors")
    options = ("-m", str(family("sd15")), *OPTIONS)
    ran = t2i("a horse", *options, "--lora", str(tmp_path / "more.safetensors"), "-o", "more.png")
    assert ran.code == 0
    count = len(tensors)
    assert f"lora more.safetensors: {count} of {count + 2} tensors, scale 1" in ran.err
    assert f"warning: lora more.safetensors: 2 of {count + 2} tensors fit nothing in the model: unet.nowhere" in ran.err


def test_nothing_fits(family: Family, t2i: Run, tmp_path: Path) -> None:
    import torch

    layer = "unet.nowhere.to_q"
    strange = {f"{layer}.lora_A.weight": torch.zeros(2, 16), f"{layer}.lora_B.weight": torch.ones(16, 2)}
    for tensors, message in (
        (strange, "style.safetensors: none of its 2 tensors fits tiny-sd15"),
        ({"weight": torch.zeros(3)}, "style.safetensors: none of its 1 tensors fits tiny-sd15"),
    ):
        save(tensors, tmp_path / "style.safetensors")
        ran = t2i("a horse", "-m", str(family("sd15")), "--lora", str(tmp_path / "style.safetensors"), "-o", "no.png")
        assert ran.code == 1
        assert message in ran.err
        assert not Path("no.png").exists()


def test_files_that_are_not_safe_or_not_there(t2i: Run, tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    for name, content, code, message in (
        ("a.bin", b"\x80\x04payload", 1, "a.bin is a pickle, whatever its name"),
        ("a.safetensors", b"PK\x03\x04 and more", 1, "a.safetensors is a pickle, whatever its name"),
        ("b.safetensors", b"", 1, "b.safetensors is empty (0 bytes)"),
        ("c.safetensors", b"version https://git-lfs.github.com/spec/v1", 1, "c.safetensors is a Git LFS pointer"),
        ("d.safetensors", (2**39).to_bytes(8, "little") + b"{", 1, "its header claims 549755813888 bytes"),
        ("e.safetensors", len(header).to_bytes(8, "little") + header + b"1234", 1, "e.safetensors is damaged or cut"),
        ("f.pt", len(header).to_bytes(8, "little") + header + bytes(16), 1, "rename it to end in .safetensors"),
        ("none.safetensors", None, 2, "none.safetensors: no such file"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        ran = t2i("a horse", "--lora", str(tmp_path / name), "-o", "never.png")
        assert (ran.code, message in ran.err) == (code, True), (name, ran.err)
        assert not Path("never.png").exists()


def test_folders_and_the_hub(t2i: Run, tmp_path: Path, here: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "x.bin").write_bytes(b"\x80")
    (tmp_path / "many").mkdir()
    for name in ("a", "b"):
        (tmp_path / "many" / f"{name}.safetensors").write_bytes(b"")
    for location, code, message in (
        (str(tmp_path / "empty"), 2, "no .safetensors file in this folder"),
        (str(tmp_path / "pickled"), 1, "pickled: only pickled weights (x.bin)"),
        (str(tmp_path / "many"), 2, "many: 2 files, one must be named"),
        (
            "owner/name/style.safetensors",
            4,
            "owner/name/style.safetensors: no such file here, not in the cache, and the net",
        ),
        ("owner/name", 4, "with a network, `hf download owner/name` gets it"),
    ):
        ran = t2i("a horse", "--lora", location, "-o", "never.png")
        assert (ran.code, message in ran.err) == (code, True), (location, ran.err)


def test_rows_are_judged_with_their_line(t2i: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "lora": "x:strong"}\n', encoding="utf-8")
    ran = t2i("--prompts", str(tmp_path / "rows.jsonl"), "-o", "x/")
    assert ran.code == 2
    assert "line 2: --lora x: scale: got 'strong', expected a number" in ran.err


# --- <lora:name:0.8> in a prompt ---


def test_a1111s_way_to_name_a_lora(family: Family, t2i: Run, tmp_path: Path) -> None:
    file = save_lora(family("sd15"), Path("loras/style.safetensors"))
    more = save_lora(family("sd15"), Path("more.safetensors"), seed=2)
    model = ("-m", str(family("sd15")), *OPTIONS)
    assert t2i("a <lora:style:0.8> horse<lora:more>", *model, "-o", "tag.png").code == 0
    assert t2i("a horse", *model, "--lora", f"{file}:0.8", "--lora", str(more), "-o", "option.png").code == 0
    tag, option = record("tag.png"), record("option.png")
    assert (tag.prompt, tag.template) == ("a horse", "a <lora:style:0.8> horse<lora:more>")
    assert tag.adapters == option.adapters
    assert tag.image_hash == option.image_hash
    lines = ["a <lora:style:0.8> horse", "a {horse|horse}", "<lora:more:-0.5> a horse"]
    (tmp_path / "rows.txt").write_text("\n".join(lines), encoding="utf-8")
    ran = t2i("--prompts", str(tmp_path / "rows.txt"), *model[:2], "-s", "5", "-o", "batch/")
    assert ran.code == 0, ran.err
    scales = [[one["scale"] for one in record(path).adapters] for path in ran.lines]
    assert scales == [[0.8], [], [-0.5]]
    raw = t2i("a <lora:style:0.8> horse", *model, "--raw", "-o", "raw.png")
    assert "hint: <lora:style:0.8> is read as plain text here" in raw.err
    assert record("raw.png").adapters == []
    again = t2i("--from", "tag.png", *model[:2], "-o", "again.png", steps="")
    assert "tag.png: identical" in again.err


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<lora:none:1> a", "<lora:none:1> in a prompt: there is no loras/none.safetensors or none.safetensors"),
        ("<lora:../x:1> a", "<lora:../x:1>: a name without folders is expected"),
        ("<lora:here:strong> a", "--lora here.safetensors: scale: got 'strong', expected a number"),
        ("<lora:here:1:0.5> a", "<lora:here:1:0.5>: one strength is for the whole model here"),
        ("{a|<lora:here:1> b}", "<lora:...> inside { } in a prompt"),
        ("<lora:here> <lora:here> a", "--lora here.safetensors: given twice"),
    ],
)
def test_a_name_in_a_prompt_that_cannot_be_used(prompt: str, message: str, t2i: Run) -> None:
    Path("here.safetensors").write_bytes(b"")
    ran = t2i(prompt, "-o", "never.png")
    assert (ran.code, message in ran.err) == (2, True), ran.err


# --- from Python ---


def test_from_python(family: Family, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from t2i import load as load_painter

    file = save_lora(family("sd15"), tmp_path / "style.safetensors")
    drawer = load_painter(family("sd15"), lora=f"{file}:0.8")
    picture = drawer("a horse", seed=5, steps=2, guidance=3, width=32)[0]
    assert picture.recipe.adapters[0]["scale"] == 0.8
    pipe = load(family("sd15"))
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    pipe.set_adapters(["style"], [0.8])
    assert np.abs(np.asarray(picture, np.float32) - draw(pipe)).max() <= 1.5
    more = load_file(file) | {"unet.nowhere.to_q.lora_A.weight": load_file(file).popitem()[1]}
    save(more, tmp_path / "more.safetensors")
    with pytest.warns(UserWarning, match="1 of .* tensors fit nothing"):
        load_painter(family("sd15"), lora=tmp_path / "more.safetensors")
