"""Prompts as a pipeline draws by them: remembered without a trace, weighted by a closed form, in chunks as encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_kit import FAMILIES
from generate_kit import LONG, SHORT

from t2i.errors import UsageError
from t2i.model_files.registry import Defaults
from t2i.pipelines.prompts import encoder as encoder_module
from t2i.pipelines.settings.settings import Job
from t2i.pipelines.text_to_image.pipeline import TextToImage

CLIP = ("sd15", "sdxl")


@pytest.fixture(scope="module")
def load(family: Callable[[str], Path]) -> Callable[[str], TextToImage]:
    """A family's model, loaded anew."""
    return lambda kind: TextToImage.load(str(family(kind)))


def encoded(model: TextToImage, prompt: str, negative: str = "", **chosen: Any) -> dict[str, torch.Tensor]:
    """What the pipeline is given for one image."""
    return model.prompt_encoder.options(
        [Job(prompt, 1)], model.settings(negative_prompt=negative, **chosen), guided=True
    )


def encoders(model: TextToImage) -> list[tuple[Any, Any]]:
    """(tokenizer, text encoder) of each CLIP encoder."""
    names = ("", "_2") if hasattr(model.pipe, "text_encoder_2") else ("",)
    return [(getattr(model.pipe, f"tokenizer{n}"), getattr(model.pipe, f"text_encoder{n}")) for n in names]


def plain(model: TextToImage, ids: list[int], hidden: slice = slice(0, 0)) -> torch.Tensor:
    """The encoders' output for the tokens of one chunk, those of `hidden` (counted with the beginning) masked."""
    parts = []
    for tokenizer, encoder in encoders(model):
        whole = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        whole += [tokenizer.pad_token_id] * (77 - len(whole))
        mask = torch.ones(1, 77, dtype=torch.long)
        mask[:, hidden] = 0
        with torch.no_grad():
            out = encoder(torch.tensor([whole]), None if mask.all() else mask, output_hidden_states=True)
        parts.append(out.last_hidden_state if len(encoders(model)) == 1 else out.hidden_states[-2])
    return torch.cat(parts, dim=-1)


def tokens(model: TextToImage, text: str) -> list[int]:
    ids: list[int] = model.pipe.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@contextmanager
def counted(model: TextToImage) -> Iterator[list[int]]:
    """How many texts the first text encoder is given, call by call."""
    calls: list[int] = []
    hook = model.pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    yield calls
    hook.remove()


