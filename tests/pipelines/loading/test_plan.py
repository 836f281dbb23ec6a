"""The memory plan: measured and estimated memory, the fallback chain, dtype, quantised weights, safety, the record.

There is no GPU where these tests run: what a GPU would answer is put in its place, and diffusers' calls are recorded.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate_kit import Run
from PIL import Image

from t2i import load
from t2i.errors import ModelError, T2IError, UsageError
from t2i.imaging import images
from t2i.metadata import recipe
from t2i.model_files.locate import locate
from t2i.pipelines.loading import apply, quantize, retry
from t2i.pipelines.loading import device as device_module
from t2i.pipelines.loading import load as load_module
from t2i.pipelines.loading.device import Machine, main_memory, measure
from t2i.pipelines.loading.load import choose_dtype, dtype_reason, load_pipeline
from t2i.pipelines.loading.memory_estimate import Component, Networks, networks
from t2i.pipelines.loading.plan import DeviceOptions, ImageBatch, MemoryLevel, MemoryPlan, choose_plan

GB = 10**9
GPU = Machine("cuda", 24 * GB, 24 * GB, 64 * GB, True, "CUDA capability 8.9")
CPU = Machine("cpu", 24 * GB, 24 * GB, 24 * GB, True, "amx_bf16")
# Two billion numbers that denoise, all but a tenth in linear layers; half a billion that read text.
LARGE = Networks(
    {
        "transformer": Component(2 * GB, 18 * GB // 10, GB // 100),
        "text_encoder": Component(GB // 2, GB // 2, GB // 100),
        "vae": Component(GB // 10, 0, GB // 1000),
    }
)
NOTHING = ImageBatch(16, 16, 1)


def made(path: str) -> recipe.Recipe:
    found = recipe.read(Path(path)).recipe
    assert found is not None
    return found


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The libraries for quantised weights that seem to be installed; all of them, unless a test takes one away."""
    there = ["torchao", "bitsandbytes"]
    monkeypatch.setattr(quantize, "find_spec", lambda name: name in there or None)
    return there


# --- what is measured ---


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts_where_it_is_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    free, total = main_memory()
    root = tmp_path / "cgroup"
    folder = root / ("memory/pod/box" if version == 1 else "pod/box")
    folder.mkdir(parents=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    most, used, idle = names if version == 1 else ("memory.max", "memory.current", "inactive_file")
    (folder / most).write_text("9223372036854771712" if version == 1 else "max")
    (folder.parent / most).write_text(str(10**8))
    (folder.parent / used).write_text(str(6 * 10**7))
    (folder.parent / "memory.stat").write_text(f"anon 5\n{idle} {10**7}\n")
    (tmp_path / "proc").write_text("4:memory:/pod/box\n" if version == 1 else "0::/pod/box\n")
    monkeypatch.setattr(device_module, "CGROUP_ROOT", root)
    monkeypatch.setattr(device_module, "PROC_CGROUP", tmp_path / "proc")
    assert main_memory() == (5 * 10**7, 10**8)  # what files hold comes back before memory runs out
    (folder.parent / most).unlink()
    assert main_memory()[1] == total
    assert free > 0


def test_a_gpu_is_asked_for_its_memory_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * GB, 16 * GB))
    for capability, bfloat16 in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        found = measure("cuda:1")
        assert (found.free, found.total, found.bfloat16, found.kind) == (3 * GB, 16 * GB, bfloat16, "cuda")


def test_the_fastest_device_there_is_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert load_module.choose_device(None) == "cpu"
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    assert load_module.choose_device(None) == "xpu"
    assert load_module.choose_device("XPU:1") == "xpu:1"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert load_module.choose_device(None) == "xpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert load_module.choose_device(None) == "cuda"


# --- what is estimated ---


