"""Step caching: a step takes over part of what the network computed in an earlier one, by diffusers' own hooks.

It saves time and changes the picture: `docs/speed.md` says by how much, and the recipe records it.

reuse, taylor   Every Nth step is computed in full. Between them the network's inner blocks give what they gave last
                (reuse: the idea of DeepCache, Ma et al. 2024), or what the last two full steps extrapolate to (taylor:
                Liu et al. 2025, arXiv 2503.06923). Both are diffusers' TaylorSeer hook, of order 0 and 1. The number of
                the step alone decides, so that image k is the same in any batch, to rounding.
first-block     A step is skipped where the first block's residual has changed by less than a threshold (diffusers'
                FirstBlockCache). The mean over the whole batch decides, so that image k would depend on the others:
                pictures are drawn one at a time.

Not here: Pyramid Attention Broadcast (on `mini` it saves less than 5 %, and where a pipeline calls its network for each
branch of guidance by itself, it takes one branch's attention for the other's); FasterCache and MagCache (made for
video, and for a curve that has to be measured for each model and number of steps).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from t2i.errors import ModelError, UsageError
from t2i.pipelines.text_to_image.step_hooks import observe

FULL_STEPS = 3  # the first steps, which decide what the picture shows, are computed in full
# Where first-block draws what it should (diffusers 0.42): others' blocks it does not know, or fails at.
FIRST_BLOCK = ("FluxTransformer2DModel", "PixArtTransformer2DModel", "QwenImageTransformer2DModel")
# What costs time in a transformer's blocks, as all of the zoo's are built, and returns tensors.
LAYERS = r"(.*_blocks|blocks|layers)\.\d+\.(attn\d?|attention|ff|ff_context|feed_forward|(img|txt|proj)_mlp|proj_out)"


@dataclass(frozen=True)
class Method:
    """A way of caching.  what: its value is; low, high: the range of that; alone: one picture at a time."""

    what: str
    default: float
    low: float
    high: float
    alone: bool = False


CACHES = {
    "reuse": Method("every how many steps to compute in full", 2, 2, 10),
    "taylor": Method("every how many steps to compute in full", 2, 2, 10),
    "first-block": Method("the change below which a step is skipped", 0.1, 0.001, 1, alone=True),
}


@dataclass(frozen=True)
class Cache:
    """A method and its value: "reuse:2"."""

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name}:{self.value:g}"

    @property
    def alone(self) -> bool:
        """Whether pictures must be drawn one at a time, to be the same whatever else is drawn."""
        return CACHES[self.name].alone


def parse_cache(text: str) -> Cache | None:
    """`NAME[:VALUE]`; None for "none".  Raises UsageError."""
    name, colon, number = text.partition(":")
    if text == "none":
        return None
    if name not in CACHES:
        raise UsageError(f"cache: got {text[:40]!r}", f"one of {', '.join(CACHES)}, none; with a value: reuse:3")
    method = CACHES[name]
    try:
        value = float(number) if colon else method.default
    except ValueError:
        value = float("nan")
    whole = method.default == int(method.default)
    if not method.low <= value <= method.high or (whole and value != int(value)):
        kind = "a whole number " if whole else ""
        raise UsageError(
            f"cache: got {text[:40]!r}, expected {kind}from {method.low:g} to {method.high:g}: {method.what}"
        )
    return Cache(name, value)


def check_compiled(cache: Cache | None, compiled: bool) -> None:
    """Raises UsageError for both: the hooks count their steps, and each number of them would be compiled anew."""
    if cache is not None and compiled:
        raise UsageError(
            f"cache {cache} with --compile: every step would be compiled anew", "leave --compile out, or --cache none"
        )


def check_network(cache: Cache | None, network: str) -> None:
    """What can be judged by the class of a network before it is loaded.  Raises UsageError."""
    if cache is not None and cache.name == "first-block" and network not in FIRST_BLOCK:
        raise _unfit(cache, network, has_layers=True)


def _unfit(cache: Cache, network: str, has_layers: bool) -> UsageError:
    fit = ["reuse", "taylor"] if has_layers else []
    fit += ["first-block"] if network in FIRST_BLOCK else []
    hint = f"with it work: {', '.join(fit)}" if fit else "leave --cache out"
    return UsageError(f"cache {cache.name!r} does not work with this model's network ({network})", hint)


class StepCache:
    """The hooks of one pipeline's network.  Draw within `drawing`, which begins with nothing remembered."""

    def __init__(self, pipe: Any, cache: Cache) -> None:
        """Raises UsageError where the network cannot, naming what works with it."""
        self.pipe = pipe
        self.cache = cache
        self._network = network_of(pipe)
        self._calls = 0
        self._context: AbstractContextManager[None] | None = None
        if cache.name == "first-block":
            self._skip_steps()
        else:
            self._cache_layers()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """One batch.  The pipeline's scheduler must be a fresh one."""
        observe(self.pipe.scheduler, lambda *_: self._next_step())
        hooks = (
            self._network.register_forward_pre_hook(self._enter),
            self._network.register_forward_hook(self._leave, always_call=True),
        )
        self._forget()
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._forget()  # and gives its memory back

    def _next_step(self) -> None:
        self._calls = 0

    def _enter(self, *_: Any) -> None:
        """Pipelines may call the network once for each branch of guidance: each remembers for itself.

        Some of diffusers' pipelines name their calls for the hooks and some do not, so all are numbered here.
        """
        from diffusers.models.cache_utils import CacheMixin

        # of that class it uses nothing: a U-Net, which is none, can be told as well
        self._context = CacheMixin.cache_context(self._network, f"call {self._calls}")
        self._context.__enter__()
        self._calls += 1

    def _leave(self, *_: Any) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None

    def _forget(self) -> None:
        from diffusers.hooks import HookRegistry

        self._calls = 0
        HookRegistry.check_if_exists_or_initialize(self._network).reset_stateful_hooks()

    def _cache_layers(self) -> None:
        import torch
        from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

        if not has_layers(self._network):
            raise self._unfit()
        dtype = self._network.dtype if self._network.dtype.is_floating_point else torch.bfloat16
        config = TaylorSeerCacheConfig(
            cache_interval=int(self.cache.value),
            disable_cache_before_step=FULL_STEPS,
            max_order=0 if self.cache.name == "reuse" else 1,
            taylor_factors_dtype=dtype,
            cache_identifiers=[layers_of(self._network)],
        )
        self._apply(apply_taylorseer_cache, config)

    def _skip_steps(self) -> None:
        from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

        if type(self._network).__name__ not in FIRST_BLOCK:
            raise self._unfit()
        self._apply(apply_first_block_cache, FirstBlockCacheConfig(threshold=self.cache.value))

    def _apply(self, apply: Callable[[Any, Any], None], config: Any) -> None:
        from diffusers.hooks import HookRegistry

        apply(self._network, config)
        HookRegistry.check_if_exists_or_initialize(self._network).invalidate_child_registries_cache()

    def _unfit(self) -> UsageError:
        return _unfit(self.cache, type(self._network).__name__, has_layers(self._network))


def network_of(pipe: Any) -> Any:
    """The network that a pipeline calls in every step.  Raises ModelError where it has no such."""
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is None:
        raise ModelError(f"a {type(pipe).__name__} has no network whose steps could be cached", "leave --cache out")
    return network


def has_layers(network: Any) -> bool:
    """Whether there is anything to keep."""
    pattern = layers_of(network)
    return any(re.fullmatch(pattern, name) for name, _ in network.named_modules())


def layers_of(network: Any) -> str:
    """A pattern for the names of the modules whose results are kept.

    Of a U-Net all blocks but the outermost of either side, which hold the detail and change most from step to step.
    """
    levels = len(getattr(network, "down_blocks", ()))
    if levels < 2:
        return LAYERS
    down = "|".join(str(k) for k in range(1, levels))
    up = "|".join(str(k) for k in range(levels - 1))
    blocks = rf"(down_blocks\.({down})|mid_block|up_blocks\.({up}))"
    return rf"{blocks}\.(resnets\.\d+|attentions\.\d+\.transformer_blocks\.\d+)"
