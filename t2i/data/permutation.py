"""A keyed permutation of 0..size-1 for any size, computed place by place.

    place  ->  (left, right) = divmod(place, b)          a = ceil(sqrt(size)), b = ceil(size / a)
    left   <-  (left + F_k(right)) mod a                 rounds k = 0, 2, 4, ...
    right  <-  (right + F_k(left)) mod b                 rounds k = 1, 3, 5, ...

Each round is invertible, so together they permute 0..ab-1. Where the result is beyond size they are applied again until
it is not (cycle-walking): every cycle that begins inside comes back inside, which leaves a permutation of 0..size-1.
Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", the generalised Feistel construction; F_k is the
finaliser of SplitMix64 (Steele, Lea and Flood 2014) of its argument and the round's key. For shuffling, not for
secrecy.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

# With 8 rounds the orders of five and six places were not equally frequent, with 12 they are (a test counts them).
ROUNDS = 12  # never change it, or anything in this file: that changes runs
MAX_SIZE = 2**62

U64 = NDArray[np.uint64]


def permute(key: str, places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return the image of each place: (n,) int64 in [0, size) -> (n,) int64 in [0, size), no two the same.

    A pure function of key, place and size; time and memory grow with n alone.
    """
    assert 0 < size <= MAX_SIZE
    assert not len(places) or 0 <= places.min() <= places.max() < size
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    keys = _keys(key)
    found = _rounds(places.astype(np.uint64), keys, a, b)
    while len(outside := np.flatnonzero(found >= size)):
        found[outside] = _rounds(found[outside], keys, a, b)
    return found.astype(np.int64)


def _rounds(x: U64, keys: U64, a: int, b: int) -> U64:
    left, right = np.divmod(x, np.uint64(b))
    for k, key in enumerate(keys):
        if k % 2:
            right = (right + _mix(left ^ key)) % np.uint64(b)
        else:
            left = (left + _mix(right ^ key)) % np.uint64(a)
    return left * np.uint64(b) + right


def _mix(x: U64) -> U64:
    """Return SplitMix64's finaliser without its last bit: 0..2**63-1, so that adding a side below 2**32 stays exact."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # wraps around, as intended
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(1)


def _keys(key: str) -> U64:
    digest = hashlib.shake_256(key.encode()).digest(8 * ROUNDS)
    return np.frombuffer(digest, "<u8").astype(np.uint64)
