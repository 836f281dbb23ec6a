"""From the options of a request to the memory plan of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from t2i.config.options import GenerateOptions
from t2i.errors import UsageError
from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.resolve import ModelKey
from t2i.model_files.locate import ModelFiles
from t2i.pipelines.loading.load import choose_device
from t2i.pipelines.loading.plan import DeviceOptions

if TYPE_CHECKING:
    from t2i.pipelines.loading.plan import MemoryPlan


def machine_plan(
    files: ModelFiles,
    key: ModelKey,
    request: GenerateRequest,
    asked: Sequence[dict[str, Any]],
    images: int,
    steady: bool,
) -> MemoryPlan:
    """Return the memory plan of a model on this machine.

    asked: the settings of its images.  images: how many.  steady: see `make_plan`.
    """
    from t2i.pipelines.loading.retry import make_plan
    from t2i.pipelines.text_to_image.step_cache import check_compiled, parse_cache

    given = request.options
    check_compiled(parse_cache(key.cache) if key.cache else None, given.compile)
    return make_plan(
        files,
        device=given.device or _device_here(key.device),
        options=device_options(key, given),
        asked=[{name: one[name] for name in ("width", "height", "edit") if name in one} for one in asked],
        batch_size=given.batch_size,
        images=images,
        steady=steady,
    )


def device_options(key: ModelKey, options: GenerateOptions) -> DeviceOptions:
    """Return the choices about loading a model that the user made; None: chosen by the plan."""
    return DeviceOptions(
        dtype=key.dtype,
        offload=None if options.offload == "auto" else options.offload,
        bits=None if key.quantize is None else int(key.quantize.replace("none", "0")),
        tiling=key.tiling,
        compile=options.compile,
        deterministic=key.deterministic,
        safety=not key.no_safety,
        auto_retry=options.auto_retry,
    )


def say_safety(files: ModelFiles, key: ModelKey, say: Callable[[str], None]) -> None:
    """Say where a model's safety checker is missing or turned off, so that its images are not checked."""
    if files.safety == "missing":
        say(f"note: {files.model.name} names a safety checker and comes without it: images are not checked")
    elif files.safety == "there" and key.no_safety:
        say("note: `no_safety`: images are not checked")


def _device_here(device: str | None) -> str | None:
    """Return the device that an image was made on, if this machine has one like it."""
    try:
        return device and choose_device(device)
    except UsageError:
        return None
