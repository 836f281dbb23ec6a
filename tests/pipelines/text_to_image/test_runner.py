"""Reading a setting changes nothing: every property and getter leaves the pipeline as it was."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from editing_kit import half_mask, picture, save_control

from t2i.errors import ModelError, UsageError
from t2i.pipelines.settings.edit import Control, make_image_inputs
from t2i.pipelines.settings.image_input import ImageInput
from t2i.pipelines.text_to_image.passes import ImagePasses
from t2i.pipelines.text_to_image.pipeline import TextToImage
from t2i.pipelines.text_to_image.runner import PipelineRunner

# What acts: it loads, draws, or changes what is drawn with. All else that is public is read here.
ACTING = {
    TextToImage: {"load", "wrap", "draw", "set_adapters"},
    PipelineRunner: {"adopt", "attach_adapters", "use_scheduler", "draw"},
    ImagePasses: {"adopt", "draw"},
}


def snapshot(model: TextToImage) -> dict[str, Any]:
    """Identities of all that a pipeline holds, and every config by value."""
    pipe, passes = model.pipe, model.runner.passes
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    return {
        "pipeline": {name: id(value) for name, value in vars(pipe).items()},
        "parts": {name: {key: id(value) for key, value in vars(part).items()} for name, part in parts.items()},
        "scheduler": (id(pipe.scheduler), json.dumps(dict(pipe.scheduler.config), default=str)),
        "configs": {name: json.dumps(dict(p.config), default=str) for name, p in parts.items() if _has_dict(p)},
        "pipeline config": json.dumps(dict(pipe.config), default=str),
        "runner": {name: id(value) for name, value in vars(model.runner).items()},
        "loaded": (dict(passes._nets), dict(passes._pipes)),
    }


def _has_dict(part: Any) -> bool:
    return hasattr(part, "config") and hasattr(part.config, "keys")


@pytest.fixture(scope="module")
def control(epsilon_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_control(epsilon_pipeline, tmp_path_factory.mktemp("controls") / "edges")


def test_no_getter_changes_the_pipeline(epsilon_pipeline: Path, control: Path) -> None:
    model = TextToImage.load(epsilon_pipeline, scheduler="heun")
    runner, passes = model.runner, model.runner.passes
    guided = Control(str(control), ImageInput.of(picture()))
    euler = model.settings(scheduler="euler", steps=4)
    edit = make_image_inputs(picture(), half_mask(), 0.5)
    read: dict[type, dict[str, Callable[[], object]]] = {
        TextToImage: {
            "settings": lambda: [
                model.settings(),
                model.settings(scheduler="ddim", steps=3, width=64),
                model.settings(edit=make_image_inputs(picture(), upscale="2:0.5")),
                model.settings(edit=edit),
                model.settings(edit=make_image_inputs(control=guided), scheduler="lcm"),
            ],
            "default_batch_size": lambda: model.default_batch_size(euler),
        },
        PipelineRunner: {
            "settings": lambda: runner.settings(scheduler="pndm"),
            "scheduler": lambda: [runner.scheduler(None), runner.scheduler("euler-a")],
            "scheduler_name": lambda: runner.scheduler_name(euler),
            "scheduler_config": lambda: runner.scheduler_config(euler),
            "uses_negative": lambda: runner.uses_negative(3),
            "suggestion": runner.suggestion,
        },
        ImagePasses: {"check": lambda: passes.check(make_image_inputs(control=guided), runner.traits)},
    }
    for kind, owner in ((TextToImage, model), (PipelineRunner, runner), (ImagePasses, passes)):
        public = {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}
        for name, value in public.items():
            if isinstance(value, property):
                read[kind][name] = lambda owner=owner, name=name: getattr(owner, name)  # type: ignore[misc]
        methods = {name for name, value in public.items() if callable(value)}
        assert methods | read[kind].keys() == ACTING[kind] | read[kind].keys()  # each is known to act, or is read here
    before = snapshot(model)
    for getters in read.values():
        for name, get in getters.items():
            get()
            assert snapshot(model) == before, name


def test_what_getters_say_is_what_is_drawn_with(epsilon_pipeline: Path) -> None:
    model = TextToImage.load(epsilon_pipeline)
    assert model.scheduler == "pndm"
    settings = model.settings(scheduler="euler-a", steps=2)
    said = model.runner.scheduler_name(settings), model.runner.scheduler_config(settings)
    assert model.scheduler == "pndm"
    (result,) = model("a horse", seeds=[1], scheduler="euler-a", steps=2)
    assert (result.recipe.scheduler, result.recipe.scheduler_config) == said
    assert model.scheduler == "pndm"  # what one call asks for is no setting of the model


def test_what_cannot_be_drawn_is_said_before_anything_is_loaded(
    epsilon_pipeline: Path, control: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = TextToImage.load(epsilon_pipeline)
    with pytest.raises(UsageError, match="unknown scheduler 'fast'"):
        model.settings(scheduler="fast")
    with pytest.raises(UsageError, match="no folder, and no type known"):
        model.settings(edit=make_image_inputs(control=Control("edges", ImageInput.of(picture()))))
    damaged = tmp_path / "net"
    damaged.mkdir()
    name = "diffusion_pytorch_model.safetensors"
    weights = load_file(control / name)
    weights.pop("conv_in.weight")
    save_file(weights, damaged / name)
    (damaged / "config.json").write_bytes((control / "config.json").read_bytes())
    edit = make_image_inputs(control=Control(str(damaged), ImageInput.of(picture())))
    with pytest.raises(ModelError, match="weights are missing from its conv_in"):
        model.settings(edit=edit)
    config = json.loads((control / "config.json").read_text(encoding="utf-8"))
    (damaged / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 24}), encoding="utf-8")
    with pytest.raises(UsageError, match="made for another base model"):
        model.settings(edit=edit)
    assert not model.runner.passes._nets
