"""The text-to-image loop: it learns, it exports plain Stable Diffusion, its batches depend on the image index alone."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from training_kit import SIZE, make_images, read_log, save_autoencoder, text2image_config, train
from transformers import CLIPTextModel, CLIPTokenizer

from t2i.config import Text2ImageConfig, load_config, shipped_config
from t2i.data.batches import flips, visit_order
from t2i.data.captions import all_captions, caption
from t2i.data.memory_table import load_memory
from t2i.errors import CheckpointError, ModelError, NonFinite
from t2i.training.engine import Step
from t2i.training.families import text2image as module
from t2i.training.families.text2image import Denoiser, Setup, batch, load_autoencoder, tokenize
from t2i.training.latents import encode
from t2i.training.runs.checkpoint import load_checkpoint
from t2i.training.runs.run_folder import RunFolder
from t2i.training.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` and `vae`, an untrained autoencoder."""
    folder = tmp_path_factory.mktemp("data")
    make_images(folder / "images")
    save_autoencoder(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Text2ImageConfig, Path]:
    """One batch of four images, seen 60 times."""
    config = text2image_config(
        make_images(folder / "four", 4),
        folder / "vae",
        images=240,
        log_every=40,
        sample_every=120,
        save_every=1000,
        data__flip=False,
        optimizer={"lr": 4e-3, "warmup": 20},
    )
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train(config, run) == run / "export"
    return config, run


@pytest.fixture(scope="module")
def setup(folder: Path) -> Setup:
    config = text2image_config(folder / "images", folder / "vae")
    table, vae = load_memory(config.data, False), load_autoencoder(config.autoencoder)
    tokenizer = train_tokenizer(all_captions(table.columns, config.captions), 620, 8)
    return Setup(table, encode(vae, table, "no", False), tokenizer, vae)


def test_one_batch_is_learned(trained: tuple[Text2ImageConfig, Path]) -> None:
    """Whoever knows nothing is wrong by the variance of noise and image, more than 1."""
    rows = read_log(trained[1])
    assert rows[-1]["images"] == 240
    last = sum(row["loss"] for row in rows[-2:]) / 2
    assert last < 0.4
    assert last < 0.5 * rows[0]["loss"]


