"""Step caching: what is taken over and when, that nothing is left over from one batch to the next, and the record."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate_kit import Run

from t2i.errors import UsageError
from t2i.imaging import images
from t2i.metadata import recipe
from t2i.pipelines.text_to_image.pipeline import TextToImage
from t2i.pipelines.text_to_image.step_cache import CACHES, FIRST_BLOCK, StepCache, has_layers, layers_of, parse_cache

Family = Callable[[str], Path]


def array(image: Any) -> np.ndarray[Any, Any]:
    return np.asarray(image, np.int16)


def draw(folder: Path, cache: str | None, seeds: list[int], **options: Any) -> list[Any]:
    model = TextToImage.load(folder, cache=cache)
    return [array(result.image) for result in model("a horse", seeds=seeds, steps=8, guidance=3.0, **options)]


# --- what the user says ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [("reuse", "reuse:2"), ("taylor:3", "taylor:3"), ("first-block", "first-block:0.1"), ("none", None)],
)
def test_a_cache_is_written_one_way(text: str, expected: str | None) -> None:
    found = parse_cache(text)
    assert (found and str(found)) == expected


@pytest.mark.parametrize("text", ["reuse:1", "reuse:2.5", "taylor:11", "first-block:0", "first-block:nan", "reuse:"])
def test_a_value_out_of_range_names_the_range(text: str) -> None:
    method = CACHES[text.partition(":")[0]]
    with pytest.raises(UsageError, match=f"from {method.low:g} to {method.high:g}"):
        parse_cache(text)


def test_an_unknown_cache_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="got 'deepcache'") as caught:
        parse_cache("deepcache")
    assert caught.value.hint == "one of reuse, taylor, first-block, none; with a value: reuse:3"


def test_a_network_that_cannot_names_what_can(t2i: Run) -> None:
    ran = t2i("a horse", "--cache", "first-block")
    assert (ran.code, ran.out) == (2, "")
    assert "cache 'first-block' does not work with this model's network (UNet2DConditionModel)" in ran.err
    assert "with it work: reuse, taylor" in ran.err


# --- what is computed ---


@pytest.fixture
def counted(epsilon_pipeline: Path) -> tuple[TextToImage, dict[str, int]]:
    """A model with `reuse:2`, and how often an inner and an outer layer of its U-Net have really been run."""
    model = TextToImage.load(epsilon_pipeline, cache="reuse:2")
    unet, counts = model.pipe.unet, {"inner": 0, "outer": 0}

    def count(name: str) -> Callable[..., None]:
        return lambda *_: counts.update({name: counts[name] + 1})

    # conv1 is within the layer whose result is kept, so it runs only where that is computed
    unet.mid_block.resnets[0].conv1.register_forward_hook(count("inner"))
    unet.up_blocks[-1].resnets[0].conv1.register_forward_hook(count("outer"))
    return model, counts


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_every_second_step_after_the_third_is_computed(counted: Any, guidance: float) -> None:
    model, counts = counted
    list(model("a horse", seeds=[1], steps=9, guidance=guidance, scheduler="ddim"))
    assert counts == {"inner": 3 + 3, "outer": 9}  # steps 1 2 3, 5 7 9
    list(model("a horse", seeds=[1], steps=9, guidance=guidance, scheduler="ddim"))
    assert counts == {"inner": 12, "outer": 18}


def test_reuse_gives_what_the_step_before_gave(epsilon_pipeline: Path) -> None:
    """Of order 0: with the same input and other timesteps, the kept layer's output is bit for bit the last one."""
    model = TextToImage.load(epsilon_pipeline, cache="reuse:2")
    seen: list[Any] = []
    model.pipe.unet.mid_block.register_forward_hook(lambda _, __, output: seen.append(output))
    list(model("a horse", seeds=[1], steps=5, scheduler="ddim"))
    same = [bool((a == b).all()) for a, b in pairwise(seen)]
    assert same == [False, False, True, False]


def test_the_outermost_blocks_are_always_computed(epsilon_pipeline: Path) -> None:
    import re

    unet = TextToImage.load(epsilon_pipeline).pipe.unet
    kept = [name for name, _ in unet.named_modules() if re.fullmatch(layers_of(unet), name)]
    assert kept
    assert {name.partition(".resnets")[0].partition(".attentions")[0] for name in kept} == {
        "down_blocks.1",
        "mid_block",
        "up_blocks.0",
    }


# --- the same picture, whatever is drawn beside it and before ---


@pytest.mark.parametrize(
    ("kind", "cache"), [("sd15", "reuse"), ("sdxl", "reuse"), ("sd3", "taylor"), ("flux", "reuse"), ("flux", "taylor")]
)
def test_a_batch_leaves_nothing_behind(family: Family, kind: str, cache: str) -> None:
    model = family(kind)
    alone = draw(model, cache, [7], width=32, height=32)[0]
    after = draw(model, cache, [3, 4, 7], width=32, height=32, batch_size=1)[-1]
    plain = draw(model, None, [7], width=32, height=32)[0]
    assert (alone == after).all()
    assert (alone != plain).any()


@pytest.mark.parametrize("cache", ["reuse", "taylor"])
@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_a_picture_does_not_depend_on_its_batch(family: Family, kind: str, cache: str) -> None:
    one = draw(family(kind), cache, [5, 6, 7, 8], width=32, height=32, batch_size=1)
    four = draw(family(kind), cache, [5, 6, 7, 8], width=32, height=32, batch_size=4)
    assert max(np.abs(a - b).max() for a, b in zip(one, four, strict=True)) <= 1


