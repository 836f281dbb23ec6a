"""`t2i generate --ip-adapter`: a picture beside the prompt, as plain diffusers sees it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapter_kit import OPTIONS, draw, load, pixels, random, save, save_ip_adapter
from generate_kit import Run
from PIL import Image

from t2i.imaging.images import pixel_hash
from t2i.metadata import recipe

Family = Callable[[str], Path]


@pytest.fixture
def red(tmp_path: Path) -> Path:
    x, y = np.meshgrid(np.arange(60), np.arange(40))
    Image.fromarray(np.stack([200 + y, 3 * x, 2 * y], -1).astype(np.uint8)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "flux"])
def test_a_picture_draws_what_plain_diffusers_draws(
    kind: str, family: Family, t2i: Run, tmp_path: Path, red: Path
) -> None:
    file = save_ip_adapter(family(kind), tmp_path / "ip" / "adapter.safetensors")
    wanted = ("-m", str(family(kind)), *OPTIONS, "--ip-adapter", f"{file}:{red}:0.7")
    ran = t2i("a horse", *wanted, "-o", "seen.png")
    assert ran.code == 0, ran.err
    assert "ip-adapter adapter.safetensors: sees red.png, scale 0.7" in ran.err
    pipe = load(family(kind))
    without = draw(pipe)
    beside: dict[str, object] = {}
    if kind == "flux":  # looks for its encoder elsewhere, and in half precision
        import torch

        beside["image_encoder_pretrained_model_name_or_path"] = f"{tmp_path}/ip/image_encoder"
        beside["image_encoder_dtype"] = torch.float32
    pipe.load_ip_adapter(f"{tmp_path}/ip", subfolder="", weight_name="adapter.safetensors", **beside)
    pipe.set_ip_adapter_scale(0.7)
    theirs = draw(pipe, ip_adapter_image=Image.open(red))
    assert np.abs(pixels("seen.png") - theirs).max() <= 1.5
    assert np.abs(pixels("seen.png") - without).max() > 2
    made = recipe.read(Path("seen.png")).recipe
    assert made is not None
    assert made.adapters[0]["image"] == "red.png"
    assert made.adapters[0]["image_hash"] == pixel_hash(Image.open(red))
    # alone and in a batch
    assert t2i("a horse", *wanted[:-2], *wanted[-2:], "-b", "3", "--batch-size", "3", "-o", "of-{seed}.png").code == 0
    assert np.abs(pixels("of-5.png") - pixels("seen.png")).max() <= 1


def test_two_adapters_and_their_pictures(family: Family, t2i: Run, tmp_path: Path, red: Path) -> None:
    first = save_ip_adapter(family("sd15"), tmp_path / "ip" / "one.safetensors", seed=3)
    second = save_ip_adapter(family("sd15"), tmp_path / "ip" / "two.safetensors", seed=9)
    Image.new("RGB", (30, 30), (10, 30, 220)).save(tmp_path / "blue.png")
    wanted = ("--ip-adapter", f"{first}:{red}:0.3", "--ip-adapter", f"{second}:{tmp_path / 'blue.png'}:0.8")
    assert t2i("a horse", "-m", str(family("sd15")), *OPTIONS, *wanted, "-o", "two.png").code == 0
    pipe = load(family("sd15"))
    pipe.load_ip_adapter(f"{tmp_path}/ip", subfolder="", weight_name=["one.safetensors", "two.safetensors"])
    pipe.set_ip_adapter_scale([0.3, 0.8])
    seen = [Image.open(red), Image.open(tmp_path / "blue.png")]
    assert np.abs(pixels("two.png") - draw(pipe, ip_adapter_image=seen)).max() <= 1.5


def test_a_picture_with_an_adapter_is_made_again(family: Family, t2i: Run, tmp_path: Path, red: Path) -> None:
    file = save_ip_adapter(family("sd15"), Path("ip/adapter.safetensors"))
    shutil.copy(red, "seen.png")
    made = t2i("a horse", "-m", str(family("sd15")), *OPTIONS, "--ip-adapter", f"{file}:seen.png:0.7", "-o", "a.png")
    assert made.code == 0, made.err
    wanted = ("--from", "a.png", "-m", str(family("sd15")))
    again = t2i(*wanted, "-o", "b.png", steps="")
    assert "a.png: identical" in again.err
    Image.new("RGB", (30, 30), (10, 30, 220)).save("seen.png")
    other = t2i(*wanted, "-o", "c.png", steps="")
    assert other.code == 1
    assert "--from a.png: the image prompt of its ip-adapter, seen.png (sha256 " in other.err
    assert "is not here: seen.png is another one" in other.err


def test_what_cannot_be_used(family: Family, t2i: Run, tmp_path: Path, red: Path) -> None:
    good = save_ip_adapter(family("sd15"), tmp_path / "ip" / "adapter.safetensors")
    bare = shutil.copy(good, tmp_path / "bare.safetensors")
    narrow = save_ip_adapter(family("sd15"), tmp_path / "narrow" / "adapter.safetensors", code=10)
    shutil.rmtree(tmp_path / "narrow" / "image_encoder")
    shutil.copytree(tmp_path / "ip" / "image_encoder", tmp_path / "narrow" / "image_encoder")
    strange = save({"x.lora_A.weight": random(2, 16)}, tmp_path / "strange.safetensors")
    (tmp_path / "text.png").write_text("no picture")
    for kind, spec, code, message in (
        ("sd3", f"{good}:{red}", 2, "--ip-adapter: not for Stable Diffusion 3 yet"),
        ("sdxl", f"{good}:{red}", 1, "adapter.safetensors does not fit tiny-sdxl: it reads text 16 wide, the model 40"),
        ("sd15", f"{bare}:{red}", 1, "bare.safetensors: no image encoder in "),
        (
            "sd15",
            f"{narrow}:{red}",
            1,
            "reads image embeddings 10 wide, the image encoder next to it gives 12",
        ),
        ("sd15", f"{strange}:{red}", 1, "strange.safetensors is no IP-Adapter (it holds x.lora_A.weight)"),
        ("sd15", f"{good}:{tmp_path / 'text.png'}", 1, "text.png"),
        ("sd15", f"{good}:{tmp_path / 'none.png'}", 1, "none.png"),
    ):
        ran = t2i("a horse", "-m", str(family(kind)), *OPTIONS, "--ip-adapter", spec, "-o", "never.png")
        assert ran.code == code, (spec, ran.err)
        assert message in ran.err
        assert "Traceback" not in ran.err
        assert not Path("never.png").exists()
