"""The DDPM pipeline: the same pictures as diffusers draws, the same folder, one seed per image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from ddpm_kit import NAMES, SIZE, make, make_unet
from PIL import Image
from safetensors.torch import load_file, save_file

from t2i.errors import ModelError, NonFinite, UsageError
from t2i.imaging import images
from t2i.pipelines.class_conditional.ddpm import DDPM
from t2i.pipelines.class_conditional.diffusers_scheduler import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    make_scheduler,
    read_scheduler,
)


def difference(ours: list[Image.Image], theirs: list[Image.Image]) -> int:
    """Greatest difference of a value, of 255."""
    return int((images.to_tensor(ours) - images.to_tensor(theirs)).abs().max().mul(127.5).round())


def pair_of_noises(seed: int, count: int) -> list[torch.Tensor]:
    """What image `seed` draws: its latent, then its later noise."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(3, SIZE, SIZE, generator=g) for _ in range(count)]


# diffusers draws the same


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_exported_folder_draws_the_same_in_plain_diffusers(predict: str, tmp_path: Path) -> None:
    """1000 ancestral steps are too long for a test: 25, spaced as diffusers spaces them, from the same generator."""
    ours = make(predict=predict)
    ours.save_pretrained(tmp_path)
    theirs = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(generator=torch.Generator().manual_seed(3), num_inference_steps=25).images
    found = ours(1, seed=3, sampler="ddpm", steps=25, spacing="leading")
    assert difference(found, expected) <= 1


def test_exported_flow_draws_in_plain_diffusers(tmp_path: Path) -> None:
    """Deterministic, with another solver of higher order at the same times: close, not equal."""
    ours = make("flow", "flow")
    ours.save_pretrained(tmp_path)
    theirs = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    expected = images.to_tensor(theirs(generator=torch.Generator().manual_seed(3), num_inference_steps=100).images)
    ours.clip = False  # theirs does not
    found = images.to_tensor(ours(1, seed=3, sampler="dpm++2m", steps=100))
    assert (found - expected).abs().mean() < 0.02
    assert found.std() > 0.1


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m", "heun", "euler", "ddpm", "ddpm-large"])
def test_every_sampler_draws_with_every_schedule(sampler: str) -> None:
    for schedule, predict in (("linear", "eps"), ("cosine", "v"), ("flow", "flow")):
        (image,) = make(schedule, predict)(1, sampler=sampler, steps=4)
        assert image.size == (SIZE, SIZE)


def test_classes_reach_the_network_and_guidance_mixes() -> None:
    """One step of DDIM from T to 0 is the denoiser's guess: uncond + w (cond - uncond), clipped."""
    ours = make("linear", "x0", NAMES)
    x_T = pair_of_noises(5, 1)[0][None]
    with torch.no_grad():
        cond, uncond = (ours.unet(x_T, 999.0, torch.tensor([label])) for label in (1, 3))
    assert (cond - uncond).abs().max() > 0.01
    for guidance, expected in ((1.0, cond), (2.5, uncond + 2.5 * (cond - uncond))):
        found = ours(1, labels="dog", seed=5, sampler="ddim", steps=1, guidance=guidance)
        assert difference(found, images.from_tensor(expected.clamp(-1, 1))) <= 1


# The folder


@pytest.mark.parametrize("classes", [(), NAMES])
def test_saved_and_loaded_is_the_same(classes: tuple[str, ...], tmp_path: Path) -> None:
    ours = make("cosine", "v", classes)
    ours.save_pretrained(tmp_path)
    again = DDPM.from_pretrained(tmp_path, device="cpu")
    assert again.classes == classes
    assert again.predict == "v"
    for name, value in ours.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value)
    assert difference(ours(2, seed=1, steps=3), again(2, seed=1, steps=3)) == 0


def test_folder_is_diffusers_own(tmp_path: Path) -> None:
    make("linear", "eps", NAMES).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet")
    assert theirs.config.num_class_embeds == 4


