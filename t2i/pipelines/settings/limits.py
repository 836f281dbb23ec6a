"""Ranges of the options, checked before anything heavy is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from t2i.config.options import MAX_AT_ONCE, MAX_GUIDANCE, MAX_IMAGES, MAX_SEED, MAX_SIDE, MAX_STEPS
from t2i.errors import UsageError

MAX_PROMPT_BYTES = 1_000_000


def check_steps(steps: int) -> int:
    """Return the steps.  Raises UsageError unless 1 <= steps <= 1000."""
    if not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"steps: got {steps}, allowed 1 to {MAX_STEPS}")
    return steps


def check_guidance(guidance: float) -> float:
    """Return the guidance.  Raises UsageError unless 0 <= guidance <= 100 (NaN is refused too)."""
    if not (math.isfinite(guidance) and 0 <= guidance <= MAX_GUIDANCE):
        raise UsageError(f"guidance: got {guidance}, allowed 0 to {MAX_GUIDANCE:g}; 1 or less turns it off")
    return guidance


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return the seeds.  Raises UsageError for one outside 0 .. 2^64 - 1."""
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise UsageError(f"seed: got {seed}, allowed 0 to {MAX_SEED} (2^64 - 1), for every image")
    return tuple(seeds)


def check_side(name: str, pixels: int) -> int:
    """Return the pixels.  Raises UsageError unless 1 <= pixels <= 8192; for multiples see `check_multiple`."""
    if not 1 <= pixels <= MAX_SIDE:
        raise UsageError(f"{name}: got {pixels}, allowed 1 to {MAX_SIDE} pixels")
    return pixels


def check_multiple(name: str, pixels: int, multiple: int) -> int:
    """Return the pixels.  Raises UsageError, naming the nearest size, unless they are a multiple of `multiple`."""
    if pixels % multiple:
        below, above = pixels // multiple * multiple, -(-pixels // multiple) * multiple
        near = above if above - pixels <= pixels - below or below == 0 else below
        raise UsageError(
            f"{name}: got {pixels}, this model needs a multiple of {multiple}", f"the nearest size is {near}"
        )
    return pixels


def check_prompt(prompt: str, name: str = "prompt") -> str:
    """Return the prompt.  Raises UsageError: over 1 MB, or with undecodable bytes from the command line."""
    try:
        size = len(prompt.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(f"the {name} is not valid UTF-8 text") from None
    if size > MAX_PROMPT_BYTES:
        raise UsageError(f"the {name} has {size} bytes, allowed are {MAX_PROMPT_BYTES}")
    return prompt


def check_image_count(count: int) -> int:
    """Return the count.  Raises UsageError unless 1 <= count <= 1,000,000 (per prompt)."""
    if not 1 <= count <= MAX_IMAGES:
        raise UsageError(f"images per prompt: got {count}, allowed 1 to {MAX_IMAGES}")
    return count


def check_batch_size(size: int) -> int:
    """Return the size.  Raises UsageError unless 1 <= size <= 1024."""
    if not 1 <= size <= MAX_AT_ONCE:
        raise UsageError(f"batch size: got {size}, allowed 1 to {MAX_AT_ONCE}")
    return size


def check_ends(first: int, last: int) -> tuple[int, int]:
    """Return the seeds at both ends of an interpolation.  Raises UsageError: equal, or out of range."""
    if first == last:
        raise UsageError(f"interpolate: got seed {first} twice; give two seeds")
    check_seeds((first, last))
    return first, last
