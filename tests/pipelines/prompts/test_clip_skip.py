"""`--clip-skip`: the encoder's Nth layer from its end, as A1111 counts; recorded, replayed, refused elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from generate_kit import Run
from PIL import Image

import t2i as package
from t2i.config import options
from t2i.errors import UsageError
from t2i.metadata import a1111, recipe
from t2i.pipelines.settings.settings import Job
from t2i.pipelines.text_to_image.pipeline import TextToImage

LAYERS = 5
DRAW = ["a horse", "-s", "3", "--steps", "2"]


@pytest.fixture(scope="module")
def deep(family: Callable[[str], Path]) -> Callable[[str], TextToImage]:
    """A family's model whose CLIP encoders have LAYERS layers."""

    def load(kind: str) -> TextToImage:
        model = TextToImage.load(str(family(kind)))
        for name in ("text_encoder", "text_encoder_2"):
            encoder = getattr(model.pipe, name, None)
            if encoder is not None and hasattr(encoder.config, "num_hidden_layers"):
                torch.manual_seed(0)
                config = type(encoder.config)(**(encoder.config.to_dict() | {"num_hidden_layers": LAYERS}))
                setattr(model.pipe, name, type(encoder)(config).eval())
        model.prompt_encoder.clear()
        return model

    return load


def encoded(model: TextToImage, text: str, **chosen: object) -> torch.Tensor:
    prompt_embeds: torch.Tensor = model.prompt_encoder.options([Job(text, 1)], model.settings(**chosen), guided=False)[
        "prompt_embeds"
    ]
    return prompt_embeds


def layer(model: TextToImage, text: str, names: tuple[str, ...], which: int, normed: bool) -> torch.Tensor:
    """What transformers' own encoders say of a text at a layer, counted from the end."""
    parts = []
    for suffix in names:
        tokenizer, encoder = getattr(model.pipe, f"tokenizer{suffix}"), getattr(model.pipe, f"text_encoder{suffix}")
        ids = tokenizer(
            text, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            hidden = encoder(ids, output_hidden_states=True).hidden_states[-which]
            parts.append(getattr(encoder, "text_model", encoder).final_layer_norm(hidden) if normed else hidden)
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("n", [1, 2, 3, LAYERS])
def test_sd1_reads_the_layer_and_norms_it(deep: Callable[[str], TextToImage], n: int) -> None:
    model = deep("sd15")
    assert (encoded(model, "a horse", clip_skip=n) - layer(model, "a horse", ("",), n, True)).abs().max() < 1e-6
    assert torch.equal(encoded(model, "a horse"), encoded(model, "a horse", clip_skip=1))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_xl_reads_the_layer_of_both_encoders(deep: Callable[[str], TextToImage], n: int) -> None:
    """1 and 2 are what it reads by itself, since it was trained on the layer before the last."""
    model = deep("sdxl")
    wanted = layer(model, "a horse", ("", "_2"), max(n, 2), False)
    assert (encoded(model, "a horse", clip_skip=n) - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_weights_and_chunks_read_the_same_layer(deep: Callable[[str], TextToImage], kind: str) -> None:
    """A weight of 1 changes nothing; one near 1 changes little; and the layer shows in both."""
    model = deep(kind)
    plain = encoded(model, "a horse", clip_skip=4)
    assert (encoded(model, "a (horse:1.0001)", clip_skip=4) - plain).abs().max() < 1e-2
    assert (encoded(model, "a (horse:1.0001)") - plain).abs().max() > 0.1


def test_sd3_is_told_as_diffusers_counts(deep: Callable[[str], TextToImage]) -> None:
    model = deep("sd3")
    with torch.no_grad():
        own = model.pipe.encode_prompt(
            "a horse", None, None, device="cpu", do_classifier_free_guidance=False, clip_skip=1
        )[0]
    assert torch.equal(encoded(model, "a horse", clip_skip=3), own)
    assert torch.equal(encoded(model, "a horse", clip_skip=2), encoded(model, "a horse"))


def test_more_layers_than_there_are_is_an_error(deep: Callable[[str], TextToImage]) -> None:
    with pytest.raises(UsageError, match=f"`clip_skip={LAYERS + 1}`: this model's text encoder has {LAYERS} layers"):
        encoded(deep("sd15"), "a horse", clip_skip=LAYERS + 1)


def test_a_model_that_cannot_says_so(t2i: Run, family: Callable[[str], Path]) -> None:
    ran = t2i(*DRAW, "-m", str(family("flux")), "--clip-skip", "2", "-o", "x.png")
    assert ran.code == 2
    assert "--clip-skip 2: FluxPipeline does not skip layers" in ran.err
    assert not Path("x.png").exists()
    assert t2i(*DRAW, "--clip-skip", "0").err.startswith("error: clip_skip: got 0, allowed 1 to")


def test_command_row_and_python_draw_the_same_and_the_record_replays(t2i: Run, here: Path, tiny_pipeline: Path) -> None:
    assert t2i(*DRAW, "--clip-skip", "2", "-o", "skipped.png").code == 0
    assert t2i(*DRAW, "-o", "plain.png").code == 0
    (here / "rows.jsonl").write_text(json.dumps({"prompt": "a horse", "clip_skip": 2, "seed": 3, "steps": 2}))
    assert t2i("--prompts", "rows.jsonl", "-o", "row-{seed}.png").code == 0
    skipped, plain = recipe.read(here / "skipped.png").recipe, recipe.read(here / "plain.png").recipe
    row = recipe.read(here / "row-3.png").recipe
    assert skipped is not None
    assert plain is not None
    assert row is not None
    python = package.load(tiny_pipeline)("a horse", seed=3, steps=2, clip_skip=2)[0].recipe
    assert skipped.image_hash == row.image_hash == python.image_hash != plain.image_hash
    assert (skipped.options, plain.options) == ({"clip_skip": 2}, {})
    again = t2i("--from", "skipped.png", "-o", "again.png")
    assert "identical" in again.err
    anew = t2i("--from", "skipped.png", "--clip-skip", "1", "-o", "anew.png")
    assert "another clip_skip" in anew.err


def test_a1111_text_holds_it_both_ways(t2i: Run, here: Path) -> None:
    assert t2i(*DRAW, "--clip-skip", "2", "-o", "skipped.png").code == 0
    with Image.open(here / "skipped.png") as image:
        text = image.info["parameters"]
    assert a1111.parse(text)["Clip skip"] == "2"
    from PIL.PngImagePlugin import PngInfo

    for skip, same in (("2", "skipped.png"), ("1", "plain.png")):
        info = PngInfo()
        info.add_text("parameters", text.replace("Clip skip: 2", f"Clip skip: {skip}"))
        Image.new("RGB", (8, 8)).save(here / "foreign.png", pnginfo=info)
        assert t2i(*DRAW, "-o", "plain.png", "--overwrite").code == 0
        ran = t2i("--from", "foreign.png", "-o", "restored.png", "--overwrite")
        assert ran.code == 0, ran.err
        assert "Clip skip" not in ran.err
        wanted, got = (recipe.read(here / name).recipe for name in (same, "restored.png"))
        assert wanted is not None
        assert got is not None
        assert wanted.image_hash == got.image_hash


def test_a_batch_without_it_keeps_the_names_of_before() -> None:
    known = options.OPTIONS["clip_skip"]
    assert known.option.identity == "set"
    assert known.default is None
