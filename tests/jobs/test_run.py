"""Requests from Python: events as they happen, in a thread or not; files, batches, replay, preflight as data."""

from __future__ import annotations

import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2i.errors import PartialFailure, UsageError
from t2i.imaging import images
from t2i.jobs.events import (
    Counted,
    Done,
    Drawn,
    Event,
    Loading,
    Message,
    Planned,
    Previewed,
    ShardPacked,
    SheetSaved,
    StepDone,
    messages,
)
from t2i.jobs.from_options import make_request
from t2i.jobs.planning.model_slot import ModelSlot
from t2i.jobs.preflight import preflight
from t2i.jobs.run import execute, run
from t2i.metadata import recipe

DRAW: dict[str, Any] = {"steps": 3, "seed": 7, "guidance": 3}


@pytest.fixture
def base(here: Path, tiny_pipeline: Path) -> dict[str, Any]:
    return {**DRAW, "model": str(tiny_pipeline)}


def collect(request: Any, **how: Any) -> list[Event]:
    found: list[Event] = []
    execute(request, found.append, **how)
    return found


def test_events_come_in_order_and_say_what_happens(base: dict[str, Any]) -> None:
    request = make_request({**base, "num_images": 2, "batch_size": 1, "output": "x-{seed}.png"}, ["a horse"])
    found = collect(request)
    kinds = [type(event).__name__ for event in found]
    assert kinds[0] == "Planned"
    assert kinds[1] == "Loading"
    assert kinds[-1] == "Done"
    assert found[0] == Planned(2, ("tiny",))
    assert found[1] == Loading("tiny")
    assert found[-1] == Done(2)
    steps = [event for event in found if isinstance(event, StepDone)]
    assert [event.done for event in steps] == sorted(event.done for event in steps)
    assert {event.done for event in steps} >= {1, 2, 3, 4, 5, 6}
    assert {event.total for event in steps} == {6}
    drawn = [event for event in found if isinstance(event, Drawn)]
    assert [event.path for event in drawn] == [Path("x-7.png"), Path("x-8.png")]
    first = kinds.index("Drawn")  # an image is told of before the next one is drawn
    assert any(isinstance(event, StepDone) for event in found[first:])
    for event in drawn:
        assert event.path is not None
        assert recipe.read(event.path).recipe == event.recipe
        assert images.pixel_hash(event.image) == event.recipe.image_hash


def test_a_thread_tells_the_same_while_it_draws(base: dict[str, Any]) -> None:
    told = collect(make_request({**base, "output": "a.png"}, ["a horse"]))
    streamed, here = [], threading.current_thread()
    for event in run(make_request({**base, "output": "b.png"}, ["a horse"])):
        assert threading.current_thread() is here
        streamed.append(event)
    assert [type(event) for event in streamed] == [type(event) for event in told]
    one, two = ([e.recipe for e in events if isinstance(e, Drawn)] for events in (told, streamed))
    assert one == two


def test_leaving_the_events_cancels_the_job(base: dict[str, Any]) -> None:
    request = make_request({**base, "num_images": 50, "batch_size": 1, "output": "x-{seed}.png"}, ["a horse"])
    for event in run(request):
        if isinstance(event, Drawn):
            break
    assert not [thread for thread in threading.enumerate() if thread.name == "t2i job"]
    assert 1 <= len(list(Path().glob("x-*.png"))) <= 3