def test_weights_are_counted_to_the_byte_as_they_are_loaded(pipeline_copy: Path) -> None:
    files = locate(str(pipeline_copy))
    pipe = load_pipeline(files, "cpu", "float32")
    parts = {name: part for name, part in pipe.components.items() if hasattr(part, "parameters")}
    numbers = {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
    # A second set of the same weights, which loading does not read
    shutil.copy(pipeline_copy / "vae/diffusion_pytorch_model.safetensors", pipeline_copy / "vae/x.fp16.safetensors")
    found = networks(locate(str(pipeline_copy)).weights, pipeline_copy)
    assert {name: part.elements for name, part in found.components.items()} == numbers
    assert found.weights("float32") == 4 * sum(numbers.values()) == 2 * found.weights("bfloat16")
    linear = [m for part in ("unet", "text_encoder") for m in parts[part].modules() if type(m).__name__ == "Linear"]
    assert sum(part.small for part in found.components.values() if part is not found.components["vae"]) == sum(
        m.weight.numel() for m in linear
    )
    assert found.vae_scale == pipe.vae_scale_factor == 4


# --- what is chosen ---


@pytest.mark.parametrize(
    ("free", "level"),
    [
        (24, MemoryLevel("bfloat16")),
        (5.0, MemoryLevel("bfloat16", True, "model")),
        (2.8, MemoryLevel("bfloat16", True, "model", 8)),
        (1.7, MemoryLevel("bfloat16", True, "model", 4)),
        (1.0, MemoryLevel("bfloat16", True, "group")),
        (0.01, MemoryLevel("bfloat16", True, "group")),  # the last one, though it does not fit
    ],
)
def test_the_fallback_chain_of_a_gpu(libraries: list[str], free: float, level: MemoryLevel) -> None:
    plan = choose_plan(replace(GPU, free=int(free * GB)), "bfloat16", LARGE, NOTHING, why="the model's own")
    assert plan.level == level
    assert plan.fits == (free > 0.5)
    assert ("it may not fit" in plan.summary()) == (not plan.fits)


@pytest.mark.parametrize(
    ("free", "level"),
    [
        (24, MemoryLevel("float32")),
        (8, MemoryLevel("bfloat16")),
        (3.9, MemoryLevel("bfloat16", True, "none", 8)),
        (1, MemoryLevel("bfloat16", True, "none", 8)),
    ],
)
def test_the_fallback_chain_of_a_cpu(libraries: list[str], free: float, level: MemoryLevel) -> None:
    assert choose_plan(replace(CPU, free=int(free * GB)), "float32", LARGE, NOTHING).level == level


def test_without_the_library_quantised_levels_are_left_out(libraries: list[str]) -> None:
    libraries.clear()
    for machine in (GPU, CPU):
        plan = choose_plan(machine, "bfloat16", LARGE, NOTHING)
        assert not any(level.bits for level in plan.fallback_chain)
        with pytest.raises(T2IError) as caught:
            choose_plan(machine, "bfloat16", LARGE, NOTHING, DeviceOptions(bits=8))
        assert caught.value.hint == "pip install 't2i[quantize]'"


def test_what_the_user_fixes_stays_on_every_level(libraries: list[str]) -> None:
    small = replace(GPU, free=GB)
    fallback_chain = choose_plan(
        small, "float16", LARGE, NOTHING, DeviceOptions("float16", offload="none", tiling=False)
    ).fallback_chain
    assert fallback_chain == (
        MemoryLevel("float16"),
        MemoryLevel("float16", False, "none", 8),
        MemoryLevel("float16", False, "none", 4),
    )
    fallback_chain = choose_plan(CPU, "float32", LARGE, NOTHING, DeviceOptions("float32")).fallback_chain
    assert {level.dtype for level in fallback_chain} == {"float32"}
    plan = choose_plan(CPU, "float32", LARGE, NOTHING, DeviceOptions(bits=8), why="a small model")
    assert plan.level == MemoryLevel("bfloat16", False, "none", 8)
    assert plan.summary() == "bfloat16 (8-bit weights compute in it); 8-bit weights (asked for)"


def test_what_a_device_does_not_do_is_refused(libraries: list[str]) -> None:
    for options, words in (
        (DeviceOptions(offload="model"), "no memory of its own"),
        (DeviceOptions(bits=4), "no 4-bit weights that compute on a CPU"),
        (DeviceOptions(bits=5), "allowed none, 8, 4"),
        (DeviceOptions(offload="disk"), "allowed auto, none, model, group"),
    ):
        with pytest.raises(UsageError, match=words):
            choose_plan(CPU, "float32", LARGE, NOTHING, options)
    with pytest.raises(UsageError, match="quantised ones cannot"):
        choose_plan(GPU, "bfloat16", LARGE, NOTHING, DeviceOptions(offload="group", bits=8))


def test_each_level_names_the_next_as_an_option(libraries: list[str]) -> None:
    plan: MemoryPlan | None = choose_plan(GPU, "bfloat16", LARGE, NOTHING)
    said = []
    while plan is not None:
        said.append(plan.suggestion())
        plan = plan.next()
    options = ("`tiling=True`", "`offload=model`", "`quantize=8`", "`quantize=4`", "`offload=group`")
    assert said[:-1] == [f"try {option}; `auto_retry` does so by itself" for option in options]
    assert said[-1] == "nothing is left but less at once: `batch_size=1` or a smaller `size`"


def test_large_models_are_drawn_in_what_the_hardware_computes_in(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = locate(str(tiny_pipeline))
    assert choose_dtype(None, CPU, files) == "float32"
    monkeypatch.setattr(load_module, "SMALL_BYTES", 1)
    old = replace(CPU, bfloat16=False, why="this CPU has no instructions for it")
    assert [choose_dtype(None, machine, files) for machine in (CPU, old)] == ["bfloat16", "float32"]
    assert dtype_reason("bfloat16", CPU, files) == "amx_bf16"
    assert choose_dtype(None, GPU, files) == "bfloat16"
    turing = replace(GPU, bfloat16=False, why="CUDA capability 7.5")
    assert (choose_dtype(None, turing, files), dtype_reason("float16", turing, files)) == ("float16", turing.why)


# --- diffusers' own means ---


class Recorder:
    """Stands in for a pipeline: writes down what is called, and with what."""

    def __init__(self, calls: list[Any], name: str = "pipe") -> None:
        self._calls, self._name = calls, name

    def __getattr__(self, name: str) -> Any:
        if name in ("vae", "unet"):
            return Recorder(self._calls, name)
        if name.startswith("_") or name in ("transformer", "prior"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> Recorder:
            self._calls.append((self._name, name, *map(str, arguments), {key: str(v) for key, v in named.items()}))
            return self

        return call


def test_offloading_and_tiling_are_diffusers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tiled: list[Any] = [("vae", "enable_tiling", {}), ("vae", "enable_slicing", {})]
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    group = {"onload_device": "cuda", "offload_type": "leaf_level", "use_stream": "True"}
    for level, wanted in (
        (MemoryLevel("bfloat16"), [("pipe", "to", "cuda", {})]),
        (MemoryLevel("bfloat16", True), [("pipe", "to", "cuda", {}), *tiled]),
        (MemoryLevel("bfloat16", True, "model"), [("pipe", "enable_model_cpu_offload", {"device": "cuda"}), *tiled]),
        (MemoryLevel("bfloat16", False, "group"), [("pipe", "enable_group_offload", group)]),
    ):
        calls: list[Any] = []
        apply.apply_plan(Recorder(calls), MemoryPlan("cuda", (level,)))
        assert calls == wanted
    calls = []
    apply.apply_plan(
        Recorder(calls), MemoryPlan("cuda", (MemoryLevel("bfloat16"),), options=DeviceOptions(compile=True))
    )
    assert calls[-1] == ("unet", "compile", {})


def test_compiled_code_is_kept_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    for before, after in ((default_cache_dir(), "/cache/t2i/compiled"), ("/mine", "/mine")):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
        apply.keep_compiled()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == after


def test_the_signatures_that_are_called_are_those_of_diffusers() -> None:
    import inspect

    from diffusers import AutoencoderKL, DiffusionPipeline

    assert {"onload_device", "offload_type", "use_stream"} <= set(
        inspect.signature(DiffusionPipeline.enable_group_offload).parameters
    )
    assert "device" in inspect.signature(DiffusionPipeline.enable_model_cpu_offload).parameters
    assert hasattr(AutoencoderKL, "enable_tiling")
    assert hasattr(AutoencoderKL, "enable_slicing")


def test_a_gpu_gets_bitsandbytes_for_what_denoises_and_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers
    import transformers

    class Config:
        def __init__(self, **named: Any) -> None:
            self.named = named

    monkeypatch.setattr(diffusers, "BitsAndBytesConfig", Config)
    monkeypatch.setattr(transformers, "BitsAndBytesConfig", type("Other", (Config,), {}))
    monkeypatch.setattr(diffusers, "PipelineQuantizationConfig", Config)
    mapping = quantize.pipeline_config(4, "cuda:0", "bfloat16", {"unet": "diffusers", "text_encoder": "transformers"})
    unet, text = mapping.named["quant_mapping"]["unet"], mapping.named["quant_mapping"]["text_encoder"]
    assert (type(unet).__name__, type(text).__name__) == ("Config", "Other")
    assert {key: str(value) for key, value in unet.named.items()} == {
        "load_in_4bit": "True",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "torch.bfloat16",
    }
    assert quantize.pipeline_config(8, "cuda", "float16", {"unet": "diffusers"}).named["quant_mapping"][
        "unet"
    ].named == {"load_in_8bit": True}


def test_eight_bits_are_drawn_recorded_and_drawn_again(t2i: Run, tiny_pipeline: Path) -> None:
    pytest.importorskip("torchao", reason="needs t2i[quantize]")
    ran = t2i("a horse", "-s", "7", "--quantize", "8", "-o", "q.png")
    assert ran.code == 0, ran.err
    assert ran.err.splitlines()[1] == ("machine: bfloat16 (8-bit weights compute in it); 8-bit weights (asked for)")
    assert len(ran.err.splitlines()) == 2  # and not a word of the library's
    told = made("q.png")
    assert (told.dtype, told.machine) == ("bfloat16", {"quantize": 8})
    plain = t2i("a horse", "-s", "7", "--dtype", "bfloat16", "-o", "p.png")
    assert made("p.png").machine == {}
    a, b = (np.asarray(Image.open(path), np.int16) for path in ("q.png", "p.png"))
    assert 0 < np.abs(a - b).max() < 64, plain.err
    assert "q.png: identical" in t2i("--from", "q.png", "-o", "r.png", steps="").err
    assert "drawn anew, with another quantize" in t2i("--from", "q.png", "--quantize", "none", "-o", "s.png").err
    from t2i.pipelines.text_to_image.pipeline import TextToImage

    unet = TextToImage.load(tiny_pipeline, options=DeviceOptions(bits=8)).pipe.unet
    small = [m for m in unet.modules() if type(m).__name__ == "Linear"]
    assert small
    assert all(type(m.weight).__name__ == "Int8Tensor" for m in small)


# --- deterministic, safety, records ---


def test_deterministic_holds_from_loading_on(t2i: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the process: it is set where a model is loaded, never around a drawing."""
    import torch

    from t2i.pipelines.text_to_image.runner import PipelineRunner

    seen = []
    draw, load = PipelineRunner.draw, retry.load_pipeline

    def state() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark

    def loaded(*rest: Any) -> Any:
        seen.append(state())
        return load(*rest)

    def drawn(self: PipelineRunner, *rest: Any) -> Any:
        seen.append(state())
        return draw(self, *rest)

    monkeypatch.setattr(retry, "load_pipeline", loaded)
    monkeypatch.setattr(PipelineRunner, "draw", drawn)
    assert t2i("a horse", "-s", "7", "-o", "b.png").code == 0
    assert t2i("a horse", "-s", "7", "--deterministic", "-o", "a.png").code == 0
    assert seen == [(False, False, False)] * 2 + [(True, True, False)] * 2
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert (made("a.png").machine, made("b.png").machine) == ({"deterministic": True}, {})
    assert made("a.png").image_hash == made("b.png").image_hash
    torch.use_deterministic_algorithms(False)
    assert t2i("--from", "a.png", "-o", "c.png", steps="").code == 0
    assert seen[-1][0]


def test_what_cannot_be_deterministic_is_named(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from t2i.pipelines.text_to_image.runner import PipelineRunner

    def refuses(*_: Any) -> Any:
        raise RuntimeError("kthvalue CUDA does not have a deterministic implementation")

    monkeypatch.setattr(PipelineRunner, "draw", refuses)
    asked, plain = load(tiny_pipeline, deterministic=True), load(tiny_pipeline)
    with pytest.raises(ModelError, match="cannot draw deterministically: kthvalue CUDA"):
        asked("a horse", seed=1, steps=1)
    with pytest.raises(RuntimeError, match="deterministic implementation"):
        plain("a horse", seed=1, steps=1)


@pytest.fixture
def checked_pipeline(pipeline_copy: Path) -> Path:
    """The tiny pipeline with a safety checker of random weights, which blanks nothing."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessorPil

    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 32, "patch_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(2)  # cosines that no picture has
    checker.special_care_embeds_weights.data.fill_(2)
    checker.save_pretrained(pipeline_copy / "safety_checker")
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(pipeline_copy / "feature_extractor")
    index = pipeline_copy / "model_index.json"
    parts = json.loads(index.read_text()) | {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    index.write_text(json.dumps(parts))
    return pipeline_copy


def test_a_models_own_safety_checker_looks_unless_told_not_to(t2i: Run, checked_pipeline: Path) -> None:
    model = ["-m", str(checked_pipeline), "-s", "7"]
    ran = t2i("a horse", *model, "-o", "a.png")
    assert ran.code == 0, ran.err
    assert made("a.png").safety == "checked"
    assert "note" not in ran.err
    ran = t2i("a horse", *model, "--no-safety", "-o", "b.png")
    assert "note: --no-safety: images are not checked" in ran.err
    assert made("b.png").safety == "off"
    ran = t2i("--from", "b.png", "-m", str(checked_pipeline), "-o", "c.png", steps="")
    assert made("c.png").safety == "off"
    assert "b.png: identical" in ran.err


def test_a_checker_that_is_named_and_not_there_is_said(t2i: Run, checked_pipeline: Path, here: Path) -> None:
    for lost in ("safety_checker/model.safetensors", "safety_checker", "feature_extractor"):
        path = checked_pipeline / lost
        path.unlink() if path.is_file() else shutil.rmtree(path)
        ran = t2i("a horse", "-m", str(checked_pipeline), "-s", "7", "-o", "a.png", "--overwrite")
        assert ran.code == 0, ran.err
        assert "note: model names a safety checker and comes without it: images are not checked" in ran.err
        assert made("a.png").safety == "none here"


def test_a_blanked_picture_is_not_written(t2i: Run, checked_pipeline: Path, here: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = checked_pipeline / "safety_checker" / "model.safetensors"
    save_file({k: v - 4 if "weights" in k else v for k, v in load_file(path).items()}, path, {"format": "pt"})
    ran = t2i("a horse", "-m", str(checked_pipeline), "-s", "7", "-o", "a.png")
    assert (ran.code, ran.lines) == (3, [])
    assert "safety checker blanked seed 7" in ran.err


def test_records_from_before_are_read(t2i: Run) -> None:
    t2i("a horse", "-s", "7", "-o", "a.png")
    told = json.loads(made("a.png").to_json())
    assert told.pop("machine") == {}
    assert told.pop("safety") == "none here"
    old = recipe.Recipe.from_json(json.dumps(told))
    assert (old.machine, old.safety) == ({}, "")


def test_python_asks_the_machine_as_the_command_does(tiny_pipeline: Path) -> None:
    draw = load(tiny_pipeline, tiling=True, deterministic=True)
    picture = draw("a horse", seed=7, steps=2)[0]
    assert picture.recipe.machine == {"tiling": True, "deterministic": True}
    with pytest.raises(UsageError, match="no memory of its own"):
        load(tiny_pipeline, offload="model")


def test_another_way_of_computing_is_named_where_a_picture_differs(t2i: Run, here: Path) -> None:
    path = Path(t2i("a horse", "-s", "7", "-o", "a.png").lines[0])
    pixels = np.asarray(images.decode(path)).copy()
    pixels[0, 0, 0] ^= 1
    other = Image.fromarray(pixels)
    machine = {"compiled": True, "offload": "model"}
    told = replace(made("a.png"), machine=machine, image_hash=images.pixel_hash(other))
    images.save(other, here / "b.png", recipe=told)
    ran = t2i("--from", "b.png", "-o", "c.png", steps="")
    assert "b.png: differs, made with a compiled network, offload model; here none of that; at most 1 of 255" in ran.err