def test_exported_networks_are_the_average(trained: tuple[Text2ImageConfig, Path]) -> None:
    """Bit for bit, and they are not the last weights."""
    _, run = trained
    tensors = load_checkpoint(RunFolder(run).saved()[0]).tensors
    parts = {
        "unet": UNet2DConditionModel.from_pretrained(run / "export" / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(run / "export" / "text_encoder"),
    }
    names = set()
    for part, network in parts.items():
        for name, value in network.state_dict().items():
            names.add(f"{part}.{name}")
            assert torch.equal(value, tensors["ema"][f"{part}.{name}"]), name
    assert names == tensors["ema"].keys() == tensors["model"].keys()
    assert any(not torch.equal(tensors["ema"][name], tensors["model"][name]) for name in names)


def test_exported_autoencoder_is_the_one_trained_with(trained: tuple[Text2ImageConfig, Path]) -> None:
    config, run = trained
    ours, theirs = (AutoencoderKL.from_pretrained(p) for p in (config.autoencoder, run / "export" / "vae"))
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    assert theirs.config.scaling_factor == ours.config.scaling_factor


PLAIN = """
import sys
sys.modules["t2i"] = None  # whoever imports it now fails
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], use_safetensors=True)
pipe.set_progress_bar_config(disable=True)
assert type(pipe.scheduler) is DPMSolverMultistepScheduler
draw = torch.Generator().manual_seed(5)
size = int(sys.argv[3])
image = pipe("a photo of a horse", num_inference_steps=2, guidance_scale=2.0, generator=draw).images[0]
assert image.size == (size, size), image.size
image.save(sys.argv[2])
try:
    import t2i
except ImportError:
    print("no t2i here")
"""


def test_export_draws_with_plain_diffusers_where_t2i_is_not(
    trained: tuple[Text2ImageConfig, Path], tmp_path: Path
) -> None:
    """It is the same image as here, at the size of training by default."""
    _, run = trained
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", PLAIN, str(run / "export"), str(tmp_path / "plain.png"), str(SIZE)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert "no t2i here" in done.stdout
    from t2i.pipelines.text_to_image.pipeline import TextToImage

    (ours,) = TextToImage.load(str(run / "export"))("a photo of a horse", seeds=[5], steps=2, guidance=2.0)
    plain = Image.open(tmp_path / "plain.png")
    difference = torch.tensor([list(i.convert("RGB").tobytes()) for i in (ours.image, plain)]).diff(dim=0).abs()
    assert difference.max() <= 1
    assert ours.image.getextrema() != ((128, 128),) * 3  # something is drawn


def test_a_run_folder_is_a_model(trained: tuple[Text2ImageConfig, Path]) -> None:
    """The sample grid of the loop is what the exported pipeline draws: the same prompts, the same seeds."""
    from t2i.imaging import images
    from t2i.pipelines.text_to_image.pipeline import TextToImage

    config, run = trained
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["000000000120.png", "000000000240.png"]
    model, wanted = TextToImage.load(str(run / "export")), config.samples
    results = [
        next(iter(model(prompt, seeds=[config.seed + k], steps=wanted.steps, guidance=wanted.guidance)))
        for k, prompt in enumerate(wanted.prompts)
    ]
    sheet = images.grid([result.image for result in results], columns=wanted.columns)
    drawn = Image.open(run / "samples" / "000000000240.png")
    assert drawn.size == sheet.size
    pair = torch.tensor([list(i.convert("RGB").tobytes()) for i in (sheet, drawn)])
    assert pair.diff(dim=0).abs().max() <= 1


def test_tokenizer_of_the_run_is_of_its_captions(trained: tuple[Text2ImageConfig, Path]) -> None:
    _, run = trained
    kept, exported = (CLIPTokenizer.from_pretrained(run / p) for p in ("tokenizer", "export/tokenizer"))
    assert kept.get_vocab() == exported.get_vocab()
    assert exported.model_max_length == 8
    assert exported.tokenize("photo") == ["photo</w>"]
    encoder = CLIPTextModel.from_pretrained(run / "export" / "text_encoder")
    assert encoder.config.vocab_size == len(exported)
    assert encoder.config.eos_token_id == exported.eos_token_id
    assert encoder.config.max_position_embeddings == 8


# Batches


def test_batch_depends_on_the_global_image_index_alone(folder: Path, setup: Setup) -> None:
    """A batch of 8 is two of 4, whichever process takes which part: latents, flips, captions, dropped captions."""
    config = text2image_config(folder / "images", folder / "vae", captions__drop=0.5)
    whole = batch(setup, config, Step(1, 8, 8, slice(0, 8)))
    halves = [batch(setup, config, Step(k, first, 4, slice(0, 4))) for k, first in ((2, 8), (3, 12))]
    shares = [batch(setup, config, Step(1, 8, 8, share)) for share in (slice(0, 4), slice(4, 8))]
    for parts in (halves, shares):
        assert all(torch.equal(whole[k], torch.cat([part[k] for part in parts])) for k in (0, 1))
    empty = tokenize(setup.tokenizer, [""])[0]
    dropped = [torch.equal(ids, empty) for ids in whole[1]]
    assert any(dropped)
    assert not all(dropped)


def test_batch_is_the_visited_rows_with_their_captions(folder: Path, setup: Setup) -> None:
    config = text2image_config(folder / "images", folder / "vae")
    first, count = 36, 8  # crosses an epoch of ten visits
    x0, ids = batch(setup, config, Step(9, first, count, slice(0, count)))
    order, mirrored = visit_order(config.seed, len(setup.table), first, count), flips(config.seed, first, count)
    assert mirrored.any()
    assert not mirrored.all()
    assert x0.dtype == torch.float32
    for k, row in enumerate(setup.table.visits[order].tolist()):
        assert torch.equal(x0[k], setup.latents[int(mirrored[k]), row].float())
        text = caption(setup.table.row(row), config.captions, config.seed, first + k)
        assert torch.equal(ids[k], tokenize(setup.tokenizer, [text])[0])
    plain, _ = batch(
        setup, text2image_config(folder / "images", folder / "vae", data__flip=False), Step(9, 36, 8, slice(8))
    )
    assert torch.equal(plain, setup.latents[0, setup.table.visits[order]].float())


def test_tokens_are_those_of_the_pipeline(setup: Setup) -> None:
    """Training and StableDiffusionPipeline read a prompt as the same numbers."""
    texts = ["a photo of a horse", "", "a sketch " * 20]
    pipe = StableDiffusionPipeline(
        vae=setup.vae,
        text_encoder=None,
        tokenizer=setup.tokenizer,
        unet=UNet2DConditionModel(sample_size=8, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
                                  up_block_types=("UpBlock2D",) * 2),
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    seen: list[torch.Tensor] = []

    class Recorder(torch.nn.Module):
        """Stands for the text encoder: keeps what it is given."""

        config = CLIPTextModel.config_class()
        dtype = torch.float32

        def forward(self, ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
            seen.append(ids)
            return (torch.zeros(*ids.shape, 4),)

    pipe.text_encoder = Recorder()
    pipe.encode_prompt(texts, torch.device("cpu"), 1, False)
    assert torch.equal(seen[0], tokenize(setup.tokenizer, texts))


def test_denoiser_depends_on_the_seed_alone_and_knows_its_words(folder: Path, setup: Setup) -> None:
    config = text2image_config(folder / "images", folder / "vae")
    net, again = (Denoiser(config, len(setup.tokenizer), setup.vae).eval() for _ in range(2))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert not any(name.startswith("vae") for name in net.state_dict())
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = tokenize(setup.tokenizer, ["a photo of a horse", "a sketch"])
    with torch.no_grad():
        out = net(x_t, torch.tensor([0.25, 0.75]), ids)
        words = net.text_encoder(ids).last_hidden_state
        direct = net.unet(x_t, torch.tensor([250.0, 750.0]), words).sample
        other = net(x_t, torch.tensor([0.25, 0.75]), ids.flip(0))
    assert torch.equal(out, direct)  # time in the units of the exported scheduler
    assert (out - other).abs().max() > 1e-4


def test_words_start_far_apart_and_every_padding_token_knows_them(folder: Path, setup: Setup) -> None:
    """From CLIP's own start (deviation 0.02) the objects of a caption were lost while its style was learned."""
    net = Denoiser(text2image_config(folder / "images", folder / "vae"), len(setup.tokenizer), setup.vae)
    ids = tokenize(setup.tokenizer, ["a photo of a horse", "a photo of a house"])
    with torch.no_grad():
        horse, house = net.text_encoder(ids).last_hidden_state
    apart = (horse - house).norm(dim=1) / horse.norm(dim=1)
    differ = ids[0] != ids[1]
    assert differ.any()
    assert apart[differ].min() > 0.8
    after = torch.arange(len(differ)) > differ.nonzero().max()
    assert after.any()
    assert apart[after].min() > 0.1


# What is refused


def test_autoencoder_of_a_run_of_a_folder_and_of_a_pipeline(folder: Path, tmp_path: Path) -> None:
    save_autoencoder(tmp_path / "run" / "export", seed=1)
    save_autoencoder(tmp_path / "pipeline" / "vae", seed=2)
    for name, seed in ((tmp_path / "run", 1), (tmp_path / "pipeline", 2), (folder / "vae", 0)):
        vae = load_autoencoder(str(name))
        expected = AutoencoderKL.from_pretrained(save_autoencoder(tmp_path / str(seed), seed))
        assert torch.equal(vae.encoder.conv_in.weight, expected.encoder.conv_in.weight)
        assert not any(p.requires_grad for p in vae.parameters())
        assert not vae.training


def test_missing_autoencoder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no autoencoder in") as caught:
        load_autoencoder(str(tmp_path))
    assert "t2i train autoencoder" in str(caught.value.hint)


def test_damaged_autoencoder_is_named(tmp_path: Path) -> None:
    folder = save_autoencoder(tmp_path / "vae")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load the autoencoder in"):
        load_autoencoder(str(folder))


def test_other_autoencoder_makes_the_latents_stale(folder: Path, tmp_path: Path) -> None:
    from t2i.errors import DataError

    train(text2image_config(folder / "images", folder / "vae", images=4), tmp_path / "run")
    save_autoencoder(tmp_path / "other", seed=1)
    config = text2image_config(folder / "images", tmp_path / "other", images=8)
    with pytest.raises(CheckpointError, match="autoencoder: "):
        train(config, tmp_path / "run")
    with pytest.raises(DataError, match="stale: autoencoder is"):
        train(config, tmp_path / "run", force=True)


def test_lost_tokenizer_is_never_trained_anew(folder: Path, tmp_path: Path) -> None:
    """Its numbers are what the text encoder has learned."""
    import shutil

    train(text2image_config(folder / "images", folder / "vae", images=4), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    with pytest.raises(CheckpointError, match="tokenizer is missing"):
        train(text2image_config(folder / "images", folder / "vae", images=8), tmp_path / "run")


def test_non_finite_loss_stops_before_the_update(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = module.add_noise

    def sometimes_nan(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(*arguments) / (0 if calls == 5 else 1)

    monkeypatch.setattr(module, "add_noise", sometimes_nan)
    with pytest.raises(NonFinite, match=r"step 4.*images 16\.\.19"):
        train(text2image_config(folder / "images", folder / "vae"), tmp_path / "run")
    assert [int(p.name) for p in RunFolder(tmp_path / "run").saved()] == [12]


# The configs that come with t2i

STYLES = ("photo", "painting", "cartoon", "sketch", "vangogh")
OBJECTS = ("horse", "dog", "elephant", "giraffe", "house", "guitar", "person")


def test_sample_grid_of_mini_asks_for_what_was_taught() -> None:
    """Each prompt of the 5 x 7 grid is a caption that a row of that style and object can get."""
    config = load_config(shipped_config("mini-text2image"), "text2image")
    assert isinstance(config, Text2ImageConfig)
    wanted = list(product(STYLES, OBJECTS))
    assert config.samples.columns == len(OBJECTS)
    for prompt, (style, object_) in zip(config.samples.prompts, wanted, strict=True):
        assert prompt in all_captions({"style": [style], "object": [object_]}, config.captions), prompt
        others = [pair for pair in wanted if pair != (style, object_)]
        assert not any(prompt in all_captions({"style": [s], "object": [o]}, config.captions) for s, o in others)


def test_configs_of_mini_fit_together() -> None:
    """The captions fit the text encoder, the latents fit the U-Net, and the two recipes name each other."""
    text2image = load_config(shipped_config("mini-text2image"), "text2image")
    autoencoder = load_config(shipped_config("mini-autoencoder"), "autoencoder")
    assert isinstance(text2image, Text2ImageConfig)
    assert text2image.autoencoder == "runs/mini-autoencoder"
    assert text2image.data.size == autoencoder.data.size == 64
    assert all(c % autoencoder.model.groups == 0 for c in autoencoder.model.channels)
    assert all(c % text2image.unet.groups == 0 for c in text2image.unet.channels)
    assert all(c % text2image.unet.head_size == 0 for c in text2image.unet.channels)
    assert text2image.text_encoder.width % text2image.text_encoder.heads == 0
    rows = {"style": [s for s, _ in product(STYLES, OBJECTS)], "object": [o for _, o in product(STYLES, OBJECTS)]}
    captions = list(all_captions(rows, text2image.captions))
    tokenizer = train_tokenizer(captions, text2image.text_encoder.vocabulary, text2image.text_encoder.tokens)
    longest = max(len(tokenizer(text).input_ids) for text in captions)
    assert longest <= text2image.text_encoder.tokens
