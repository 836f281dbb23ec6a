"""`t2i generate` on the four families of pipelines, in their real formats with small random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from family_kit import FAMILIES
from generate_kit import Run

from t2i import images, recipe


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_draws_what_plain_diffusers_draws(
    kind: str, family: Callable[[str], Path], t2i: Run, tmp_path: Path
) -> None:
    import torch
    from diffusers import DiffusionPipeline

    model, out = family(kind), tmp_path / "horse.png"
    ran = t2i("a horse", "-m", str(model), "--guidance", "3", "--size", "32", "-s", "5", "-o", str(out))
    assert ran.code == 0, ran.err
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a horse",
        width=32,
        height=32,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(5)],
        output_type="np",
    ).images[0]
    ours = np.asarray(images.decode(out), np.float32) / 255
    assert np.abs(ours - theirs).max() <= 1.5 / 255
    assert ours.std() > 0.02
    record = recipe.read(out).recipe
    assert record is not None
    assert (record.model, record.width, record.height) == (model.name, 32, 32)
