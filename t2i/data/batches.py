"""The order of images as a function of (seed, epoch), and what is drawn per image.

Images are counted over the whole run, over all processes: the first image seen has global index 0. Everything here
depends on the seed and on that index alone, so a batch cut elsewhere, a resumed run and another number of processes
see the same images in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from t2i.data.permutation import permute
from t2i.randomness import generator

BLOCK = 4096  # per-image draws are made for this many indices at once; part of the contract, changing it changes runs


def visit_order(seed: int, size: int, first: int, count: int, purpose: str = "order") -> Tensor:
    """Which visit of a table each of the global images first..first+count-1 is; size: visits of one epoch.

    Returns (count,) int64 in [0, size). Each epoch is its own permutation, so every visit comes once per epoch; a range
    may cross epochs. Computed for the asked images alone: nothing grows with size.
    """
    assert size > 0
    assert first >= 0
    assert count >= 0
    index = np.arange(first, first + count)
    epoch, place = np.divmod(index, size)
    order = np.empty(count, np.int64)
    for e in np.unique(epoch).tolist():
        here = epoch == e
        order[here] = permute(f"{seed}/{purpose}/{e}", place[here], size)
    return torch.from_numpy(order)


def flips(seed: int, first: int, count: int) -> Tensor:
    """Whether each of the global images first..first+count-1 is mirrored left-right: (count,) bool, one half true."""
    return _of_images(_coins, seed, first, count)


def corners(seed: int, first: int, count: int, places: int) -> Tensor:
    """Where each of the global images first..first+count-1 is cut: top and left, (count, 2) int64 in [0, places)."""
    return _of_images(partial(_places, places), seed, first, count)


def _of_images(draw: Callable[[int, int], Tensor], seed: int, first: int, count: int) -> Tensor:
    """What is drawn for a range of global images.  draw: (seed, block) -> the values of a block, (BLOCK, ...)."""
    assert first >= 0
    assert count >= 0
    start = first // BLOCK
    end = max(-(-(first + count) // BLOCK), start + 1)  # rounded up; of no images the type is asked for still
    drawn = torch.cat([draw(seed, block) for block in range(start, end)])
    return drawn[first - start * BLOCK :][:count].clone()


# Hold values of a pure function: it saves time between steps and cannot change what is drawn.
@lru_cache(maxsize=16)
def _coins(seed: int, block: int) -> Tensor:
    return torch.randint(2, (BLOCK,), generator=generator(seed, "flip", block)).bool()


@lru_cache(maxsize=16)
def _places(places: int, seed: int, block: int) -> Tensor:
    return torch.randint(places, (BLOCK, 2), generator=generator(seed, "crop", block))
