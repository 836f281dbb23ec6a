"""One loaded model and several threads: the images are those of one thread, bit for bit, and turns are in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adapter_kit import random, save, save_lora
from editing_kit import picture, save_control

from t2i import load
from t2i.errors import OutOfMemory, UsageError
from t2i.pipelines.adapters.specs import NO_ADAPTERS, Adapters
from t2i.pipelines.loading.plan import DeviceOptions
from t2i.pipelines.settings.edit import Control, make_image_inputs
from t2i.pipelines.settings.image_input import ImageInput
from t2i.pipelines.settings.settings import Job
from t2i.pipelines.text_to_image.pipeline import TextToImage
from t2i.pipelines.text_to_image.results import Result
from t2i.pipelines.text_to_image.runner import PipelineRunner


def in_threads(works: list[Callable[[], None]]) -> None:
    """Run all at once; the first error is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait()
            work()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture(scope="module")
def loras(epsilon_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loras")
    return [save_lora(epsilon_pipeline, folder / f"style{k}.safetensors", seed=k + 1) for k in range(2)]


@pytest.fixture(scope="module")
def word(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save({"mood": random(2, 16)}, tmp_path_factory.mktemp("words") / "mood.safetensors")


@pytest.fixture(scope="module")
def calls(
    epsilon_pipeline: Path, loras: list[Path], word: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What four threads ask for: nothing that one of them sets is the same in another."""
    net = save_control(epsilon_pipeline, tmp_path_factory.mktemp("controls") / "edges")
    guided = make_image_inputs(control=Control(str(net), ImageInput.of(picture(shift=2))))
    return [
        {"prompts": "a horse", "seeds": [1, 2, 3, 4], "scheduler": "euler-a", "steps": 3, "negative_prompt": "a cat"},
        {"prompts": "a horse in mood", "seeds": [1, 2, 3], "scheduler": "pndm", "steps": 4, "guidance": 2.0}
        | {"adapters": Adapters.read(loras[0], word)},
        {"prompts": ["van gogh", "(cat:1.4)"], "seeds": [7, 8], "scheduler": "dpm++2m", "steps": 2, "width": 64}
        | {"adapters": Adapters.read([f"{loras[1]}:0.5", str(loras[0])])},
        {"prompts": "a cat", "seeds": [5, 6, 7], "scheduler": "lcm", "steps": 3, "edit": guided},
    ]


def contents(result: Result) -> tuple[bytes, Any]:
    return result.image.tobytes(), result.recipe


def test_four_threads_draw_what_one_draws(epsilon_pipeline: Path, calls: list[dict[str, Any]]) -> None:
    model = TextToImage.load(epsilon_pipeline)
    alone = [[contents(result) for result in model(**call, batch_size=2)] for call in calls]
    assert len({image for drawn in alone for image, _ in drawn}) == sum(map(len, alone))
    together: list[list[Any]] = [[] for _ in calls]

    def draw(k: int) -> None:
        together[k] += [contents(result) for result in model(**calls[k], batch_size=2)]

    for _ in range(2):
        in_threads([lambda k=k: draw(k) for k in range(4)])  # type: ignore[misc]
        assert together == alone
        together = [[] for _ in calls]
    assert model.attached.adapters in (NO_ADAPTERS, *(call["adapters"] for call in calls if "adapters" in call))
    again = [contents(result) for result in model(**calls[0], batch_size=2)]
    assert again == alone[0]  # what a call names is for that call alone


def test_generators_that_are_read_by_turns_draw_what_each_draws_alone(
    epsilon_pipeline: Path, calls: list[dict[str, Any]]
) -> None:
    model = TextToImage.load(epsilon_pipeline)
    alone = [[contents(result) for result in model(**call, batch_size=1)] for call in calls]
    generators: list[Iterator[Result]] = [model(**call, batch_size=1) for call in calls]
    together: list[list[Any]] = [[] for _ in calls]
    while any(len(drawn) < len(wanted) for drawn, wanted in zip(together, alone, strict=True)):
        for drawn, generator in zip(together, generators, strict=True):
            if (result := next(generator, None)) is not None:
                drawn.append(contents(result))
    assert together == alone


def test_adapters_that_are_set_belong_to_the_drawings_that_begin_after(
    epsilon_pipeline: Path, loras: list[Path]
) -> None:
    model, style = TextToImage.load(epsilon_pipeline), Adapters.read(loras[0])
    settings, jobs = model.settings(steps=2), [Job("a horse", seed) for seed in (1, 2)]
    plain = [contents(result) for result in model.draw(jobs, settings, batch_size=1)]
    begun = model.draw(jobs, settings, batch_size=1)
    first = contents(next(begun))
    model.set_adapters(style)
    styled = [contents(result) for result in model.draw(jobs, settings, batch_size=1)]
    assert [first, contents(next(begun))] == plain
    assert all(a[0] != b[0] for a, b in zip(plain, styled, strict=True))
    assert [recipe.adapters[0]["name"] for _, recipe in styled] == ["style0.safetensors"] * 2


def test_batches_are_drawn_in_the_order_in_which_they_are_asked_for(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, order = TextToImage.load(tiny_pipeline), list[int]()
    draw = PipelineRunner.draw

    def noted(self: PipelineRunner, batch: Any, *rest: Any) -> Any:
        order.append(batch[0].seed)
        return draw(self, batch, *rest)

    monkeypatch.setattr(PipelineRunner, "draw", noted)
    threads = [threading.Thread(target=lambda k=k: list(model("a horse", seeds=[k], steps=1))) for k in range(6)]  # type: ignore[misc]
    with model._turn:
        for k, thread in enumerate(threads):
            thread.start()
            while model._turn.waiting <= k:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(6))


def test_a_callback_that_draws_is_told_so(tiny_pipeline: Path) -> None:
    model = TextToImage.load(tiny_pipeline)

    def progress(done: int, total: int) -> None:
        model.settings(steps=3)  # may be read at any time
        list(model("a cat", seeds=[2], steps=1))

    with pytest.raises(UsageError, match="is at work: a callback cannot use it"):
        list(model("a horse", seeds=[1], steps=1, progress=progress))
    assert len(list(model("a horse", seeds=[1], steps=1))) == 1


def test_the_python_api_takes_calls_whole(epsilon_pipeline: Path, loras: list[Path]) -> None:
    model = load(epsilon_pipeline)
    calls: list[dict[str, Any]] = [
        {"prompt": "a horse", "seed": 1, "num_images": 3, "steps": 2, "scheduler": "euler"},
        {"prompt": "a horse", "seed": 1, "num_images": 3, "steps": 2, "scheduler": "euler", "lora": str(loras[0])},
        {"prompt": ["a cat", "a horse"], "seed": 4, "steps": 3, "lora": f"{loras[1]}:0.7", "guidance": 2.0},
        {"prompt": "van gogh", "seed": 9, "num_images": 2, "steps": 2, "width": 64},
    ]
    alone = [[(image.tobytes(), image.recipe) for image in model(**call, batch_size=1)] for call in calls]
    together: dict[int, Any] = {}

    def draw(k: int) -> None:
        together[k] = [(image.tobytes(), image.recipe) for image in model(**calls[k], batch_size=1)]
        repr(model)  # may be read while another loads or draws

    in_threads([lambda k=k: draw(k) for k in range(4)])  # type: ignore[misc]
    assert [together[k] for k in range(4)] == alone


def test_models_loaded_at_once_are_whole(tiny_pipeline: Path, loras: list[Path], epsilon_pipeline: Path) -> None:
    """The libraries patch the whole process while they load: of two loads at once neither would be filled."""

    def drawn(folder: Path, **how: Any) -> list[Any]:
        return [contents(result) for result in TextToImage.load(folder, **how)("a horse", seeds=[1], steps=2)]

    kinds: list[dict[str, Any]] = [
        {"folder": tiny_pipeline},
        {"folder": tiny_pipeline, "dtype": "bfloat16"},
        {"folder": epsilon_pipeline, "adapters": Adapters.read(loras[0])},
        {"folder": epsilon_pipeline, "dtype": "bfloat16"},
    ]
    alone = [drawn(**kind) for kind in kinds]
    together: list[list[Any]] = [[] for _ in kinds]

    def load_and_draw(k: int) -> None:
        for _ in range(3):
            together[k].append(drawn(**kinds[k]))

    in_threads([lambda k=k: load_and_draw(k) for k in range(4)])  # type: ignore[misc]
    assert together == [[one] * 3 for one in alone]


def test_a_call_that_fails_leaves_the_model_loaded(epsilon_pipeline: Path, loras: list[Path]) -> None:
    model = load(epsilon_pipeline)
    before, plain = model.model, model("a horse", seed=1, steps=1)[0]
    with pytest.raises(UsageError):
        model("a horse", seed=1, steps=1, lora=str(loras[0]), width=33)
    with pytest.raises(UsageError):
        model("a horse", seed=1, steps=1, width=33)
    assert model.model is before
    assert model("a horse", seed=1, steps=1)[0].tobytes() == plain.tobytes()


def test_a_model_that_was_lost_between_two_levels_is_loaded_again(
    tiny_pipeline: Path, loras: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from t2i.pipelines.loading import retry

    model = TextToImage.load(tiny_pipeline, options=DeviceOptions(auto_retry=True))
    draw, load_pipeline, failing = PipelineRunner.draw, retry.load_pipeline, [True]

    def full(self: PipelineRunner, *rest: Any) -> Any:
        if failing:
            raise MemoryError
        return draw(self, *rest)

    def refused(*rest: Any) -> Any:
        if failing:
            raise MemoryError
        return load_pipeline(*rest)

    monkeypatch.setattr(PipelineRunner, "draw", full)
    monkeypatch.setattr(retry, "load_pipeline", refused)
    with pytest.raises(OutOfMemory):
        list(model("a horse", seeds=[1], steps=1))
    assert model.pipe is None
    assert model.settings(steps=2).steps == 2  # is known without the pipeline
    failing.clear()
    (result,) = model("a horse", seeds=[1], steps=1, adapters=Adapters.read(loras[0]))
    assert result.recipe.adapters
