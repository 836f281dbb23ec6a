"""What holds for a prompt: its own wish, else the command line's. Which model draws it, and what that model is told."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from t2i.jobs.spec.request import Request
from t2i.jobs.spec.tasks import Wish
from t2i.pipelines.adapters.specs import NO_ADAPTERS, Adapters


class ModelWish(NamedTuple):
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

    def base(self) -> ModelWish:
        """The model alone, which stays loaded while adapters change."""
        return self._replace(adapters=NO_ADAPTERS)


def model_wish(request: Request, wish: Wish) -> ModelWish:
    """Which pipeline a prompt is drawn with."""
    cache = wish.cache or request.cache
    kinds = ("loras", "embeddings", "ip_adapters")
    own = [getattr(request, kind) if getattr(wish, kind) is None else getattr(wish, kind) for kind in kinds]
    return ModelWish(
        wish.model or request.model,
        wish.revision or request.revision,
        wish.dtype or request.dtype,
        wish.device,
        wish.quantize or request.quantize,
        request.tiling if wish.tiling is None else wish.tiling,
        request.deterministic if wish.deterministic is None else wish.deterministic,
        request.no_safety if wish.no_safety is None else wish.no_safety,
        None if cache == "none" else cache,
        _read_adapters(*own),
    )


_read_adapters = lru_cache(maxsize=1024)(Adapters.read)


def complete(request: Request, wish: Wish) -> dict[str, Any]:
    """What to tell `TextToImage.settings`: the prompt's own wish, else the command line's."""
    own = {name: getattr(wish, name) for name in ("negative", "steps", "guidance", "width", "height", "scheduler")}
    said = {name: getattr(request, name) if value is None else value for name, value in own.items()}
    edit = wish.edit.over(request.edit)
    raw = request.raw if wish.raw is None else wish.raw
    chunks = request.chunks if wish.chunks is None else wish.chunks
    # What is usual is not said: the names of a batch's jobs are made from this.
    said |= {"weights": False} if raw else {}
    said |= {} if chunks is None else {"chunks": chunks}
    return said | ({"edit": edit} if edit else {})
