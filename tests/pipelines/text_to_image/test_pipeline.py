"""Drawing: an image depends on its own seed alone, and equals what diffusers and the formulas give."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.errors import ModelError, NonFinite, UsageError
from t2i.model_files.registry import Defaults
from t2i.pipelines.noise import step_in_float32
from t2i.pipelines.settings.schedulers import SCHEDULERS, describe, make_scheduler, scheduler_name, usable
from t2i.pipelines.text_to_image.pipeline import TextToImage

STOCHASTIC = ("euler-a", "dpm++2m-sde")


@pytest.fixture(scope="module")
def flow(tiny_pipeline: Path) -> TextToImage:
    return TextToImage.load(tiny_pipeline)


@pytest.fixture(scope="module")
def epsilon(epsilon_pipeline: Path) -> TextToImage:
    return TextToImage.load(epsilon_pipeline)


def difference(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of two pictures in any pixel, of 255."""
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


def images(model: TextToImage, prompts: Any = "a horse", **options: Any) -> list[Image.Image]:
    return [result.image for result in model(prompts, **{"seeds": [5], "steps": 4} | options)]


# --- one image, one seed ---


@pytest.mark.parametrize("scheduler", [None, *STOCHASTIC])
@pytest.mark.parametrize("model", ["flow", "epsilon"])
def test_the_same_picture_alone_and_in_any_batch(
    model: str, scheduler: str | None, request: pytest.FixtureRequest
) -> None:
    loaded = request.getfixturevalue(model)
    seeds = range(40, 48)
    eight = images(loaded, seeds=seeds, batch_size=8, scheduler=scheduler)
    three = images(loaded, seeds=seeds, batch_size=3, scheduler=scheduler)
    alone = [images(loaded, seeds=[seed], scheduler=scheduler)[0] for seed in seeds]
    for k in range(8):
        assert difference(eight[k], alone[k]) <= 1
        assert difference(three[k], alone[k]) <= 1
    assert difference(alone[0], alone[1]) > 30  # and another seed is another picture


def test_the_first_noise_is_bit_for_bit_the_same_in_any_batch(flow: TextToImage, monkeypatch: Any) -> None:
    noise: list[torch.Tensor] = []
    prepare = flow.pipe.prepare_latents
    monkeypatch.setattr(flow.pipe, "prepare_latents", lambda *a: noise.append(prepare(*a)) or noise[-1])
    images(flow, seeds=range(7), batch_size=7, steps=1)
    images(flow, seeds=range(7), batch_size=1, steps=1)
    assert torch.equal(noise[0], torch.cat(noise[1:]))
    assert torch.equal(noise[0][3], torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3)))


def test_every_prompt_begins_with_the_first_seed(flow: TextToImage) -> None:
    results = list(flow(["a horse", "a cat"], seeds=[7, 8], steps=3))
    assert [(r.recipe.prompt, r.recipe.seed) for r in results] == [
        ("a horse", 7),
        ("a horse", 8),
        ("a cat", 7),
        ("a cat", 8),
    ]
    assert difference(results[2].image, images(flow, "a cat", seeds=[7], steps=3)[0]) <= 1
    assert difference(results[0].image, results[2].image) > 0  # the prompt matters


def test_no_draw_touches_the_global_generator(flow: TextToImage) -> None:
    torch.manual_seed(1)
    first = images(flow, scheduler="euler-a")[0]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert difference(images(flow, scheduler="euler-a")[0], first) == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_draws_the_noise_of_float32(epsilon: TextToImage) -> None:
    scheduler = make_scheduler("euler-a", epsilon.pipe.scheduler)
    scheduler.set_timesteps(4)
    shape = (1, 4, 3, 3)  # 36 numbers: no multiple of 16, so torch would draw others in half precision
    zeros = torch.zeros(shape)
    exact = scheduler.step(zeros, scheduler.timesteps[0], zeros, generator=torch.Generator().manual_seed(3))[0]
    scheduler.set_timesteps(4)
    half = step_in_float32(scheduler).step(
        zeros.bfloat16(), scheduler.timesteps[0], zeros.bfloat16(), torch.Generator().manual_seed(3), False
    )[0]
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())


