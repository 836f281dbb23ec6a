"""From what is wished of a model to the plan of the machine that draws with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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
    overrides: ModelKey,
    request: GenerateRequest,
    asked: Sequence[dict[str, Any]],
    images: int,
    steady: bool,
) -> MemoryPlan:
    """What a model is drawn with here.  asked: the settings that its pictures ask for.  steady: see `make_plan`."""
    from t2i.pipelines.loading.retry import make_plan
    from t2i.pipelines.text_to_image.step_cache import check_compiled, parse_cache

    check_compiled(parse_cache(overrides.cache) if overrides.cache else None, request.compile)
    wishes = DeviceOptions(
        dtype=overrides.dtype,
        offload=None if request.offload == "auto" else request.offload,
        bits=None if overrides.quantize is None else int(overrides.quantize.replace("none", "0")),
        tiling=overrides.tiling,
        compile=request.compile,
        deterministic=overrides.deterministic,
        safety=not overrides.no_safety,
        auto_retry=request.auto_retry,
    )
    return make_plan(
        files,
        device=request.device or _device_here(overrides.device),
        options=wishes,
        asked=[{name: one[name] for name in ("width", "height", "edit") if name in one} for one in asked],
        batch_size=request.batch_size,
        images=images,
        steady=steady,
    )


def say_safety(files: ModelFiles, overrides: ModelKey, say: Callable[[str], None]) -> None:
    """Say where the pictures of a model that has a safety checker will not be looked at by it."""
    if files.safety == "missing":
        say(f"note: {files.model.name} names a safety checker and comes without it: pictures are not checked")
    elif files.safety == "there" and overrides.no_safety:
        say("note: --no-safety: pictures are not checked")


def _device_here(overrides: str | None) -> str | None:
    """The device an image was made on, if this machine has such a one."""
    try:
        return overrides and choose_device(overrides)
    except UsageError:
        return None
