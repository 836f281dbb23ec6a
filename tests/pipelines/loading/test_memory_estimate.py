"""The estimate of memory beside what drawing really takes, measured in fresh processes; and how it grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_kit import save_tokenizer

from t2i.model_files.locate import locate
from t2i.model_files.registry import MINI
from t2i.pipelines.loading.memory_estimate import OVERHEAD, Component, Networks, networks
from t2i.pipelines.loading.plan import MARGIN

ROOT = Path(__file__).parents[3]
# How far an estimate may be too high, which at worst chooses a slower level. It must not be too low beyond the margin.
TOO_HIGH = 1.6

# The plan is made by the memory that is free at that moment, so all that is taken from then on counts. The peak begins
# after loading, which maps files: the system can take these pages back.
MEASURE = """
import gc, json, sys
from pathlib import Path
from t2i.model_files.locate import locate
from t2i.pipelines.loading.plan import DeviceOptions
from t2i.pipelines.loading.retry import make_plan
from t2i.pipelines.text_to_image.pipeline import TextToImage

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024

model, dtype, side, batch, tiling = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "tiled"
options = DeviceOptions(dtype=dtype, tiling=tiling, bits=0)
asked = [{"width": side, "height": side}]
plan = make_plan(locate(model), device="cpu", options=options, asked=asked, batch_size=batch)
gc.collect()
before = status("VmRSS")
loaded = TextToImage.load(model, plan=plan)
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
drawn = loaded("a horse", seeds=range(batch), steps=2, width=side, height=side, guidance=3.0, batch_size=batch)
assert len(list(drawn)) == batch
print(json.dumps([plan.need[plan.at], status("VmHWM") - before]))
"""


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline of random weights with 44 million parameters, most of them in the U-Net."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("models") / "medium"
    words = save_tokenizer(folder / "tokenizer", 77)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(96, 192, 384),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=256,
        )
        vae = AutoencoderKL(
            block_out_channels=(32, 64, 128, 128),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        )
        text = CLIPTextConfig(
            vocab_size=words,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=words - 2,
            eos_token_id=words - 1,
        )
        StableDiffusionPipeline(
            unet=unet,
            vae=vae,
            text_encoder=CLIPTextModel(text),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder


def measure(model: Path, *words: str) -> tuple[int, int]:
    """(estimated, measured) bytes of a drawing with two steps and guidance."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, str(model), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    estimated, measured = json.loads(done.stdout.splitlines()[-1])
    return estimated, measured


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of memory on Linux")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("mini", ("64", "1", "whole")),
        ("mini", ("256", "4", "whole")),
        ("mini", ("512", "1", "whole")),
        ("mini", ("512", "1", "tiled")),
        ("medium", ("128", "1", "whole")),
        ("medium", ("384", "1", "whole")),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_the_estimate_is_what_drawing_takes(
    request: pytest.FixtureRequest, model: str, size: tuple[str, ...], dtype: str
) -> None:
    folder = MINI if model == "mini" else request.getfixturevalue("medium")
    estimated, measured = measure(folder, dtype, *size)
    assert measured <= MARGIN * estimated, f"{measured / 1e6:.0f} MB measured, {estimated / 1e6:.0f} MB estimated"
    assert estimated <= TOO_HIGH * measured + OVERHEAD, f"{measured / 1e6:.0f} MB, {estimated / 1e6:.0f} MB estimated"


def test_it_grows_with_the_images_and_not_with_tiles() -> None:
    configs = {"unet": {"block_out_channels": [320, 640]}, "vae": {"block_out_channels": [128, 256, 512, 512]}}
    sd = Networks({"unet": Component(100, 0, 0)}, configs)

    def activations(side: int, batch: int = 1, dtype: str = "float32", tiling: bool = False) -> int:
        return sd.activations(side, side, batch, dtype, tiling=tiling) - OVERHEAD

    one = activations(512)
    assert activations(512, dtype="bfloat16") == one // 2
    assert activations(512, batch=3) == 3 * one
    assert activations(1024) == 4 * one
    # The decoder sees one tile of 512 pixels at a time, the denoiser the whole image.
    assert activations(2048, tiling=True) < activations(2048) / 2
    assert activations(512, batch=8, tiling=True) < activations(512, batch=8)
    assert activations(2048, tiling=True) - activations(1024, tiling=True) > 0


def test_unknown_configs_are_estimated_as_those_of_a_large_model(tiny_pipeline: Path) -> None:
    known = networks(locate(str(tiny_pipeline)).weights, tiny_pipeline)
    unknown = Networks(known.components)
    assert unknown.activations(512, 512, 1, "float32") > known.activations(512, 512, 1, "float32")
