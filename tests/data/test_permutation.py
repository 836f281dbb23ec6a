"""The keyed permutation: each place once, every order as likely as any other, and no cost that grows with the set."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i.data.batches import visit_order
from t2i.data.permutation import permute

keys = st.text(max_size=20)


@settings(max_examples=200)
@given(key=keys, size=st.integers(1, 3000))
def test_each_place_is_taken_once(key: str, size: int) -> None:
    assert np.array_equal(np.sort(permute(key, np.arange(size), size)), np.arange(size))


@given(key=keys, size=st.integers(2, 2**40), data=st.data())
def test_no_two_of_a_large_set_meet(key: str, size: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=50, unique=True)), np.int64)
    places = np.union1d(places, np.arange(max(0, size - 50), size))
    found = permute(key, places, size)
    assert found.dtype == np.int64
    assert 0 <= found.min() <= found.max() < size
    assert len(np.unique(found)) == len(places)


@given(key=keys, size=st.integers(1, 2**40), first=st.integers(0, 2**40), cut=st.integers(0, 40))
def test_a_place_does_not_depend_on_its_company(key: str, size: int, first: int, cut: int) -> None:
    places = (first + np.arange(40)) % size
    parts = [permute(key, part, size) for part in (places[:cut], places[cut:])]
    assert np.array_equal(permute(key, places, size), np.concatenate(parts))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_of_a_few_is_equally_likely(size: int) -> None:
    """Chi-square over all orders; its deviation is sqrt(2 degrees)."""
    counts = Counter(tuple(permute(f"{k}", np.arange(size), size).tolist()) for k in range(3000))
    orders = math.factorial(size)
    expected = 3000 / orders
    chi = sum((counts[order] - expected) ** 2 / expected for order in itertools.permutations(range(size)))
    assert chi < orders - 1 + 4 * math.sqrt(2 * orders)


@pytest.mark.parametrize("size", [1000, 50_000, 10**6 + 3, 2**40])
def test_places_go_anywhere(size: int) -> None:
    """Consecutive places, and one place under many keys, reach all sixteenths equally, without drift."""
    count = min(size, 8000)
    of_places = permute("a", np.arange(count), size)
    of_keys = np.concatenate([permute(f"{k}", np.arange(3, 4), size) for k in range(2000)])
    for found in (of_places, of_keys):
        bins = np.bincount(found * 16 // size, minlength=16)
        chi = ((bins - len(found) / 16) ** 2 / (len(found) / 16)).sum()
        assert chi < 15 + 4 * math.sqrt(30)
    steps = np.diff(of_places) % size
    assert Counter(steps.tolist()).most_common(1)[0][1] < 30 if size == 1000 else len(np.unique(steps)) > 0.9 * count
    for lag in (1, 2, 16):
        assert abs(np.corrcoef(of_places[:-lag], of_places[lag:])[0, 1]) < 5 / math.sqrt(count)
    assert abs(np.corrcoef(np.arange(count), of_places)[0, 1]) < 5 / math.sqrt(count)


def test_epochs_seeds_and_purposes_differ() -> None:
    size = 10_000
    orders = [visit_order(0, size, 0, size), visit_order(0, size, size, size), visit_order(1, size, 0, size)]
    for a, b in itertools.combinations(orders, 2):
        assert (a == b).sum() < 10  # one place in common, on average
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


def test_a_batch_of_a_trillion_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        found = visit_order(0, 2**40, 3 * 2**40 - 100, 256)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.unique()) > 250  # from two epochs
    assert peak < 1_000_000
