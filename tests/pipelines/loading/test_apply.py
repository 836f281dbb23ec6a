"""`--compile` for real: the rest of what a plan does to a pipeline is in test_plan.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from generate_kit import Run
from PIL import Image


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with a C++ compiler")
def test_a_compiled_network_draws_the_same_picture_and_is_kept(
    t2i: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv(name, "")  # so that what the command sets is taken back after this test
    monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain = t2i("a horse", "-s", "7", "-o", "plain.png")
    ran = t2i("a horse", "-s", "7", "--compile", "-o", "compiled.png")
    assert (plain.code, ran.code) == (0, 0), ran.err
    a, b = (np.asarray(Image.open(path), np.int16) for path in ("plain.png", "compiled.png"))
    assert np.abs(a - b).max() <= 1
    assert any((tmp_path / "cache" / "t2i" / "compiled").rglob("*.so"))
