"""The embedded model: a plain Stable Diffusion folder, small, safe, described, and drawn with by t2i and without it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i.model_files.registry import MINI
from t2i.pipelines.text_to_image.pipeline import TextToImage

PROMPT = "a horse in Van Gogh style"
PLAIN = """
import sys
sys.modules["t2i"] = None  # any import of it fails
from diffusers import StableDiffusionPipeline
import torch
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
assert {p.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()} == {torch.float32}
generator = torch.Generator("cpu").manual_seed(7)
pipe(sys.argv[2], num_inference_steps=20, guidance_scale=3.0, generator=generator).images[0].save(sys.argv[3])
"""


@pytest.fixture(scope="module")
def mini() -> TextToImage:
    return TextToImage.load("mini")


def test_the_first_minute_of_a_new_user(tmp_path: Path) -> None:
    """The README's command in an empty folder, on a terminal: one path on stdout, one line and a bar on stderr."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))  # of a terminal without columns tqdm shows no bar
    env = {**os.environ, "PYTHONPATH": str(MINI.parents[1]), "HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "t2i", "generate", PROMPT, "-s", "7"]
    (tmp_path / "work").mkdir()
    with subprocess.Popen(
        command, cwd=tmp_path / "work", env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=terminal
    ) as process:
        os.close(terminal)
        said = b""
        with contextlib.suppress(OSError):  # what the end of a terminal is on Linux
            while piece := os.read(screen, 4096):
                said += piece
        assert process.stdout is not None
        paths = process.stdout.read().decode().splitlines()
    os.close(screen)
    assert process.returncode == 0
    first, bar = said.decode().split("\r\n", 1)
    assert first.startswith("mini · cpu · float32 · 64x64 · 20 steps")
    assert first.endswith("seed 7")
    assert "drawing:" in bar
    assert "step/s" in bar
    assert "\n" not in bar, "the bar stays on its line, and no library says a word"
    assert [str(p.relative_to(tmp_path / "work")) for p in (tmp_path / "work").rglob("*.*")] == paths
    with Image.open(tmp_path / "work" / paths[0]) as picture:
        assert picture.size == (64, 64)
        assert min(high - low for low, high in picture.getextrema()) > 50, "not one flat colour"


def files() -> list[Path]:
    return [path for path in MINI.rglob("*") if path.is_file()]


def test_is_small_and_holds_no_pickle() -> None:
    assert sum(path.stat().st_size for path in files()) < 40_000_000
    assert {path.suffix for path in files()} <= {".safetensors", ".json", ".txt", ".md", ".png"}


def test_weights_are_float16() -> None:
    from safetensors import safe_open

    for path in MINI.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}, path  # noqa: SIM118


def test_card_says_what_it_must() -> None:
    card = (MINI / "README.md").read_text()
    for word in ("PACS", "Tiny ImageNet", "Van Gogh", "research", "images seen", "cannot", "t2i train", "stylised"):
        assert word in card, word
    assert "{" not in card, "a field was not filled in"
    for picture in ("grid.png", "neighbours.png"):
        assert f"({picture})" in card
        Image.open(MINI / picture).verify()


def test_card_gives_the_hash_of_the_weights_as_the_template_does() -> None:
    """The paragraph of scripts/mini_card.md, filled in with what is here; recounted without t2i's own hashing."""
    lines = [
        f"{path.relative_to(MINI).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in sorted(MINI.rglob("*.safetensors"))
    ]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    template = (MINI.parents[1] / "scripts" / "mini_card.md").read_text(encoding="utf-8")
    (paragraph,) = [part for part in template.split("\n\n") if "{sha256}" in part]
    card = (MINI / "README.md").read_text(encoding="utf-8")
    assert paragraph.format(sha256=digest) in card.split("\n\n")


def test_settings_fit_the_model(mini: TextToImage) -> None:
    own = json.loads((MINI / "t2i.json").read_text())
    settings = mini.settings()
    assert (settings.steps, settings.guidance) == (own["steps"], own["guidance"])
    assert settings.width == settings.height == own["size"] >= 64


def test_plain_diffusers_draws_the_same_picture(mini: TextToImage, tmp_path: Path) -> None:
    theirs = tmp_path / "plain.png"
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(MINI), PROMPT, str(theirs)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (ours,) = mini(PROMPT, seeds=[7], steps=20, guidance=3.0)
    difference = np.asarray(Image.open(theirs), np.int16) - np.asarray(ours.image, np.int16)
    assert np.abs(difference).max() <= 1


def test_same_picture_alone_and_among_eight(mini: TextToImage) -> None:
    (alone,) = mini(PROMPT, seeds=[9])
    among = list(mini(PROMPT, seeds=range(4, 12), batch_size=8))[5]
    assert among.recipe.seed == 9
    difference = np.asarray(alone.image, np.int16) - np.asarray(among.image, np.int16)
    assert np.abs(difference).max() <= 1


def draw(mini: TextToImage, prompt: str) -> np.ndarray:
    """(64, 64, 3) of one picture, always of the same seed."""
    return np.asarray(next(iter(mini(prompt, seeds=[3]))).image, np.float64)


def test_the_style_matters(mini: TextToImage) -> None:
    photo, sketch = draw(mini, "a photo of a horse"), draw(mini, "a sketch of a horse")
    assert np.abs(photo - sketch).mean() > 10
    # A sketch is grey: its channels agree as those of a photo of grass and horses do not.
    assert np.ptp(sketch, axis=2).mean() < np.ptp(photo, axis=2).mean()


@pytest.mark.parametrize("other", ["house", "person", "guitar"])
def test_the_object_matters(mini: TextToImage, other: str) -> None:
    assert np.abs(draw(mini, "a photo of a horse") - draw(mini, f"a photo of a {other}")).mean() > 10
