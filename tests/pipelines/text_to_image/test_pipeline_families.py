"""`t2i generate` on the four families of pipelines, in their real formats with small random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapter_kit import OPTIONS, draw, load, pixels
from family_kit import FAMILIES
from generate_kit import Run

from t2i.metadata import recipe


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_draws_what_plain_diffusers_draws(
    kind: str, family: Callable[[str], Path], t2i: Run, tmp_path: Path
) -> None:
    model, out = family(kind), tmp_path / "horse.png"
    ran = t2i("a horse", "-m", str(model), *OPTIONS, "-o", str(out))
    assert ran.code == 0, ran.err
    ours = pixels(out)
    assert np.abs(ours - draw(load(model))).max() <= 1.5
    assert ours.std() > 5
    record = recipe.read(out).recipe
    assert record is not None
    assert (record.model, record.width, record.height) == (model.name, 32, 32)