def test_bfloat16_draws_nearly_the_same_picture(tiny_pipeline: Path, flow: TextToImage) -> None:
    half = TextToImage.load(tiny_pipeline, dtype="bf16")
    result = next(iter(half("a horse", seeds=[5], steps=4)))
    ours = np.asarray(result.image, np.float32)
    assert np.abs(ours - np.asarray(images(flow)[0], np.float32)).mean() < 20
    assert result.recipe.dtype == "bfloat16"


# --- against diffusers and the formulas ---


@pytest.mark.parametrize("model", ["tiny_pipeline", "epsilon_pipeline"])
def test_equals_plain_diffusers(model: str, request: pytest.FixtureRequest) -> None:
    from diffusers import StableDiffusionPipeline

    from t2i.model_files.library_logging import silence_libraries

    folder = request.getfixturevalue(model)
    ours = images(TextToImage.load(folder), "a horse", negative_prompt="a cat", guidance=3)[0]
    with silence_libraries():
        pipe = StableDiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(5)
        options = {"num_inference_steps": 4, "guidance_scale": 3, "generator": generator}
        plain = pipe("a horse", negative_prompt="a cat", **options).images[0]
    assert difference(ours, plain) <= 1


def test_euler_on_a_flow_model_is_euler(flow: TextToImage) -> None:
    """x + (s_next - s) v, written out: RECIPES' flow with alpha = 1 - s, sigma = s."""
    steps, w, pipe = 5, 2.5, flow.pipe
    ours = images(flow, steps=steps, guidance=w, scheduler="euler")[0]
    make = make_scheduler("euler", pipe.scheduler)
    make.set_timesteps(steps)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        cond, uncond = pipe.encode_prompt("a horse", "cpu", 1, True)
        for t, s, s_next in zip(make.timesteps, make.sigmas[:-1], make.sigmas[1:], strict=True):
            v = pipe.unet(torch.cat([x, x]), t, torch.cat([uncond, cond])).sample
            x = x + (s_next - s) * (v[:1] + w * (v[1:] - v[:1]))
        picture = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[0]
    exact = ((picture + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(exact - np.asarray(ours, np.float32)).max() <= 1


def test_euler_a_on_a_flow_model_samples_the_gaussian_posterior(flow: TextToImage) -> None:
    """Ho et al. 2020, eq. 7, with alpha = 1 - s, sigma = s: the mean and the variance of q(x_t | x_s, x0)."""
    scheduler = make_scheduler("euler-a", flow.pipe.scheduler)
    scheduler.set_timesteps(4)
    s, t = scheduler.sigmas[1].double(), scheduler.sigmas[2].double()
    x = torch.full((1, 1, 100, 100), 0.7)
    x0 = torch.full_like(x, 0.3)
    v = (x - x0) / s.float()
    scheduler.step(v, scheduler.timesteps[0], x, generator=torch.Generator().manual_seed(0))
    drawn = scheduler.step(v, scheduler.timesteps[1], x, generator=torch.Generator().manual_seed(0))[0]
    ratio = ((1 - s) * t / ((1 - t) * s)) ** 2
    mean = (1 - t) * (1 - ratio) * 0.3 + ratio * (1 - t) / (1 - s) * 0.7
    assert abs(float(drawn.mean() - mean)) < 4 * float(t) / 100
    assert abs(float(drawn.std() / (t * (1 - ratio) ** 0.5)) - 1) < 0.03


# --- schedulers ---


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("model", ["flow", "epsilon"])
def test_every_scheduler_draws_or_is_refused_by_name(model: str, name: str, request: pytest.FixtureRequest) -> None:
    loaded = request.getfixturevalue(model)
    if name not in usable(loaded.pipe.scheduler.config):
        with pytest.raises(UsageError, match="does not work with this model") as caught:
            loaded("a horse", seeds=[1], scheduler=name)
        assert "dpm++2m" in str(caught.value.hint)
        return
    for steps in (1, 2, 9):
        result = next(iter(loaded("a horse", seeds=[1], steps=steps, scheduler=name)))
        assert np.asarray(result.image).std() > 5
    if (model, name) != ("flow", "ddim"):  # there it is the same step as euler's
        assert result.recipe.scheduler == name
    assert result.recipe.sampler == SCHEDULERS[name].sampler or name == "ddim"


def test_solvers_agree_when_the_steps_are_small(flow: TextToImage, epsilon: TextToImage) -> None:
    """The deterministic ones solve one equation; the stochastic ones go elsewhere."""
    for model, names in ((flow, ("dpm++2m", "euler", "unipc")), (epsilon, ("dpm++2m", "dpm++2m-karras", "unipc"))):
        pictures = {name: images(model, steps=60, guidance=1, scheduler=name)[0] for name in (*names, "euler-a")}
        for name in names[1:]:
            gap = np.abs(np.asarray(pictures[name], np.float32) - np.asarray(pictures[names[0]], np.float32)).mean()
            assert gap < 8, name
        assert difference(pictures["euler-a"], pictures[names[0]]) > 40


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("DPM++ 2M Karras", "dpm++2m-karras"),
        ("DPM++ 2M", "dpm++2m"),
        ("Euler a", "euler-a"),
        ("EULER", "euler"),
        ("UniPC", "unipc"),
        ("dpm++_2m_sde", "dpm++2m-sde"),
        ("PLMS", "pndm"),
        ("LCM", "lcm"),
    ],
)
def test_names_of_other_tools_are_understood(spelling: str, name: str) -> None:
    assert scheduler_name(spelling) == name