# --- remembered ---


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_was_drawn_before_changes_no_bit(kind: str, load: Callable[[str], TextToImage]) -> None:
    """Alone, drawn first, drawn after others, or from memory; four at once beside others or beside itself."""
    options: dict[str, Any] = {"negative_prompt": "photo", "guidance": 3.0, "steps": 2, "width": 32, "height": 32}
    fresh = load(kind)
    first = {r.recipe.seed: r.recipe.image_hash for r in fresh(SHORT, seeds=range(4), batch_size=4, **options)}
    alone = next(fresh(SHORT, seeds=[2], batch_size=1, **options)).recipe.image_hash
    used = load(kind)
    list(used(["a cat", "", "van gogh"], seeds=[1], batch_size=4, **options | {"negative_prompt": ""}))
    for _ in range(2):
        again = list(used(SHORT, seeds=range(4), batch_size=4, **options))
        assert {r.recipe.seed: r.recipe.image_hash for r in again} == first
        assert next(used(SHORT, seeds=[2], batch_size=1, **options)).recipe.image_hash == alone
    assert len(set(first.values())) == 4


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("negative", ["", "photo"])
def test_one_image_is_what_the_pipeline_makes_of_the_plain_texts(
    kind: str, negative: str, load: Callable[[str], TextToImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(kind)
    options: dict[str, Any] = {"negative_prompt": negative, "guidance": 3.0, "steps": 2, "width": 32, "height": 32}
    ours = next(model(SHORT, seeds=[5], **options)).recipe
    texts = model.prompt_encoder._texts
    monkeypatch.setattr(model.prompt_encoder, "options", texts)
    assert texts([Job(SHORT, 5)], model.settings(negative_prompt=negative), True)["prompt"] == [SHORT]
    assert next(model(SHORT, seeds=[5], **options)).recipe.image_hash == ours.image_hash


def test_each_text_is_encoded_once(load: Callable[[str], TextToImage]) -> None:
    model = load("sd15")
    with counted(model) as calls:
        list(model(["a horse", "a cat"], seeds=range(5), batch_size=3, steps=1, guidance=3.0))
        assert calls == [1, 1, 1]  # two prompts, and the empty one
        list(model("a horse", seeds=[9], steps=1, guidance=3.0))
        assert len(calls) == 3
        list(model("a dog", seeds=[9], steps=1, guidance=1.0))
        assert len(calls) == 4  # without guidance no negative prompt


def test_memory_is_bounded_and_the_oldest_go(
    load: Callable[[str], TextToImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("sd15")
    one = 77 * 16 * 4
    monkeypatch.setattr(encoder_module, "CACHE_BYTES", 3 * one)
    settings = model.settings()
    with counted(model) as calls:
        for prompt in ("a", "b", "c", "a", "d"):  # d takes the place of b
            model.prompt_encoder.options([Job(prompt, 1)], settings, guided=False)
        assert (len(calls), model.prompt_encoder.bytes) == (4, 3 * one)
        model.prompt_encoder.options([Job(prompt, 1) for prompt in "acd"], settings, guided=False)
        assert len(calls) == 4
        many = model.prompt_encoder.options([Job(prompt, 1) for prompt in "abcdefgh"], settings, guided=False)
        assert (len(many["prompt_embeds"]), model.prompt_encoder.bytes) == (8, 3 * one)


def test_cleared_it_encodes_anew(load: Callable[[str], TextToImage]) -> None:
    model = load("sd15")
    before = [encoded(model, prompt)["prompt_embeds"] for prompt in ("a horse", "a (horse:1.5)")]
    with torch.no_grad():
        model.pipe.text_encoder.get_input_embeddings().weight.mul_(1.1)
    assert torch.equal(encoded(model, "a horse")["prompt_embeds"], before[0])
    model.prompt_encoder.clear()
    assert model.prompt_encoder.bytes == 0
    fresh = TextToImage.wrap(model.pipe)
    for prompt, old in zip(("a horse", "a (horse:1.5)"), before, strict=True):
        new = encoded(model, prompt)["prompt_embeds"]
        assert not torch.equal(new, old)
        assert torch.equal(new, encoded(fresh, prompt)["prompt_embeds"])


def test_a_pipeline_that_is_not_known_gets_the_words(load: Callable[[str], TextToImage]) -> None:
    model = load("sd15")
    own = type(model.pipe)
    model.pipe.__class__ = type("StrangePipeline", (own,), {})
    strange = TextToImage.wrap(model.pipe, defaults=Defaults())
    settings = strange.settings(negative_prompt="(photo:1.3)", width=32, height=32)
    given = strange.prompt_encoder.options([Job("a (red:1.2) horse", 1)], settings, guided=True)
    assert given == {"prompt": ["a red horse"], "negative_prompt": ["photo"]}
    drawn = next(strange("a (red:1.2) horse", seeds=[1], steps=1, width=32, height=32)).recipe
    assert (drawn.prompt, drawn.reading) == ("a (red:1.2) horse", {"weights": "left out"})


# --- weighted ---


@pytest.mark.parametrize("kind", CLIP)
def test_weight_one_everywhere_is_the_plain_prompt_bit_for_bit(kind: str, load: Callable[[str], TextToImage]) -> None:
    model = load(kind)
    expected = encoded(model, SHORT)
    for prompt in ("(a horse, a cat:1)", "(a horse:1.0), a cat", "((a horse:0.5):2), a cat"):
        given = encoded(model, prompt)
        assert given.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(given[name], tensor), (prompt, name)


@pytest.mark.parametrize("kind", CLIP)
@pytest.mark.parametrize("weight", [1.3, 4])
def test_above_one_the_distance_from_the_empty_prompt_is_scaled(
    kind: str, weight: float, load: Callable[[str], TextToImage]
) -> None:
    model = load(kind)
    z, empty = encoded(model, SHORT), encoded(model, "")
    given = encoded(model, f"a (horse:{weight}), a cat")
    assert tokens(model, "a") == tokens(model, SHORT)[:1]
    word = 2  # the beginning, "a", "horse"
    expected = z["prompt_embeds"].clone()
    expected[:, word] = empty["prompt_embeds"][:, word] * (1 - weight) + weight * expected[:, word]
    assert (given["prompt_embeds"] - expected).abs().max() < 1e-5
    others = torch.arange(77) != word
    assert torch.equal(given["prompt_embeds"][:, others], z["prompt_embeds"][:, others])
    assert torch.equal(given["negative_prompt_embeds"], z["negative_prompt_embeds"])
    if kind == "sdxl":
        assert torch.equal(given["pooled_prompt_embeds"], z["pooled_prompt_embeds"])


@pytest.mark.parametrize("kind", CLIP)
def test_below_one_it_is_blended_with_the_prompt_in_which_the_word_is_hidden(
    kind: str, load: Callable[[str], TextToImage]
) -> None:
    """At weight w: the scaled embedding and the one without the word, 1 : tan((1 - w) pi / 2); at 0 only the latter."""
    model = load(kind)
    ids, word = tokens(model, SHORT), 2
    z, hidden, empty = plain(model, ids), plain(model, ids, slice(word, word + 1)), plain(model, [])
    for weight in (0.75, 0.5, 0.0):
        pair = [z.clone(), hidden.clone()]
        for part in pair:
            part[:, word] = empty[:, word] * (1 - weight) + weight * part[:, word]
        share = np.cos((1 - max(weight, 1e-5)) * np.pi / 2) / (
            np.cos((1 - max(weight, 1e-5)) * np.pi / 2) + np.sin((1 - max(weight, 1e-5)) * np.pi / 2)
        )
        given = encoded(model, f"a (horse:{weight}), a cat")["prompt_embeds"]
        assert (given - (share * pair[0] + (1 - share) * pair[1])).abs().max() < 1e-5
        assert (given - z).abs().max() > 1e-3


@pytest.mark.parametrize("prompt", ["( :0.5)a horse", "a(:0.5) (\t:0)(horse:0.5)", "(a\u200b:0.5)(\u200b:0.2)"])
def test_nothing_with_a_weight_is_nothing(prompt: str, load: Callable[[str], TextToImage]) -> None:
    assert encoded(load("sd15"), prompt)["prompt_embeds"].isfinite().all()


def test_weights_hold_where_a_prompt_is_cut(load: Callable[[str], TextToImage]) -> None:
    model = load("sd15")
    given = encoded(model, f"a (horse:2), {LONG} (cat:0.5)", chunks=False)["prompt_embeds"]
    same = encoded(model, f"a (horse:2), {LONG}", chunks=False)["prompt_embeds"]
    assert given.shape == (1, 77, 16)
    assert (given - same).abs().max() < 1e-6


def test_the_more_weight_the_further_from_the_plain_picture() -> None:
    """mini's own pictures: from the word that is not there, over the plain prompt, to four times the word."""
    model = TextToImage.load("mini")
    below, above = ("1", "0.5", "0"), ("1", "1.3", "2", "4")

    @cache
    def pictures(prompt: str) -> np.ndarray[Any, Any]:
        drawn = model(prompt, seeds=range(2), steps=3)
        return np.stack([np.asarray(result.image, np.float32) for result in drawn])

    def weighted(weight: str) -> np.ndarray[Any, Any]:
        return pictures(f"a horse in (Van Gogh:{weight}) style")

    start, without = weighted("1"), weighted("0")
    for weights in (below, above):
        gaps = [float(np.abs(weighted(weight) - start).mean()) for weight in weights]
        assert gaps[0] == 0
        assert gaps == sorted(gaps)
        assert gaps[-1] > 8
    assert np.abs(without - pictures("a horse in style")).mean() < np.abs(without - start).mean()


# --- in chunks ---


@pytest.mark.parametrize("kind", CLIP)
def test_a_long_prompt_is_its_chunks_one_behind_the_other(kind: str, load: Callable[[str], TextToImage]) -> None:
    model = load(kind)
    ids, comma = tokens(model, LONG), tokens(model, ",")[0]
    assert 75 < len(ids) <= 150
    end = max(k for k in range(75) if ids[k] == comma) + 1  # a chunk ends with a comma where it can
    given = encoded(model, LONG, "photo")
    expected = torch.cat([plain(model, ids[:end]), plain(model, ids[end:])], dim=1)
    assert torch.equal(given["prompt_embeds"], expected)
    short = encoded(model, SHORT, "photo")
    empty = plain(model, [])
    assert torch.equal(given["negative_prompt_embeds"], torch.cat([short["negative_prompt_embeds"], empty], dim=1))
    if kind == "sdxl":
        cut = encoded(model, LONG, chunks=False)
        assert torch.equal(given["pooled_prompt_embeds"], cut["pooled_prompt_embeds"])
        assert cut["prompt_embeds"].shape[1] == 77


@pytest.mark.parametrize("kind", CLIP)
def test_a_long_negative_prompt_lengthens_the_prompt(kind: str, load: Callable[[str], TextToImage]) -> None:
    model = load(kind)
    given = encoded(model, SHORT, LONG)
    assert given["prompt_embeds"].shape == given["negative_prompt_embeds"].shape
    assert torch.equal(given["prompt_embeds"][:, 77:], plain(model, []))
    settings = model.settings(negative_prompt=LONG)
    assert model.prompt_encoder.chunks(Job(SHORT, 1), settings, True) == 2
    assert model.prompt_encoder.chunks(Job(SHORT, 1), settings, False) == 1


def test_long_and_short_ones_together_are_as_each_alone(load: Callable[[str], TextToImage]) -> None:
    model = load("sdxl")
    options: dict[str, Any] = {"guidance": 3.0, "steps": 2, "width": 32, "height": 32}
    prompts = [SHORT, LONG, "a cat"]
    together = list(model(prompts, seeds=[1], batch_size=3, **options))
    assert [result.index for result in together] == [0, 1, 2]
    assert [result.recipe.batch_size for result in together] == [1, 1, 1]
    assert [result.recipe.reading for result in together] == [{}, {"chunks": 2}, {}]
    for prompt, result in zip(prompts, together, strict=True):
        assert next(model(prompt, seeds=[1], **options)).recipe == result.recipe


def test_with_and_without_a_negative_prompt_are_apart_where_the_pipeline_tells_them_apart(
    load: Callable[[str], TextToImage],
) -> None:
    jobs = [Job("a", 1, negative_prompt=""), Job("a", 2, negative_prompt="photo"), Job("a", 3, negative_prompt="cat")]
    for kind, runs in (("flux", [1, 2]), ("sd15", [3])):
        model = load(kind)
        assert [len(run) for run in model.prompt_encoder.runs(jobs, model.settings(), True)] == runs
        assert [len(run) for run in model.prompt_encoder.runs(jobs, model.settings(), False)] == [3]


def test_flux_with_true_guidance_is_as_plain_diffusers(family: Callable[[str], Path]) -> None:
    """Its guidance by a negative prompt, where a model's defaults say that this is what guidance means."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(family("flux"))
    model = TextToImage.wrap(pipe, defaults=Defaults(guidance_name="true_cfg_scale"))
    for negative in ("photo", ""):
        ours = next(model(SHORT, seeds=[5], negative_prompt=negative, guidance=3.0, steps=2, width=32, height=32)).image
        theirs = pipe(
            SHORT,
            negative_prompt=negative or None,
            true_cfg_scale=3.0,
            num_inference_steps=2,
            width=32,
            height=32,
            generator=[torch.Generator().manual_seed(5)],
            output_type="np",
        ).images[0]
        assert np.abs(np.asarray(ours, np.float32) / 255 - theirs).max() <= 1.5 / 255


def test_weights_within_chunks(load: Callable[[str], TextToImage]) -> None:
    model = load("sd15")
    whole, weighted = encoded(model, LONG), encoded(model, LONG.replace("gogh, ", "(gogh:1.5), ", 1))
    changed = (whole["prompt_embeds"] != weighted["prompt_embeds"]).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [1 + tokens(model, LONG).index(tokens(model, "gogh")[0])]


def test_more_chunks_than_anyone_means_are_refused(load: Callable[[str], TextToImage]) -> None:
    model = load("sd15")
    with pytest.raises(UsageError) as caught:
        encoded(model, "a horse, " * 700)
    assert caught.value.message == "prompt: more than 20 chunks of 75 tokens"
    assert caught.value.hint == "shorten it; `chunks=False` truncates it to one"
    assert encoded(model, "a horse, " * 700, chunks=False)["prompt_embeds"].shape[1] == 77


def test_who_reads_in_chunks(load: Callable[[str], TextToImage], tiny_pipeline: Path) -> None:
    """By default encoders of 77 tokens; another CLIP encoder when it is asked to; T5 never."""
    short = TextToImage.load(str(tiny_pipeline))
    assert short.settings().chunks is False
    assert short.settings(chunks=True).chunks is True
    for kind, can in (("sd15", True), ("sdxl", True), ("sd3", False), ("flux", False)):
        model = load(kind)
        assert (model.settings().chunks, model.settings(chunks=True).chunks) == (can, can)
        assert model.settings(chunks=False).chunks is False
        assert model.settings(weights=False).chunks is False  # as plain diffusers
    settings = short.settings(chunks=True)
    assert replace(settings, chunks=False) == short.settings()


def test_weights_that_are_elsewhere_until_they_compute(load: Callable[[str], TextToImage]) -> None:
    """As with offloading layer by layer: the encoder's own weights are nowhere, and what it makes is the same."""
    from accelerate import cpu_offload

    model = load("sd15")
    prompts = ("a horse", "a (horse:1.5)", "a (horse:0.5)", LONG)
    expected = [encoded(model, prompt)["prompt_embeds"] for prompt in prompts]
    model.prompt_encoder.clear()
    for part in (model.pipe.vae, model.pipe.text_encoder, model.pipe.unet):
        cpu_offload(part, execution_device=torch.device("cpu"), offload_buffers=True)
    assert model.pipe.text_encoder.device.type == "meta"
    for prompt, embeds in zip(prompts, expected, strict=True):
        assert torch.equal(encoded(model, prompt)["prompt_embeds"], embeds)


def test_a_word_of_several_vectors_has_one_weight_and_counts_as_several(load: Callable[[str], TextToImage]) -> None:
    model = load("sd15")
    vectors = torch.linspace(-1, 1, 48).reshape(3, 16)
    model.pipe.load_textual_inversion({"<x>": vectors})
    model.prompt_encoder.clear()
    plain_text, weighted = (encoded(model, f"a {word} horse")["prompt_embeds"] for word in ("<x>", "(<x>:1.5)"))
    changed = (plain_text != weighted).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [2, 3, 4]
    settings = model.settings()
    assert model.prompt_encoder.chunks(Job("<x> " * 17, 1), settings, False) == 1
    assert model.prompt_encoder.chunks(Job("<x> " * 26, 1), settings, False) == 2
    assert encoded(model, "<x> " * 26)["prompt_embeds"].shape[1] == 154
