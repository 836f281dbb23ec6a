"""Many pictures into a folder: the same for any count, kill or number of processes; never into another's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ddpm_kit import NAMES, make

from t2i.errors import UsageError
from t2i.imaging import images
from t2i.metadata import recipe
from t2i.pipelines.class_conditional.sample_folder import SampleRequest, sample_folder

ROOT = Path(__file__).parents[3]
REQUEST = SampleRequest(count=7, batch_size=3)
SETTINGS: dict[str, Any] = {"steps": 3, "guidance": 2.0, "sampler": "ddpm"}


def draw(request: SampleRequest, folder: Path, **changed: Any) -> dict[str, bytes]:
    model = make("linear", "eps", NAMES)
    listed = [path for group in sample_folder(model, request, folder, **SETTINGS | changed) for path in group]
    assert listed == sorted(folder.glob("*.png"))
    return {path.name: path.read_bytes() for path in listed}


def test_all_are_drawn_with_their_own_seed_and_class(tmp_path: Path) -> None:
    files = draw(REQUEST, tmp_path / "samples")
    assert list(files) == [f"{k:06d}.png" for k in range(7)]
    records = [recipe.read(tmp_path / "samples" / name).recipe for name in files]
    assert [(r.seed, r.prompt, r.steps, r.guidance) for r in records if r] == [
        (k, NAMES[k % 3], 3, 2.0) for k in range(7)
    ]
    alone = make("linear", "eps", NAMES)(1, NAMES[2], 5, "ddpm", 3, 2.0)
    found = [images.decode(tmp_path / "samples" / "000005.png")]
    assert (images.to_tensor(found) - images.to_tensor(alone)).abs().max() < 1.5 / 127.5


def test_what_is_missing_is_made_again_bit_for_bit(tmp_path: Path) -> None:
    files = draw(REQUEST, tmp_path)
    kept = tmp_path / "000003.png"
    before = kept.stat().st_mtime_ns
    (tmp_path / "000001.png").unlink()
    (tmp_path / "000004.png").unlink()
    assert draw(REQUEST, tmp_path) == files
    assert kept.stat().st_mtime_ns == before


def test_more_may_be_asked_for_later(tmp_path: Path) -> None:
    few = draw(replace(REQUEST, count=2), tmp_path / "a")
    more = draw(REQUEST, tmp_path / "a")
    assert more == draw(REQUEST, tmp_path / "b")
    assert few.items() <= more.items()


@pytest.mark.parametrize("other", [{"seed": 1}, {"labels": ("dog",)}, {"batch_size": 2}], ids=str)
def test_another_request_does_not_go_into_the_same_folder(other: dict[str, Any], tmp_path: Path) -> None:
    files = draw(REQUEST, tmp_path)
    with pytest.raises(UsageError, match=f"other settings: {next(iter(other))} was"):
        draw(replace(REQUEST, **other), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == files


@pytest.mark.parametrize("other", [{"steps": 4}, {"spacing": "leading"}, {"guidance": 1.0}], ids=str)
def test_other_settings_do_not_go_into_the_same_folder(other: dict[str, Any], tmp_path: Path) -> None:
    draw(REQUEST, tmp_path)
    with pytest.raises(UsageError, match=f"other settings: {next(iter(other))} was"):
        draw(REQUEST, tmp_path, **other)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not a folder of samples"):
        draw(REQUEST, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("wrong", "said"), [({"count": 0}, "got 0"), ({"seed": -1}, "seed")])
def test_wrong_requests_are_refused(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SampleRequest(**{"count": 1} | wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"guidance": float("nan")}, "guidance"),
        ({"sampler": "magic"}, "sampler"),
        ({"spacing": "magic"}, "spacing"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    wrong: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        draw(REQUEST, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_draw_what_one_does(tmp_path: Path) -> None:
    make("linear", "eps", NAMES).save_pretrained(tmp_path / "model")
    call = ["t2i", "sample", str(tmp_path / "model"), "-b", "7", "--batch-size", "3", "--steps", "2", "--device", "cpu"]
    names = [*(f"{k:06d}.png" for k in range(7)), "grid.png"]
    env = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    for command, name in (([sys.executable, "-m"], "one"), (torchrun, "two")):
        done = subprocess.run(
            [*command, *call, "--grid", "-o", str(tmp_path / name)],
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.split()) == [str(tmp_path / name / n) for n in names]
    for n in names:
        assert (tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes()