def test_an_unknown_scheduler_names_the_known() -> None:
    with pytest.raises(UsageError) as caught:
        scheduler_name("dpm+2m")
    assert "dpm++2m-karras" in str(caught.value.hint)


def test_a_models_own_scheduler_is_called_by_name(flow: TextToImage, epsilon: TextToImage) -> None:
    from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler

    for model, name in ((flow, "dpm++2m"), (epsilon, "pndm")):
        model.settings()
        assert model.scheduler == name
    assert describe(DPMSolverMultistepScheduler(use_karras_sigmas=True)) == ("dpm++2m-karras", "DPM++ 2M", "Karras")
    assert describe(DEISMultistepScheduler()) == ("DEISMultistepScheduler", "DEISMultistep", None)


# --- settings, errors, records ---


def test_defaults_come_from_the_model_then_from_its_pipeline(flow: TextToImage) -> None:
    model = TextToImage.wrap(flow.pipe, "x", Defaults(steps=3, guidance=2.0, size=(40, 48), scheduler="euler"))
    recipe = next(iter(model("a horse", seeds=[1]))).recipe
    assert (recipe.steps, recipe.guidance, recipe.width, recipe.height) == (3, 2.0, 40, 48)
    assert recipe.scheduler == "euler"
    settings = TextToImage.wrap(flow.pipe).settings()
    assert (settings.steps, settings.guidance, settings.width, settings.height) == (50, 7.5, 32, 32)
    assert flow.settings(width=64).height == 64


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 33}, "nearest size is 32"),
        ({"height": 7}, "nearest size is 8"),
        ({"width": 0}, "allowed 1 to 8192"),
        ({"width": -8}, "allowed 1 to 8192"),
        ({"height": 10**6}, "allowed 1 to 8192"),
        ({"steps": 0}, "allowed 1 to 1000"),
        ({"steps": 1001}, "allowed 1 to 1000"),
        ({"guidance": float("nan")}, "allowed 0 to 100"),
        ({"guidance": float("inf")}, "allowed 0 to 100"),
        ({"guidance": -0.1}, "allowed 0 to 100"),
        ({"seeds": [-2]}, r"2\^64"),
        ({"seeds": [2**64]}, r"2\^64"),
        ({"batch_size": 0}, "allowed 1 to 1024"),
        ({"prompts": "x" * 1_000_001}, "allowed are 1000000"),
        ({"negative_prompt": "x" * 1_000_001}, "negative prompt"),
        ({"prompts": "\udcff"}, "not valid UTF-8"),
    ],
)
def test_what_is_out_of_range_is_refused_before_drawing(flow: TextToImage, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        flow(**{"prompts": "a horse", "seeds": [1], "steps": 1} | wrong)
    assert re.search(said, str(caught.value))


def test_the_largest_seed_draws(flow: TextToImage) -> None:
    assert next(iter(flow("a horse", seeds=[2**64 - 1], steps=1))).recipe.seed == 2**64 - 1


def test_guidance_of_one_or_less_is_off(flow: TextToImage) -> None:
    off = [images(flow, guidance=w, negative_prompt=negative)[0] for w in (0, 1) for negative in ("", "a cat")]
    assert all(difference(off[0], picture) == 0 for picture in off)
    assert difference(off[0], images(flow, guidance=5)[0]) > 0
    assert not flow.runner.uses_negative(1)


def test_an_empty_prompt_draws_without_a_condition(flow: TextToImage) -> None:
    assert difference(images(flow, "", guidance=1)[0], images(flow, "", guidance=9)[0]) <= 1


def test_non_finite_weights_are_an_error_and_never_a_picture(tiny_pipeline: Path) -> None:
    model = TextToImage.load(tiny_pipeline)
    model.pipe.vae.decoder.conv_out.bias.data[0] = float("nan")
    with pytest.raises(NonFinite, match="non-finite image"):
        images(model)
    model.pipe.unet.conv_out.bias.data[0] = float("inf")
    with pytest.raises(NonFinite, match="after step 1"):
        images(model)


def test_the_finite_images_of_a_batch_are_not_lost(flow: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(3, 3, 32, 32)
    x[1, 0, 0, 0] = float("nan")
    monkeypatch.setattr(flow.runner, "draw", lambda *_: (x, [False] * 3))
    drawn = []
    with pytest.raises(NonFinite, match="seed 12"):
        drawn += [drawn.append(r) for r in flow("a horse", seeds=[11, 12, 13])]
    assert [result.recipe.seed for result in drawn] == [11, 13]


def test_what_a_pipeline_cannot_do_is_said_in_one_line(flow: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("not\n  today")

    monkeypatch.setattr(flow.pipe, "encode_prompt", refuse)
    with pytest.raises(ModelError, match="cannot draw this: not today"):
        images(flow)


def test_the_safety_checkers_verdict_is_handed_on(flow: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow.pipe, "run_safety_checker", lambda image, *_: (image, [False, True]))
    assert [result.blanked for result in flow("a horse", seeds=[1, 2], steps=1)] == [False, True]


def test_a_recipe_tells_what_was_done(flow: TextToImage, tiny_pipeline: Path) -> None:
    from t2i.imaging.images import pixel_hash

    result = next(iter(flow("a horse", seeds=[3], steps=2, guidance=4, negative_prompt="a cat", scheduler="Euler a")))
    recipe = result.recipe
    assert (recipe.prompt, recipe.negative_prompt, recipe.seed, recipe.steps) == ("a horse", "a cat", 3, 2)
    assert (recipe.scheduler, recipe.sampler, recipe.guidance) == ("euler-a", "Euler a", 4)
    assert (recipe.model, recipe.dtype, recipe.device) == (tiny_pipeline.name, "float32", "cpu")
    assert recipe.image_hash == pixel_hash(result.image)
    assert len(str(recipe.weights_hash)) == 64
    assert {"t2i", "torch", "diffusers", "transformers"} <= set(recipe.versions)
    assert recipe.hardware
    assert (recipe.threads, recipe.batch_size, recipe.batch_index) == (torch.get_num_threads(), 1, 0)
    assert str(tiny_pipeline) not in recipe.to_json()


def test_images_come_batch_by_batch_with_their_progress(flow: TextToImage) -> None:
    seen: list[tuple[int, int]] = []
    results = flow("a horse", seeds=range(3), steps=4, batch_size=2, progress=lambda *now: seen.append(now))
    next(results)
    assert seen[-1] == (8, 12)
    list(results)
    assert seen[-1] == (12, 12)
    assert seen == sorted(seen)


def test_eight_small_images_are_one_batch(flow: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    draw: Callable[..., Any] = flow.runner.draw
    monkeypatch.setattr(flow.runner, "draw", lambda batch, *rest: sizes.append(len(batch)) or draw(batch, *rest))
    images(flow, seeds=range(10), steps=1)
    assert sizes == [8, 2]
