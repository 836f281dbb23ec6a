"""The order of images as a function of (seed, epoch), and what is drawn per image.

Images are counted over the whole run, over all processes: the first image seen has global index 0. Everything here
depends on the seed and on that index alone, so a batch cut elsewhere, a resumed run and another number of processes
see the same images in the same order.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from t2i.randomness import generator

BLOCK = 4096  # per-image draws are made for this many indices at once; part of the contract, changing it changes runs


def visit_order(seed: int, visits_per_epoch: int, first: int, count: int) -> Tensor:
    """Which visit of the table each of the global images first..first+count-1 is.

    Returns (count,) int64 in [0, visits_per_epoch). Each epoch is its own permutation, so every visit comes once per
    epoch; a range may cross epochs.
    """
    assert visits_per_epoch > 0
    assert first >= 0
    assert count >= 0
    index = torch.arange(first, first + count)
    epoch, place = index // visits_per_epoch, index % visits_per_epoch
    order = torch.empty(count, dtype=torch.int64)
    for e in range(int(epoch[0]), int(epoch[-1]) + 1) if count else ():
        here = epoch == e
        order[here] = _permutation(seed, e, visits_per_epoch)[place[here]]
    return order


def flips(seed: int, first: int, count: int) -> Tensor:
    """Whether each of the global images first..first+count-1 is mirrored left-right: (count,) bool, one half true."""
    assert first >= 0
    assert count >= 0
    start = first // BLOCK
    end = -(-(first + count) // BLOCK)  # rounded up
    if count == 0:
        return torch.empty(0, dtype=torch.bool)
    drawn = torch.cat([_coins(seed, block) for block in range(start, end)])
    return drawn[first - start * BLOCK :][:count].clone()


# Both caches hold values of pure functions: they save time between steps and cannot change what is drawn.


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, "order", epoch))


@lru_cache(maxsize=16)
def _coins(seed: int, block: int) -> Tensor:
    return torch.randint(2, (BLOCK,), generator=generator(seed, "flip", block)).bool()