def test_a_flat_folder_as_published_by_google_loads(tmp_path: Path) -> None:
    """google/ddpm-cifar10-32: parts beside model_index.json, configs and names of attention of 2022, a pickle beside.

    It says fixed_large: its own ancestral walk is our ddpm-large.
    """
    theirs = diffusers.DDPMPipeline(
        diffusers.UNet2DModel.from_config(make_unet().config),
        diffusers.DDPMScheduler(variance_type="fixed_large"),
    )
    theirs.save_pretrained(tmp_path / "nested")
    theirs.set_progress_bar_config(disable=True)
    flat = tmp_path / "flat"
    flat.mkdir()
    weights = load_file(tmp_path / "nested" / "unet" / "diffusion_pytorch_model.safetensors")
    for new, before in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        weights = {name.replace(f".{new}.", f".{before}."): value for name, value in weights.items()}
    assert any(".proj_attn." in name for name in weights)
    save_file(weights, flat / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (flat / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02not looked at")
    unet = json.loads((tmp_path / "nested" / "unet" / "config.json").read_text())
    later = ("num_class_embeds", "class_embed_type", "resnet_time_scale_shift", "add_attention", "downsample_type")
    unet = {name: value for name, value in unet.items() if name not in later} | {"_diffusers_version": "0.0.4"}
    scheduler = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_start": 0.0001}
    scheduler |= {"beta_schedule": "linear", "clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None}
    scheduler |= {"variance_type": "fixed_large"}
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1"}
    index |= {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    for name, part in {"config": unet, "scheduler_config": scheduler, "model_index": index}.items():
        (flat / f"{name}.json").write_text(json.dumps(part))
    ours = DDPM.from_pretrained(flat, device="cpu")
    expected = theirs(generator=torch.Generator().manual_seed(0), num_inference_steps=10).images
    assert difference(ours(1, sampler="ddpm-large", steps=10, spacing="leading"), expected) <= 1


def test_class_conditional_folder_from_elsewhere_has_numbers_for_names(tmp_path: Path) -> None:
    make("linear", "eps", NAMES).save_pretrained(tmp_path)
    (tmp_path / "classes.json").unlink()
    ours = DDPM.from_pretrained(tmp_path, device="cpu")
    assert ours.classes == ("0", "1", "2", "3")
    ours(1, labels=3, steps=1)
    with pytest.raises(UsageError, match="null class"):
        ours(1, labels=3, steps=1, guidance=2.0)


def test_text_to_image_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="StableDiffusionPipeline") as caught:
        DDPM.from_pretrained("mini")
    assert "t2i generate" in str(caught.value.hint)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut short"):
        DDPM.from_pretrained(tmp_path)


# One image, one seed


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++2m"])
def test_picture_k_has_seed_plus_k_whatever_is_drawn_beside_it(sampler: str) -> None:
    ours = make("linear", "eps", NAMES)
    options: dict[str, Any] = {"sampler": sampler, "steps": 5, "guidance": 2.0}
    together = ours(5, seed=10, **options)
    in_parts = ours(5, seed=10, batch_size=2, **options)
    alone = [ours(1, labels=k % 3, seed=10 + k, **options)[0] for k in range(5)]
    assert difference(together, in_parts) <= 1
    assert difference(together, alone) <= 1
    assert difference(together[:1], together[1:2]) > 20


def test_labels_go_round() -> None:
    ours = make("linear", "eps", NAMES)
    assert ours.label_numbers(5, None).tolist() == [0, 1, 2, 0, 1]  # type: ignore[union-attr]
    assert ours.label_numbers(3, "dog").tolist() == [1, 1, 1]  # type: ignore[union-attr]
    assert ours.label_numbers(3, ["boat", 0]).tolist() == [2, 0, 2]  # type: ignore[union-attr]
    assert make().label_numbers(3, None) is None


@pytest.mark.parametrize(
    ("classes", "options", "said"),
    [
        (NAMES, {"labels": "cat"}, "label: got 'cat', allowed are horse, dog, boat, or numbers 0 to 2"),
        (NAMES, {"labels": 3}, "label: got '3'"),
        (NAMES, {"labels": []}, "labels: got none"),
        ((), {"labels": 0}, "unconditional"),
        ((), {"steps": 0}, "steps: got 0, allowed 1 to 1000"),
        ((), {"steps": 1001}, "steps: got 1001"),
        ((), {"sampler": "magic"}, "sampler: got 'magic', allowed are ddpm"),
        ((), {"spacing": "odd"}, "spacing: got 'odd', allowed are leading"),
    ],
)
def test_wrong_settings_are_refused(classes: tuple[str, ...], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(classes=classes)(1, **options)
    assert said in caught.value.message


def test_karras_spacing_of_a_flow_is_refused() -> None:
    with pytest.raises(UsageError, match="Karras") as caught:
        make("flow", "flow")(1, spacing="karras")
    assert "trailing" in str(caught.value.hint)


def test_non_finite_answers_are_an_error() -> None:
    ours = make()
    ours.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(NonFinite, match="non-finite image"):
        ours(1, steps=2)


# Schedulers


@pytest.mark.parametrize("predict", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", [*BETA_SCHEDULES, "flow"])
def test_scheduler_round_trip(schedule: str, predict: str) -> None:
    """Our schedule, exported and read again, has the same noise at every step; and diffusers' table is ours."""
    if (schedule == "flow") != (predict == "flow"):
        pytest.skip("refused by the config")
    scheduler = make_scheduler(schedule, predict)
    read, read_predict = read_scheduler(scheduler.config)
    assert read_predict == predict
    if schedule != "flow":
        t = torch.arange(1, 1001)
        assert (read.alpha(t).square() - scheduler.alphas_cumprod).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_schedulers_from_elsewhere_are_read(kind: str, beta_schedule: str) -> None:
    scheduler = getattr(diffusers, kind)(beta_schedule=beta_schedule, beta_start=0.00085, beta_end=0.012)
    schedule, _ = read_scheduler(scheduler.config)
    assert (schedule.alpha(torch.arange(1, 1001)).square() - scheduler.alphas_cumprod).abs().max() < 1e-5


def test_unknown_schedulers_are_refused() -> None:
    with pytest.raises(ModelError, match="sigmoid"):
        read_scheduler(diffusers.DDPMScheduler(beta_schedule="sigmoid").config)
    with pytest.raises(ModelError, match="rescaled"):
        read_scheduler(diffusers.DDIMScheduler(rescale_betas_zero_snr=True).config)


def test_saved_weights_are_float32(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
