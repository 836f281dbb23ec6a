"""Memory runs out, loading or drawing: exit 5 names the next level, --auto-retry takes it, a batch stays exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from generate_kit import Run

from t2i.errors import UsageError
from t2i.imaging import images
from t2i.metadata import recipe
from t2i.model_files.locate import locate
from t2i.pipelines.loading import quantize, retry
from t2i.pipelines.loading.device import Machine, is_out_of_memory
from t2i.pipelines.loading.memory_estimate import OVERHEAD
from t2i.pipelines.loading.plan import DeviceOptions
from t2i.pipelines.text_to_image.runner import PipelineRunner

ROOT = Path(__file__).parents[3]


def cpu_failure() -> RuntimeError:
    """As torch's allocator says it."""
    return RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory")


def gpu_failure() -> Exception:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def made(path: Path | str) -> recipe.Recipe:
    found = recipe.read(Path(path)).recipe
    assert found is not None
    return found


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Drawing fails where one of these raises; each takes (runner, batch, settings)."""
    rules: list[Any] = []
    draw = PipelineRunner.draw

    def limited(self: PipelineRunner, batch: Any, settings: Any, *rest: Any) -> Any:
        for rule in rules:
            rule(self, batch, settings)
        return draw(self, batch, settings, *rest)

    monkeypatch.setattr(PipelineRunner, "draw", limited)
    monkeypatch.setattr(quantize, "find_spec", lambda _: None)  # the fallback chain ends with tiling
    return rules


def test_what_is_out_of_memory_and_what_is_not() -> None:
    for error in (MemoryError(), cpu_failure(), gpu_failure(), OSError(12, "Cannot allocate memory")):
        assert is_out_of_memory(error)
    for other in (RuntimeError("shapes do not match"), OSError(28, "No space left on device"), ValueError("memory")):
        assert not is_out_of_memory(other)


@pytest.mark.parametrize("failure", [cpu_failure, gpu_failure, MemoryError])
def test_exit_5_names_the_next_level(t2i: Run, here: Path, fails: list[Any], failure: Any) -> None:
    def always(*_: Any) -> None:
        raise failure()

    fails.append(always)
    ran = t2i("a horse", "-s", "7")
    assert (ran.code, ran.lines) == (5, [])
    assert "error: out of memory while drawing 1 of 32x32 at once: " in ran.err
    assert ran.err.endswith("hint: try --dtype bfloat16; --auto-retry does so by itself\n")
    ran = t2i("a horse", "-s", "7", "--dtype", "bfloat16")
    assert ran.err.endswith("hint: try --tiling; --auto-retry does so by itself\n")
    ran = t2i("a horse", "-s", "7", "--dtype", "bfloat16", "--tiling", "--auto-retry")
    assert (ran.code, ran.err.splitlines()[-1]) == (
        5,
        "hint: nothing is left but less at once: --batch-size 1 or a smaller --size",
    )
    assert not (here / "outputs").exists()


def test_the_next_level_is_taken_said_and_recorded(t2i: Run, fails: list[Any]) -> None:
    def untiled(runner: PipelineRunner, *_: Any) -> None:
        if not runner.pipe.vae.use_tiling:
            raise cpu_failure()

    fails.append(untiled)
    ran = t2i("a horse", "-b", "3", "-s", "7", "--batch-size", "2", "--auto-retry", "-o", "{seed}.png")
    assert ran.code == 0, ran.err
    notes = [line for line in ran.err.splitlines() if line.startswith("note")]
    assert [note.rpartition("; ")[2] for note in notes[:2]] == [
        "going on with bfloat16 (--dtype bfloat16)",
        "going on with tiled decoding (--tiling)",
    ]
    for path, at_once in zip(ran.lines, (2, 2, 1), strict=True):
        told = made(path)
        assert (told.dtype, told.machine, told.batch_size) == ("bfloat16", {"tiling": True, "retries": 2}, at_once)
    fails.clear()
    plain = t2i("a horse", "-b", "2", "-s", "7", "--dtype", "bfloat16", "--tiling", "-o", "plain-{seed}.png")
    assert [made(path).image_hash for path in plain.lines] == [made(path).image_hash for path in ran.lines[:2]]
    assert "7.png: identical" in t2i("--from", "7.png", "-o", "again.png", steps="").err


def test_running_out_while_loading_is_the_same(t2i: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    load = retry.load_pipeline

    def heavy(files: Any, device: str, dtype: str, *rest: Any) -> Any:
        if dtype == "float32":
            raise MemoryError
        return load(files, device, dtype, *rest)

    monkeypatch.setattr(retry, "load_pipeline", heavy)
    ran = t2i("a horse", "-s", "7")
    assert (ran.code, ran.err.splitlines()[-2:]) == (
        5,
        [
            "error: out of memory while loading tiny: MemoryError",
            "hint: try --dtype bfloat16; --auto-retry does so by itself",
        ],
    )
    ran = t2i("a horse", "-s", "7", "--auto-retry", "-o", "a.png")
    assert (ran.code, made("a.png").machine, made("a.png").dtype) == (0, {"retries": 1}, "bfloat16")


def test_a_batch_keeps_its_groups_and_each_picture_its_bits(t2i: Run, here: Path, fails: list[Any]) -> None:
    """Large pictures do not fit: theirs are drawn on the next level, the others as ever, whatever was there before."""

    def large(runner: PipelineRunner, batch: Any, settings: Any) -> None:
        if settings.width == 64 and runner.dtype == "float32":
            raise gpu_failure()

    fails.append(large)
    rows = [{"prompt": f"a horse {k}", "size": "64x32" if k in (2, 3, 4, 8) else "32x32"} for k in range(10)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    call = ["--prompts", "rows.jsonl", "-s", "5", "--batch-size", "2"]
    ran = t2i(*call, "--auto-retry", "-o", "out/")
    assert (ran.code, len(ran.lines)) == (0, 10), ran.err
    told = {path.name: made(path) for path in sorted((here / "out").glob("*.png"))}
    retried = {name[:6] for name, one in told.items() if one.machine}
    assert retried == {"000003", "000004", "000005", "000009"}
    assert [one.batch_size for one in told.values()] == [2, 2, 2, 2, 1, 2, 2, 1, 1, 1]
    assert ran.err.count("going on with") == 2  # for two at once, then for one; a third of either is known
    for name in sorted(told)[1::3]:
        (here / "out" / name).unlink()
    assert t2i(*call, "--auto-retry", "-o", "out/").code == 0
    assert {path.name: made(path).image_hash for path in (here / "out").glob("*.png")} == {
        name: one.image_hash for name, one in told.items()
    }
    ran = t2i(*call, "-o", "without/")
    assert ran.code == 3
    assert "try --dtype bfloat16; --auto-retry does so by itself" in ran.err
    small = [images.decode(path).tobytes() for path in sorted((here / "without").glob("*.png"))]
    assert small == [
        images.decode(here / "out" / name).tobytes() for name, one in sorted(told.items()) if not one.machine
    ]


def test_a_batch_chooses_by_the_machine_and_the_size_alone(
    t2i: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free at the moment, and what stands before in the list, does not count: it may be another next time."""
    free = iter([10**6, 10**9, 10**6, 10**9])
    total = (OVERHEAD + 8 * 10**6) * 11 // 9  # room for 32x32, by the estimate, and not for 256x256
    monkeypatch.setattr(retry, "measure", lambda device: Machine("cpu", next(free), total, 10**9, True, "amx_bf16"))
    monkeypatch.setattr(quantize, "find_spec", lambda _: None)
    rows = [{"prompt": f"a horse {k}", "size": size} for k, size in enumerate(("32x32", "256x256", "32x32"))]
    drawn = []
    for folder, listed in (("a", rows), ("b", rows[:1] + rows[2:]), ("c", rows[1:2])):
        (here / "rows.jsonl").write_text("\n".join(map(json.dumps, listed)))
        ran = t2i("--prompts", "rows.jsonl", "-s", "5", "--batch-size", "1", "-o", f"{folder}/")
        assert ran.code == 0, ran.err
        drawn.append([made(path) for path in ran.lines])
        if folder == "a":
            assert "1 of 256x256 at once: bfloat16 (" in ran.err
    whole, small, large = drawn
    assert [one.dtype for one in whole] == ["float32", "bfloat16", "float32"]
    assert [one.dtype for one in small] == ["float32", "float32"]
    assert large[0].dtype == "bfloat16"
    plan = retry.make_plan(locate(os.environ["T2I_MODEL"]), asked=[{"width": 256, "height": 256}])
    assert plan.level.dtype == "float32"  # a single run takes what is free now, 10**9


def test_a_single_file_is_not_quantised(tiny_pipeline: Path) -> None:
    files = locate(str(tiny_pipeline))
    single = replace(files, path=files.weights[0])
    with pytest.raises(UsageError, match="is a single file"):
        retry.make_plan(single, options=DeviceOptions(bits=8))


LIMITED = """
import resource, sys
import torch, diffusers, transformers
from diffusers import StableDiffusionPipeline
from t2i.cli.main import main
torch.zeros(8) @ torch.zeros(8)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 10**9,) * 2)
for size in ("64", "4096"):
    print(main([*sys.argv[1:], "--size", size]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS holds on Linux")
def test_memory_that_is_really_used_up_ends_in_exit_5(tiny_pipeline: Path, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "T2I_MODEL": str(tiny_pipeline)}
    command = [sys.executable, "-c", LIMITED, "generate", "a horse", "--steps", "1", "-s", "7"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["0", "5"], done.stderr
    assert "error: out of memory while drawing 1 of 4096x4096 at once: " in done.stderr
    assert "hint: try --dtype bfloat16; --auto-retry does so by itself" in done.stderr
