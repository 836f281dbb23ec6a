"""Step caching: a step reuses part of the network's results of an earlier one, by diffusers' own hooks.

It saves time and changes the image: `docs/speed.md` says by how much, and the recipe records it.

reuse, taylor   Every Nth step is computed in full. Between them the network's inner blocks repeat their last result
                (reuse: the idea of DeepCache, Ma et al. 2024), or extrapolate from the last two full steps (taylor:
                Liu et al. 2025, arXiv 2503.06923). Both are diffusers' TaylorSeer hook, of order 0 and 1. The number of
                the step alone decides, so that image k is the same in any batch, to rounding.
first-block     A step is skipped where the first block's residual has changed by less than a threshold (diffusers'
                FirstBlockCache). The mean over the whole batch decides, so that image k would depend on the others:
                images are drawn one at a time.

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

FULL_STEPS = 3  # the first steps, which decide the composition, are computed in full
# Networks with which first-block works (diffusers 0.42); it does not know, or fails with, the blocks of others.
FIRST_BLOCK = ("FluxTransformer2DModel", "PixArtTransformer2DModel", "QwenImageTransformer2DModel")
# The expensive layers of a transformer's blocks that return tensors, for all registered models.
LAYERS = r"(.*_blocks|blocks|layers)\.\d+\.(attn\d?|attention|ff|ff_context|feed_forward|(img|txt|proj)_mlp|proj_out)"


@dataclass(frozen=True)
class Method:
    """A method of caching.  what: the meaning of its value; low, high: its range; alone: one image at a time."""

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
        """Return whether images must be drawn one at a time, so as not to depend on each other."""
        return CACHES[self.name].alone


def parse_cache(text: str) -> Cache | None:
    """Parse `NAME[:VALUE]`; None for "none".  Raises UsageError."""
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
    """Raise UsageError for both: the hooks count steps, and torch would compile the network anew for each count."""
    if cache is not None and compiled:
        raise UsageError(
            f"`cache={cache}` with `compile`: every step would be compiled anew", "leave `compile` out, or `cache=none`"
        )


def check_network(cache: Cache | None, network: str) -> None:
    """Check a cache by the class of the network, before it is loaded.  Raises UsageError."""
    if cache is not None and cache.name == "first-block" and network not in FIRST_BLOCK:
        raise _unfit(cache, network, has_layers=True)


def _unfit(cache: Cache, network: str, has_layers: bool) -> UsageError:
    fit = ["reuse", "taylor"] if has_layers else []
    fit += ["first-block"] if network in FIRST_BLOCK else []
    hint = f"with it work: {', '.join(fit)}" if fit else "leave `cache` out"
    return UsageError(f"cache {cache.name!r} does not work with this model's network ({network})", hint)


class StepCache:
    """The hooks of one pipeline's network.  Draw within `drawing`, which begins with empty caches."""

    def __init__(self, pipe: Any, cache: Cache) -> None:
        """Install the hooks.  Raises UsageError, naming methods that work, where the network does not support it."""
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
        """Cache the steps of one batch.  The pipeline's scheduler must be a fresh one."""
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
            self._forget()  # and free their memory

    def _next_step(self) -> None:
        self._calls = 0

    def _enter(self, *_: Any) -> None:
        """Number the calls of a step: a pipeline may call the network once per branch of guidance, each with a cache.

        Some of diffusers' pipelines name their calls for the hooks and some do not, so all are numbered here.
        """
        from diffusers.models.cache_utils import CacheMixin

        # It uses nothing of its class, so it works with a U-Net, which is none.
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
    """Return the network that a pipeline calls in every step.  Raises ModelError where there is none."""
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is None:
        raise ModelError(f"a {type(pipe).__name__} has no network whose steps could be cached", "leave `cache` out")
    return network


def has_layers(network: Any) -> bool:
    """Return whether a network has layers whose results can be cached."""
    pattern = layers_of(network)
    return any(re.fullmatch(pattern, name) for name, _ in network.named_modules())


def layers_of(network: Any) -> str:
    """Return a pattern for the names of the modules whose results are cached.

    Of a U-Net all blocks but the outermost on both sides, which have the detail and change most from step to step.
    """
    levels = len(getattr(network, "down_blocks", ()))
    if levels < 2:
        return LAYERS
    down = "|".join(str(k) for k in range(1, levels))
    up = "|".join(str(k) for k in range(levels - 1))
    blocks = rf"(down_blocks\.({down})|mid_block|up_blocks\.({up}))"
    return rf"{blocks}\.(resnets\.\d+|attentions\.\d+\.transformer_blocks\.\d+)"
