"""Load a model's verified files as a diffusers pipeline; choose its device and dtype."""

from __future__ import annotations

import re
from typing import Any

from t2i.errors import ModelError, T2IError, UsageError, one_line
from t2i.model_files import single_file
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.locate import ModelFiles
from t2i.model_files.registry import read_json
from t2i.model_files.weight_files import SAFETY
from t2i.pipelines.loading import quantize
from t2i.pipelines.loading.apply import apply_plan
from t2i.pipelines.loading.device import Machine, is_out_of_memory
from t2i.pipelines.loading.memory_estimate import is_quantized
from t2i.pipelines.loading.plan import MemoryPlan
from t2i.threads import LOADING

DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}
SMALL_BYTES = 10**9  # below it float32 fits any GPU, and its images equal the CPU's


def choose_device(device: str | None) -> str:
    """Choose the device to draw on; None: CUDA, else Intel's XPU, else Apple's MPS, else the CPU.

    Raises UsageError for a device that this machine does not have.
    """
    import torch

    available = []
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    if torch.xpu.is_available():
        available += ["xpu", *(f"xpu:{k}" for k in range(torch.xpu.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    available.append("cpu")
    if device is None:
        return available[0]
    if device.lower() not in available:
        raise UsageError(f"device: got {device[:40]!r}, this machine has {', '.join(available)}")
    return device.lower()


def choose_dtype(dtype: str | None, machine: Machine, files: ModelFiles) -> str:
    """Choose the dtype to draw in.  None: float32 for small models, so that their images are equal everywhere.

    Large models: on a CPU bfloat16 where the hardware supports it, else float32; on a GPU the model's own, or float16
    where that is bfloat16 and the GPU does not support it.
    Raises UsageError for an unknown name.
    """
    if dtype is not None:
        if dtype.lower() not in DTYPES:
            raise UsageError(f"dtype: got {dtype[:40]!r}, allowed float32, float16, bfloat16 (fp32, fp16, bf16)")
        return DTYPES[dtype.lower()]
    cpu = machine.kind == "cpu"
    if files.bytes < SMALL_BYTES and (cpu or files.defaults.dtype is None):
        return "float32"
    if cpu:
        return "bfloat16" if machine.bfloat16 else "float32"
    own = DTYPES.get(str(files.defaults.dtype), "bfloat16")
    return "float16" if own == "bfloat16" and not machine.bfloat16 else own


def dtype_reason(dtype: str, machine: Machine, files: ModelFiles) -> str:
    """Say why `choose_dtype` took it."""
    if files.bytes < SMALL_BYTES and dtype == "float32":
        return "a small model: its images are equal on every machine"
    if machine.kind == "cpu" or (dtype == "float16" and not machine.bfloat16):
        return machine.why
    return "the model's own" if files.defaults.dtype == dtype else f"half the memory; {machine.why}"


def load_pipeline(
    files: ModelFiles, device: str, dtype: str, components: dict[str, Any] | None = None, plan: MemoryPlan | None = None
) -> Any:
    """Load the diffusers pipeline on the device, in the dtype.

    components: loaded already (tokenizers).  plan: offloading and so on; None: plain.
    Raises ModelError: not text-to-image, weights missing or of the wrong shape, anything diffusers cannot build.
    """
    import torch

    kind = pipeline_class(files.kind)
    options = {"torch_dtype": getattr(torch, dtype), "local_files_only": True}
    name, components = files.model.name, dict(components or {})
    if files.safety == "missing" or (plan is not None and not plan.options.safety):
        components |= _without_safety(files)
    with LOADING, silence_libraries() as said:
        try:
            if files.path.is_dir():
                if plan is not None and plan.level.bits:
                    options["quantization_config"] = _quantization(files, plan)
                pipe = kind.from_pretrained(files.path, use_safetensors=True, **options, **components)
            else:
                pipe = single_file.load(kind, files.path, files.config, components, options, files.offline)
            pipe = pipe.to(device) if plan is None else apply_plan(pipe, plan)
        except (T2IError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as e:
            if is_out_of_memory(e):
                raise
            refuse_missing_weights(name, said)
            if "meta tensor" in str(e):  # weights that a single file lacks stay on torch's meta device
                raise ModelError(f"cannot load {name}: weights are missing from it", "get the model again") from e
            reason = one_line(e, 300)
            hint = "get the model again"
            if not files.path.is_dir():
                hint += "; if it has other sizes than usual, give the folder of its configs: `config=FOLDER`"
            raise ModelError(f"cannot load {name}: {type(e).__name__}: {reason}", hint) from e
    refuse_missing_weights(name, said)
    return pipe


def _without_safety(files: ModelFiles) -> dict[str, Any]:
    """Return arguments for diffusers to load a model without its safety checker."""
    index = read_json((files.path if files.path.is_dir() else files.config or files.path) / "model_index.json")
    if SAFETY not in index:
        return {}
    # The preprocessor of the checker goes with it, unless an image encoder uses it too.
    shared = None not in (index.get("image_encoder") or [None])
    alone = {"feature_extractor": None} if "feature_extractor" in index and not shared else {}
    return {SAFETY: None, **alone} | ({"requires_safety_checker": False} if "requires_safety_checker" in index else {})


def _quantization(files: ModelFiles, plan: MemoryPlan) -> Any:
    """Return the quantisation config for those components of a pipeline that are quantised."""
    index = read_json(files.path / "model_index.json")
    parts = {name: str(value[0]) for name, value in index.items() if is_quantized(name) and isinstance(value, list)}
    parts = {name: library for name, library in parts.items() if (files.path / name).is_dir()}
    return quantize.pipeline_config(plan.level.bits, plan.device, plan.level.dtype, parts)


def refuse_missing_weights(name: str, said: list[str]) -> None:
    """Raise ModelError where the libraries warn of missing weights, which they fill with random numbers."""
    for line in said:
        if "newly initialized" in line:
            words = re.sub(r"\x1b\[[0-9;]*m", "", line).split()
            part = words[0] if "LOAD REPORT" in line else words[3]
            raise ModelError(f"cannot load {name}: weights are missing from its {part}", "get the model again")


def pipeline_class(name: str) -> Any:
    """Return diffusers' text-to-image class for a model saved by the pipeline class of this name.

    `AutoPipelineForText2Image` comes last, since it imports every pipeline, which takes a second.
    Raises ModelError where the model does not make images from text.
    """
    import inspect

    import diffusers

    try:
        kind = getattr(diffusers, name)
        parameters = inspect.signature(kind.__call__).parameters
        if not issubclass(kind, diffusers.DiffusionPipeline):
            raise TypeError(name)
    except (AttributeError, TypeError, ImportError):
        version = diffusers.__version__
        raise ModelError(f"diffusers {version} has no pipeline {name[:60]!r}", "pip install -U diffusers") from None
    if "prompt" in parameters and not {"image", "num_frames", "video", "audio_length_in_s"} & set(parameters):
        return kind
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING, _get_task_class

    try:
        return _get_task_class(AUTO_TEXT2IMAGE_PIPELINES_MAPPING, name)
    except ValueError:
        raise ModelError(f"a {name} does not make images from text", "choose a text-to-image model") from None
