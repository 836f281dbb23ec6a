"""The measurements of `scripts/bench.py generate`, each once and as small as can be."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # scripts are run as files, so they are no package

import bench_cache
import bench_generate


def options(model: Path, **more: Any) -> Namespace:
    return Namespace(**{"model": model, "steps": 2, "guidance": 3.0, "rounds": 1, "parts": None, **more})


def test_ratios_are_taken_within_a_round() -> None:
    calls: list[str] = []

    def side(name: str, seconds: float) -> bench_generate.Side:
        return lambda: (calls.append(name), (seconds * len(calls), seconds))[1]  # type: ignore[func-returns-value]

    found = bench_generate.in_turns({"a": side("a", 2.0), "b": side("b", 1.0)}, 2)
    assert calls == ["b", "a", "a", "b", "b", "a"]  # the first round is thrown away
    assert found == {"a": [(6.0, 2.0), (12.0, 2.0)], "b": [(4.0, 1.0), (5.0, 1.0)]}
    assert bench_generate.ratios(found, "a", "b", 0) == [1.5, 2.4]
    assert bench_generate.ratios(found, "a", "b", 1) == [2.0, 2.0]


def test_overhead_draws_on_both_sides(tiny_pipeline: Path) -> None:
    rows = bench_generate.measure(options(tiny_pipeline, parts="overhead"))
    assert [len(values) for _, values, _, _ in rows] == [1, 1, 1]
    assert all(value > 0 for _, values, _, _ in rows for value in values)
    assert [limit for _, _, _, limit in rows] == [None, 1.02, 1.02]


def test_an_unknown_part_names_those_there_are(tiny_pipeline: Path) -> None:
    with pytest.raises(SystemExit, match="no part fast; there are overhead, first, many, bf16, startup, cache"):
        bench_generate.measure(options(tiny_pipeline, parts="fast"))


def test_distances_of_equal_and_of_other_pictures() -> None:
    import numpy as np

    assert bench_cache.psnr(np.zeros((2, 2, 3))) == 99
    assert bench_cache.psnr(np.full((2, 2, 3), 25.5)) == pytest.approx(20)


@pytest.mark.slow
def test_the_cache_part_measures_time_and_distance(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cache, "STEPS", (6,))
    monkeypatch.setattr(bench_cache, "CACHES", ("reuse:2",))
    rows = bench_cache.on_a_model(options(tiny_pipeline))
    assert [unit for _, _, unit, _ in rows] == ["", "", "dB"]
    assert all(0 < value < 99 for value in rows[2][1])
