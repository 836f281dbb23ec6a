"""`t2i lora info` and `t2i lora merge`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_kit import OPTIONS, kohya_names, pixels, random, save, save_lora
from generate_kit import Ran, Run, files

Family = Callable[[str], Path]


@pytest.fixture
def lora(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    from t2i.cli.main import main

    def run(*arguments: Any) -> Ran:
        capfd.readouterr()
        return Ran(main(["lora", *map(str, arguments)]), *capfd.readouterr())

    return run


UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
DEEP = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_k.lora_down.weight"
MIDDLE = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
BLOCK = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"


@pytest.mark.parametrize(
    ("name", "shape", "family"),
    [
        (UNET, (4, 768), "Stable Diffusion 1"),
        (UNET, (4, 1024), "Stable Diffusion 2"),
        (UNET, (4, 2048), "Stable Diffusion XL"),
        (UNET, (4, 64), "a U-Net that reads text 64 wide"),
        (f"{MIDDLE}.to_k.lora_A.weight", (4, 2048), "Stable Diffusion XL"),
        (f"{MIDDLE}.processor.to_v_lora.down.weight", (4, 768), "Stable Diffusion 1"),
        (DEEP, (4, 640), "Stable Diffusion XL"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (4, 1280), "Stable Diffusion XL"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", (4, 64), "FLUX.1"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", (4, 3072), "FLUX.1"),
        (BLOCK, (4, 3072), "FLUX.1"),
        (BLOCK, (4, 1536), "Stable Diffusion 3"),
        ("conv.weight", (4, 4), "something unknown here"),
    ],
)
def test_what_a_file_is_for(name: str, shape: tuple[int, ...], family: str) -> None:
    from t2i.pipelines.adapters.lora_inspect import family as family_of

    assert family_of({name: shape}) == family


def test_info_of_a_kohya_file(family: Family, lora: Callable[..., Ran], tmp_path: Path) -> None:
    import hashlib

    peft = save_lora(family("sd15"), tmp_path / "style.safetensors", rank=3)
    tags = json.dumps({"10_horse": {"horse": 30, "field": 12}, "5_cat": {"horse": 2, " cat": 5}})
    metadata = {"ss_base_model_version": "sd_v1-5", "ss_tag_frequency": tags, "ss_network_dim": "3"}
    tensors = kohya_names(peft)
    file = save(tensors, tmp_path / "kohya.safetensors", metadata)
    ran = lora("info", file)
    assert ran.code == 0, ran.err
    layers = len(tensors) // 3
    for line in (
        f"{3 * layers} ({sum(t.numel() for t in tensors.values()):,} parameters, {file.stat().st_size:,} bytes)",
        f"3 ({layers} layers)",
        "kohya",
        "sd_v1-5",
        "horse (32), field (12), cat (5)",
        hashlib.sha256(file.read_bytes()).hexdigest(),
    ):
        assert line in ran.out
    told = json.loads(lora("info", file, "--json").out)
    assert told["ranks"] == {"3": layers}
    assert told["alphas"] == [4.0]
    assert sum(told["blocks"].values()) == layers
    assert told["blocks"]["the text encoder"] == 8
    assert told["metadata"]["ss_network_dim"] == "3"
    length = int.from_bytes(file.read_bytes()[:8], "little")
    assert told["autov3"] == hashlib.sha256(file.read_bytes()[8 + length :]).hexdigest()
    of_peft = json.loads(lora("info", peft, "--json").out)
    assert of_peft["alphas"] == [4.0]  # from the metadata that diffusers keeps
    assert of_peft["format"] == "diffusers (peft)"


def test_info_of_what_is_none(lora: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"PK\x03\x04")
    assert "a.ckpt is a pickle" in lora("info", tmp_path / "a.ckpt").err
    assert lora("info", tmp_path / "none.safetensors").code == 2
    file = save({"weight": random(3, 3)}, tmp_path / "x.safetensors")
    assert json.loads(lora("info", file, "--json").out)["format"] == "no LoRA"


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "flux"])
def test_a_merged_model_draws_the_same(
    kind: str, family: Family, t2i: Run, lora: Callable[..., Ran], tmp_path: Path
) -> None:
    first = save_lora(family(kind), tmp_path / "first.safetensors", seed=1)
    second = save_lora(family(kind), tmp_path / "second.safetensors", seed=2, text=False)
    ran = lora("merge", family(kind), f"{first}:0.6", f"{second}:-0.4", "-o", tmp_path / "out" / "merged")
    assert ran.code == 0, ran.err
    assert ran.lines == [str(tmp_path / "out" / "merged")]
    assert "lora first.safetensors: " in ran.err
    loras = ("--lora", f"{first}:0.6", "--lora", f"{second}:-0.4")
    assert t2i("a horse", "-m", str(family(kind)), *OPTIONS, *loras, "-o", "with.png").code == 0
    assert t2i("a horse", "-m", str(tmp_path / "out" / "merged"), *OPTIONS, "-o", "merged.png").code == 0
    assert np.abs(pixels("with.png") - pixels("merged.png")).max() <= 1
    assert t2i("a horse", "-m", str(family(kind)), *OPTIONS, "-o", "without.png").code == 0
    assert np.abs(pixels("without.png") - pixels("merged.png")).max() > 10
    written = files(tmp_path / "out")
    assert {Path(name).suffix for name in written} <= {".safetensors", ".json", ".txt", ".md", ".model"}
    assert not any(str(tmp_path) in (tmp_path / "out" / name).read_text("latin-1") for name in written)


def test_merge_keeps_the_dtype_and_our_defaults(family: Family, lora: Callable[..., Ran], tmp_path: Path) -> None:
    import torch
    from adapter_kit import load
    from safetensors.torch import load_file

    model = tmp_path / "half"
    load(family("sd15")).to(torch.float16).save_pretrained(model)
    (model / "t2i.json").write_text('{"steps": 3}', encoding="utf-8")
    file = save_lora(family("sd15"), tmp_path / "style.safetensors")
    assert lora("merge", model, file, "-o", tmp_path / "merged").code == 0
    merged = load_file(tmp_path / "merged" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in merged.values()} == {torch.float16}
    assert (tmp_path / "merged" / "t2i.json").read_text(encoding="utf-8") == '{"steps": 3}'


def test_merge_never_overwrites_and_leaves_nothing_half(
    family: Family, lora: Callable[..., Ran], tmp_path: Path
) -> None:
    file = save_lora(family("sdxl"), tmp_path / "style.safetensors", text=False)
    (tmp_path / "there").mkdir()
    ran = lora("merge", family("sd15"), file, "-o", tmp_path / "there")
    assert (ran.code, "there exists already" in ran.err) == (2, True)
    ran = lora("merge", family("sd15"), file, "-o", tmp_path / "merged")
    assert (ran.code, "style.safetensors does not fit tiny-sd15" in ran.err) == (1, True)
    assert files(tmp_path) == ["style.safetensors"]
