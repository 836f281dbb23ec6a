"""Previews: what they show, when, and that the picture is not changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate_kit import Run, files
from PIL import Image

from t2i.errors import UsageError
from t2i.imaging import images
from t2i.metadata import recipe
from t2i.pipelines.settings.schedulers import SCHEDULERS, make_scheduler
from t2i.pipelines.settings.settings import Job
from t2i.pipelines.text_to_image import preview as previews
from t2i.pipelines.text_to_image.pipeline import TextToImage
from t2i.pipelines.text_to_image.preview import Preview, decode, unpack
from t2i.pipelines.text_to_image.step_hooks import predict_x0

Family = Callable[[str], Path]


def drawn(model: TextToImage, *seeds: int, preview: Preview | None = None) -> list[Any]:
    settings = model.settings(steps=6, guidance=3.0, width=32, height=32)
    jobs = [Job("a horse", seed) for seed in seeds]
    return [np.asarray(r.image, np.int16) for r in model.draw(jobs, settings, batch_size=len(jobs), preview=preview)]


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux"])
def test_the_picture_is_bit_equal_with_and_without(family: Family, kind: str) -> None:
    model, shown = TextToImage.load(family(kind)), list[Image.Image]()
    plain = drawn(model, 1, 2)
    seen = drawn(model, 1, 2, preview=Preview(2, shown.append))
    assert all((a == b).all() for a, b in zip(plain, seen, strict=True))
    assert len(shown) == 3
    assert {picture.size for picture in shown} == {(66, 32)}  # two pictures and a gap


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++2m", "euler", "euler-a", "heun", "unipc", "pndm", "lcm"])
def test_x0_is_what_the_noise_was_added_to(epsilon_pipeline: Path, scheduler: str) -> None:
    """A network that predicts the very noise that was added: x0 comes back, for each way of counting levels."""
    import torch

    own = TextToImage.load(epsilon_pipeline).pipe.scheduler
    for kind in ("epsilon", "v_prediction"):
        made = make_scheduler(scheduler, type(own).from_config(own.config, prediction_type=kind))
        made.set_timesteps(7)
        x0, eps = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
        t = made.timesteps[0]
        x_t = made.add_noise(x0, eps, t[None])
        abar = made.alphas_cumprod[int(t)]
        output = eps if kind == "epsilon" else abar.sqrt() * eps - (1 - abar).sqrt() * x0
        assert (predict_x0(made, output, t, x_t) - x0).abs().max() < 5e-3, kind


@pytest.mark.parametrize("scheduler", ["euler", "dpm++2m", "unipc"])
def test_x0_of_a_flow(tiny_pipeline: Path, scheduler: str) -> None:
    import torch

    made = make_scheduler(scheduler, TextToImage.load(tiny_pipeline).pipe.scheduler)
    made.set_timesteps(7)
    x0, eps = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    sigma = float(made.sigmas[0])
    x_t = (1 - sigma) * x0 + sigma * eps
    assert (predict_x0(made, eps - x0, made.timesteps[0], x_t) - x0).abs().max() < 1e-5
    assert scheduler in SCHEDULERS


def test_the_last_preview_is_the_picture(family: Family) -> None:
    """A flow's last step goes to the predicted x0 itself, so what is shown there is what is saved."""
    for kind in ("sd3", "flux"):
        model, shown = TextToImage.load(family(kind)), list[Image.Image]()
        picture = drawn(model, 1, preview=Preview(6, shown.append))[0]
        assert np.abs(np.asarray(shown[0], np.int16) - picture).max() <= 1


def test_a_large_latent_is_shrunk_by_averaging(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    pipe = TextToImage.load(tiny_pipeline).pipe
    x0 = torch.randn(1, 4, 64, 48, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(previews, "SIDE", 64)
    x = decode(pipe, x0)
    shrunk = x0.unflatten(2, (16, 4)).unflatten(4, (12, 4)).mean((3, 5))
    assert x.shape == (1, 3, 64, 48)
    with torch.no_grad():
        assert (x - pipe.vae.decode(shrunk / pipe.vae.config.scaling_factor).sample).abs().max() < 1e-5


def test_flux_latents_are_unpacked(family: Family) -> None:
    import torch

    pipe = TextToImage.load(family("flux")).pipe
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (unpack(pipe, pipe._pack_latents(x, 2, 4, 8, 8), 32, 32) == x).all()


@pytest.mark.parametrize("every", [0, -1, 1001])
def test_a_number_of_steps_out_of_range(every: int) -> None:
    with pytest.raises(UsageError, match=f"got {every}, allowed are 1 to 1000"):
        Preview(every, lambda _: None)


def test_a_pipeline_whose_latents_cannot_be_shown_says_so() -> None:
    class Pipe:
        vae = object()

    with pytest.raises(UsageError, match="preview: not with a Pipe"):
        previews.check(Pipe())


def test_the_file_is_there_while_it_draws_and_gone_after(t2i: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[list[str], bool]] = []
    save = images.save

    def watch(image: Any, path: Path, **options: Any) -> Path:
        done = save(image, path, **options)
        looked.append((files(here), recipe.read(path).generated))
        return done

    monkeypatch.setattr(images, "save", watch)
    ran = t2i("a horse", "-b", "2", "--batch-size", "1", "--preview", "2", "-o", "out/{seed}", "-s", "4", steps="4")
    assert ran.code == 0
    assert [len(found) for found, _ in looked] == [1, 1, 2, 2, 2, 3]  # two previews, a picture; and again
    assert all(marked for _, marked in looked)
    assert files(here) == ["out/4.png", "out/5.png"]
    assert "preview every 2 steps: out/preview-" in ran.err


def test_the_file_goes_when_drawing_fails(t2i: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "decode", lambda *_: 1 / 0)
    assert t2i("a horse", "--preview", "1", "-o", "out/").code == 1
    assert files(here) == []


def test_a_batch_has_no_previews(t2i: Run, here: Path) -> None:
    (here / "p.txt").write_text("a horse\n", encoding="utf-8")
    ran = t2i("--prompts", "p.txt", "-o", "out/", "--preview", "2")
    assert ran.code == 2
    assert "--preview: a batch saves finished images" in ran.err