def test_an_error_is_raised_where_the_events_are_read(base: dict[str, Any]) -> None:
    request = make_request({**base, "width": 33, "output": "x.png"}, ["a horse"])
    with pytest.raises(UsageError, match="multiple of"):
        list(run(request))
    Path("taken.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"taken\.png"):
        list(run(make_request({**base, "output": "taken.png"}, ["a horse"])))


def test_what_was_written_before_an_error_is_told_and_counted(
    base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from t2i.errors import ImageError
    from t2i.jobs import run as module

    real, left = module._save, iter([True, False])

    def save(result: Any, outputs: Any) -> Path:
        if next(left):
            return real(result, outputs)
        raise ImageError("disk full")

    monkeypatch.setattr(module, "_save", save)
    found: list[Event] = []
    request = make_request({**base, "num_images": 2, "output": "x-{seed}.png"}, ["a horse"])
    with pytest.raises(PartialFailure, match=r"disk full \(1 of 2 images are written\)"):
        execute(request, found.append)
    assert [event.path for event in found if isinstance(event, Drawn)] == [Path("x-7.png")]


def test_images_need_no_files(base: dict[str, Any]) -> None:
    found = collect(make_request({**base, "grid": True}, ["a horse"]), save=False)
    assert [event.path for event in found if isinstance(event, Drawn)] == [None]
    assert not [path for path in Path().rglob("*") if path.is_file()]


def test_a_sheet_and_previews_are_events(base: dict[str, Any]) -> None:
    seen: list[bool] = []
    found: list[Event] = []

    def emit(event: Event) -> None:
        found.append(event)
        if isinstance(event, Previewed):
            seen.append(event.path.exists())

    request = make_request({**base, "num_images": 2, "grid": True, "preview": 1, "output": "x-{seed}.png"}, ["a horse"])
    execute(request, emit)
    assert seen
    assert all(seen)
    assert not list(Path().glob("preview-*"))
    assert [event.path.name for event in found if isinstance(event, SheetSaved)] == ["x-7-grid.png"]


def test_a_slot_keeps_the_model_from_run_to_run(base: dict[str, Any], epsilon_pipeline: Path) -> None:
    slot = ModelSlot()
    loads = []
    for changes in ({}, {"steps": 2}, {"model": str(epsilon_pipeline)}):
        found = collect(make_request({**base, **changes}, ["a horse"]), slot=slot, save=False)
        loads.append([event.model for event in found if isinstance(event, Loading)])
    assert loads == [["tiny"], [], ["tiny-epsilon"]]


def test_a_batch_from_python(base: dict[str, Any]) -> None:
    Path("list.txt").write_text("a horse\na cat\nvan gogh\n")
    request = make_request({**base, "prompt_file": "list.txt", "output": "out/"})
    found = collect(request)
    assert Planned(3, folder=Path("out")) in found
    assert [event.path.suffix for event in found if isinstance(event, Drawn) and event.path] == [".png"] * 3
    assert [(event.done, event.total) for event in found if isinstance(event, Counted)][-1] == (3, 3)
    assert found[-1] == Done(3, Path("out"))
    again = list(run(request))
    assert again[-1] == Done(0, Path("out"))
    assert not any(isinstance(event, Drawn) for event in again)
    shards = make_request({**base, "prompt_file": "list.txt", "output": "packed/", "shards": "parquet"})
    assert [event.images for event in collect(shards) if isinstance(event, ShardPacked)] == [3]


def test_a_replay_from_python_is_verified(base: dict[str, Any]) -> None:
    collect(make_request({**base, "output": "a.png"}, ["a horse"]))
    said: list[str] = []
    request = make_request({"replay": ["a.png"], "model": base["model"], "output": "b.png"}, chosen=(), say=said.append)
    (drawn,) = [event for event in collect(request) if isinstance(event, Drawn)]
    assert drawn.verification is not None
    assert "identical" in drawn.verification
    assert not said


def test_a_batch_uses_the_slot_and_always_saves(base: dict[str, Any]) -> None:
    Path("list.txt").write_text("a horse\na cat\n")
    slot = ModelSlot()
    collect(make_request({**base}, "a horse"), slot=slot, save=False)
    Path("out").mkdir()
    request = make_request({**base, "prompt_file": Path("list.txt"), "output": Path("out")})
    with pytest.raises(UsageError, match="a batch saves its images"):
        collect(request, slot=slot, save=False)
    assert not any(isinstance(event, Loading) for event in collect(request, slot=slot))


def test_a_row_with_a_random_seed_takes_the_runs(base: dict[str, Any]) -> None:
    """A seed drawn at each pass over the list would be another in the plan, the drawing and the manifest."""
    Path("rows.jsonl").write_text('{"prompt": "a horse", "seed": -1}\n{"prompt": "a horse"}\n')
    request = make_request({**base, "prompt_file": "rows.jsonl", "output": "out/"})
    first = [event for event in collect(request) if isinstance(event, Drawn)]
    assert [event.recipe.seed for event in first] == [7, 8]
    assert len(Path("out/manifest.jsonl").read_text().splitlines()) == 2
    assert not [event for event in collect(request) if isinstance(event, Drawn)]


@pytest.mark.parametrize(
    ("values", "prompts", "said"),
    [
        ({"steps": np.float32(2.5)}, "a", "steps: got '2.5', expected a whole number"),
        ({"steps": torch.tensor(2.7)}, "a", "expected a whole number"),
        ({"steps": Fraction(5, 2)}, "a", "expected a whole number"),
        ({"steps": np.bool_(True)}, "a", "expected a whole number"),
        ({"steps": float("inf")}, "a", "expected a whole number"),
        ({"guidance": True}, "a", "guidance: got 'True', expected a number"),
        ({"steps": 2, "num_inference_steps": 3}, "a", "steps is given twice"),
        ({"wildcards": 5}, "a", "wildcards: got '5', expected a path"),
        ({"image": np.zeros((4, 4, 3))}, "a", "image: got ndarray, expected a path or a Pillow image"),
        ({"image": b"png"}, "a", "image: got bytes"),
        ({"control": 5}, "a", "control: got '(5,)'"),
        ({5: 3}, "a", "unknown option '5'"),
        ({}, None, "prompt: got 'None', expected text"),
        ({}, [5], "expected text, or a list of texts"),
        ({}, b"a", "expected text"),
    ],
)
def test_what_is_of_no_use_is_a_usage_error(values: Any, prompts: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_request(values, prompts)
    assert said in caught.value.message


def test_whole_numbers_come_in_many_types() -> None:
    for two in (2, 2.0, "2", " 2 ", "2.0", np.int64(2), np.float32(2), torch.tensor(2)):
        assert make_request({"steps": two}, "a").options.steps == 2, two
    assert make_request({"seed": 2**64 - 1}, "a").seeds == (2**64 - 1,)
    assert make_request({"raw": np.bool_(True)}, "a").options.raw is True


def test_preflight_is_data_and_loads_nothing(base: dict[str, Any]) -> None:
    request = make_request({**base, "num_images": 2, "output": "x-{seed}.png"}, ["a horse"])
    found = preflight(request)
    (model,) = found.models
    assert (model["model"], model["steps"], model["dtype"]) == ("tiny", 6, "float32")
    assert model["memory"]["needed"] >= model["memory"]["weights"] > 0
    assert found.output["files"] == ["x-7.png", "x-8.png"]
    assert found.problem is None
    assert not list(Path().glob("*.png"))


def test_warnings_have_their_level() -> None:
    found: list[Event] = []
    say = messages(found.append)
    for line in ("note: a", "warning: b: c", "plain", "odd: line", "hint: d"):
        say(line)
    assert found == [
        Message("a", "note"),
        Message("b: c", "warning"),
        Message("plain"),
        Message("odd: line"),
        Message("d", "hint"),
    ]
    assert [str(event) for event in found] == ["note: a", "warning: b: c", "plain", "odd: line", "hint: d"]


def test_a_prompt_of_one_dash_is_text_in_python(base: dict[str, Any]) -> None:
    (drawn,) = [event for event in collect(make_request(base, ["-"]), save=False) if isinstance(event, Drawn)]
    assert drawn.recipe.prompt == "-"


def files_on_the_stack() -> set[str]:
    package = Path(sys.modules["t2i"].__file__ or "").parent
    names = [Path(frame.filename) for frame in traceback.extract_stack()]
    return {str(name.relative_to(package)) for name in names if name.is_relative_to(package)}


def test_the_way_from_the_command_to_the_file_is_short(
    t2i: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader who follows one `generate` to its request, weights, text encoder, U-Net, decoder and file opens at most
    20 files: those on the stack at each of these moments."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from PIL.Image import Image
    from transformers import CLIPTextModel

    from t2i.jobs.spec import tasks

    seen: set[str] = set()
    moments: list[str] = []

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            seen.update(files_on_the_stack())
            moments.append(name)
            return real(*args, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(tasks, "check_seeds")
    for owner, name in ((CLIPTextModel, "forward"), (UNet2DConditionModel, "forward"), (AutoencoderKL, "decode")):
        watch(owner, name)
    watch(Image, "save")
    monkeypatch.setattr("diffusers.DiffusionPipeline.load_config", _watched_classmethod(seen))
    assert t2i("a horse", "-s", "1", "--steps", "1", "-o", "x.png").code == 0
    assert {"check_seeds", "forward", "decode", "save"} == set(moments)
    assert {"cli/generate.py", "jobs/run.py", "pipelines/loading/load.py", "imaging/images.py"} <= seen
    assert len(seen) <= 20, sorted(seen)


def _watched_classmethod(seen: set[str]) -> Any:
    from diffusers import DiffusionPipeline

    real = DiffusionPipeline.load_config.__func__  # type: ignore[attr-defined]

    def load_config(cls: Any, *args: Any, **options: Any) -> Any:
        seen.update(files_on_the_stack())
        return real(cls, *args, **options)

    return classmethod(load_config)


def test_generate_imports_few_files(here: Path, tiny_pipeline: Path) -> None:
    """95 of t2i's modules in 0.1; what only other commands need is not among them."""
    code = (
        "import sys; from t2i.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, *(name for name in sys.modules if name.startswith('t2i.')), file=sys.stderr)"
    )
    draw = ["generate", "a horse", "-m", str(tiny_pipeline), "--steps", "1", "-o", "x.png", "--quiet"]
    ran = subprocess.run([sys.executable, "-c", code, *draw], capture_output=True, text=True, check=True)
    code, *names = ran.stderr.split("\n")[-2].split()
    assert code == "0"
    files = [name for name in names if (getattr(sys.modules.get(name), "__file__", None) or "").endswith("__init__.py")]
    assert len(set(names) - set(files)) <= 95, sorted(names)
    for stranger in ("t2i.config.families", "t2i.training", "t2i.evaluation", "t2i.data", "t2i.jobs.batch", "t2i.api"):
        assert not any(name == stranger or name.startswith(f"{stranger}.") for name in names), stranger