def test_branches_that_are_called_one_by_one_remember_for_themselves(family: Family) -> None:
    """Flux's true guidance calls the network twice in a step: with both prompts equal it is as if there were one."""
    model = TextToImage.load(family("flux"), cache="reuse")
    assert model.runner.hooks is not None

    def one(**options: Any) -> Any:
        import torch

        model.runner.use_scheduler(None)
        given = {"prompt": "a horse", "width": 32, "height": 32, "num_inference_steps": 8, "output_type": "np"}
        generator = torch.Generator().manual_seed(1)
        assert model.runner.hooks is not None
        with model.runner.hooks.drawing():
            return model.pipe(**given, generator=generator, **options).images

    twice = one(negative_prompt="a horse", true_cfg_scale=2.0)
    assert np.abs(one() - twice).max() < 1e-5
    assert np.abs(one() - one(negative_prompt="a cat", true_cfg_scale=2.0)).max() > 1e-3


# --- first-block ---


def test_first_block_of_a_threshold_never_met_changes_nothing(family: Family) -> None:
    model = family("flux")
    plain = draw(model, None, [5, 6], width=32, height=32, batch_size=1)
    cached = draw(model, "first-block:0.001", [5, 6], width=32, height=32)
    assert all((a == b).all() for a, b in zip(plain, cached, strict=True))


def test_first_block_skips_steps_and_leaves_nothing_behind(family: Family) -> None:
    model = TextToImage.load(family("flux"), cache="first-block:1")
    runs: list[int] = []
    model.pipe.transformer.single_transformer_blocks[-1].proj_out.register_forward_hook(lambda *_: runs.append(1))
    options: dict[str, Any] = {"steps": 12, "width": 32, "height": 32}
    alone = array(next(model("a horse", seeds=[7], **options)).image)
    assert 0 < len(runs) < 12
    after = [array(result.image) for result in model("a horse", seeds=[3, 7], **options)][-1]
    assert (alone == after).all()


def test_first_block_draws_one_at_a_time(family: Family, t2i: Run) -> None:
    ran = t2i("a horse", "-m", str(family("flux")), "--cache", "first-block", "--batch-size", "4", "--size", "32")
    assert ran.code == 2
    assert "--cache first-block:0.1 with --batch-size 4" in ran.err
    with pytest.raises(UsageError, match="with 2 images at once"):
        TextToImage.load(family("flux"), cache="first-block")("a horse", seeds=[1, 2], batch_size=2)


@pytest.mark.parametrize("kind", ["sd3", "sd15"])
def test_first_block_is_refused_where_it_would_fail(family: Family, kind: str) -> None:
    with pytest.raises(UsageError, match="cache 'first-block' does not work"):
        TextToImage.load(family(kind), cache="first-block")


def test_the_transformers_of_the_zoo_have_layers_that_are_kept() -> None:
    import diffusers

    small: dict[str, dict[str, Any]] = {
        "PixArtTransformer2DModel": {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16},
        "SanaTransformer2DModel": {"num_attention_heads": 2, "attention_head_dim": 4, "cross_attention_dim": 8}
        | {"num_cross_attention_heads": 2, "cross_attention_head_dim": 4, "caption_channels": 8},
        "ZImageTransformer2DModel": {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16}
        | {"axes_dims": [8, 4, 4], "axes_lens": [64, 32, 32], "n_layers": 2},
    }
    for name, options in small.items():
        layers = {} if "n_layers" in options else {"num_layers": 2}
        assert has_layers(getattr(diffusers, name)(**options, **layers)), name
    assert set(FIRST_BLOCK) <= set(dir(diffusers))


# --- the record ---


def test_the_cache_is_recorded_and_replayed(t2i: Run, here: Path) -> None:
    assert t2i("a horse", "-s", "7", "--cache", "taylor", "-o", "a.png", steps="8").code == 0
    record = recipe.read(here / "a.png").recipe
    assert record is not None
    assert record.machine == {"cache": "taylor:2"}
    again = t2i("--from", "a.png", "-o", "b.png", steps="")
    assert "identical" in again.err
    without = t2i("--from", "a.png", "--cache", "none", "-o", "c.png", steps="")
    assert "drawn anew, with another step cache" in without.err
    assert recipe.read(here / "c.png").recipe.machine == {}  # type: ignore[union-attr]
    assert (array(images.decode(here / "a.png")) != array(images.decode(here / "c.png"))).any()


def test_a_batch_with_another_cache_is_another_batch(t2i: Run, here: Path) -> None:
    (here / "p.txt").write_text("a horse\na cat\n", encoding="utf-8")
    first = t2i("--prompts", "p.txt", "-s", "1", "-o", "out/")
    second = t2i("--prompts", "p.txt", "-s", "1", "-o", "out/", "--cache", "reuse")
    assert first.code == 0
    assert (second.code, second.out) == (2, "")
    assert "cache was None, now 'reuse:2'" in second.err


def test_the_hooks_are_those_of_the_pipeline_only(tiny_pipeline: Path) -> None:
    plain, cached = TextToImage.load(tiny_pipeline), TextToImage.load(tiny_pipeline, cache="reuse")
    assert isinstance(cached.runner.hooks, StepCache)
    assert plain.runner.hooks is None
    assert not any(hasattr(module, "_diffusers_hook") for module in plain.pipe.unet.modules())
