"""What holds for a prompt: its own wish, else the command line's. Which model draws it, and what that model is told."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.tasks import PromptOverrides
from t2i.pipelines.adapters.specs import NO_ADAPTERS, Adapters


class ModelKey(NamedTuple):
    """What decides which pipeline draws, and in what."""

    model: str
    revision: str | None
    dtype: str | None
    device: str | None
    quantize: str | None = None
    tiling: bool | None = None
    deterministic: bool = False
    no_safety: bool = False
    cache: str | None = None
    adapters: Adapters = NO_ADAPTERS

    def base(self) -> ModelKey:
        """The model alone, which stays loaded while adapters change."""
        return self._replace(adapters=NO_ADAPTERS)


def model_key(request: GenerateRequest, overrides: PromptOverrides) -> ModelKey:
    """Which pipeline a prompt is drawn with."""
    cache = overrides.cache or request.cache
    kinds = ("loras", "embeddings", "ip_adapters")
    own = [getattr(request, kind) if getattr(overrides, kind) is None else getattr(overrides, kind) for kind in kinds]
    return ModelKey(
        overrides.model or request.model,
        overrides.revision or request.revision,
        overrides.dtype or request.dtype,
        overrides.device,
        overrides.quantize or request.quantize,
        request.tiling if overrides.tiling is None else overrides.tiling,
        request.deterministic if overrides.deterministic is None else overrides.deterministic,
        request.no_safety if overrides.no_safety is None else overrides.no_safety,
        None if cache == "none" else cache,
        _read_adapters(*own),
    )


_read_adapters = lru_cache(maxsize=1024)(Adapters.read)


def complete(request: GenerateRequest, overrides: PromptOverrides) -> dict[str, Any]:
    """What to tell `TextToImage.settings`: the prompt's own wish, else the command line's."""
    own = {name: getattr(overrides, name) for name in ("negative", "steps", "guidance", "width", "height", "scheduler")}
    said = {name: getattr(request, name) if value is None else value for name, value in own.items()}
    edit = overrides.edit.over(request.edit)
    raw = request.raw if overrides.raw is None else overrides.raw
    chunks = request.chunks if overrides.chunks is None else overrides.chunks
    # What is usual is not said: the names of a batch's jobs are made from this.
    said |= {"weights": False} if raw else {}
    said |= {} if chunks is None else {"chunks": chunks}
    return said | ({"edit": edit} if edit else {})
