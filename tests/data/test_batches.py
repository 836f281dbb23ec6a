import torch
from hypothesis import given
from hypothesis import strategies as st

from t2i.data.batches import BLOCK, corners, flips, visit_order

seeds = st.integers(0, 2**63 - 1)


@given(seed=seeds, visits=st.integers(1, 50), first=st.integers(0, 300), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_order_does_not_depend_on_how_it_is_cut(seed, visits, first, cuts):
    whole = visit_order(seed, visits, first, sum(cuts))
    starts = [first + sum(cuts[:k]) for k in range(len(cuts))]
    parts = [visit_order(seed, visits, start, count) for start, count in zip(starts, cuts, strict=True)]
    assert whole.dtype == torch.int64
    assert torch.equal(torch.cat([torch.empty(0, dtype=torch.int64), *parts]), whole)


@given(seed=seeds, visits=st.integers(1, 80), epoch=st.integers(0, 5))
def test_every_epoch_visits_everything_once(seed, visits, epoch):
    order = visit_order(seed, visits, epoch * visits, visits)
    assert torch.equal(order.sort().values, torch.arange(visits))


def test_epochs_and_seeds_have_orders_of_their_own():
    one, two = visit_order(0, 1000, 0, 2000).split(1000)
    assert (one != two).float().mean() > 0.9
    assert (one != visit_order(1, 1000, 0, 1000)).float().mean() > 0.9
    assert (one != torch.arange(1000)).float().mean() > 0.9


def test_changing_a_returned_order_does_not_change_the_next():
    visit_order(3, 10, 0, 10).zero_()
    flips(3, 0, 10).zero_()
    assert visit_order(3, 10, 0, 10).sum() == 45
    assert torch.equal(flips(3, 0, 10), flips(3, 0, 20)[:10])
    assert flips(3, 0, 64).any()


@given(seed=seeds, first=st.integers(0, 3 * BLOCK), cuts=st.lists(st.integers(0, BLOCK + 100), max_size=4))
def test_flips_do_not_depend_on_how_they_are_cut(seed, first, cuts):
    whole = flips(seed, first, sum(cuts))
    starts = [first + sum(cuts[:k]) for k in range(len(cuts))]
    parts = [flips(seed, start, count) for start, count in zip(starts, cuts, strict=True)]
    assert whole.dtype == torch.bool
    assert torch.equal(torch.cat([torch.empty(0, dtype=torch.bool), *parts]), whole)


def test_half_of_the_flips_are_true_and_blocks_differ():
    drawn = flips(0, 0, 4 * BLOCK)
    assert abs(drawn.float().mean() - 0.5) < 5 * 0.5 / (4 * BLOCK) ** 0.5  # five standard deviations
    blocks = drawn.split(BLOCK)
    for other in (*blocks[1:], flips(1, 0, BLOCK)):
        assert 0.4 < (blocks[0] != other).float().mean() < 0.6


@given(
    seed=seeds,
    first=st.integers(0, 3 * BLOCK),
    cuts=st.lists(st.integers(0, BLOCK + 100), max_size=4),
    places=st.integers(1, 100),
)
def test_corners_do_not_depend_on_how_they_are_cut(seed, first, cuts, places):
    whole = corners(seed, first, sum(cuts), places)
    starts = [first + sum(cuts[:k]) for k in range(len(cuts))]
    parts = [corners(seed, start, count, places) for start, count in zip(starts, cuts, strict=True)]
    assert torch.equal(torch.cat([torch.empty(0, 2, dtype=torch.int64), *parts]), whole)
    assert ((whole >= 0) & (whole < places)).all()


def test_corners_are_everywhere_alike():
    """Each of 9 places across and 9 down as often as the others, each pair of them too; blocks and seeds differ."""
    drawn = corners(0, 0, 4 * BLOCK, 9)
    often = torch.zeros(9, 9).index_put_(tuple(drawn.T), torch.tensor(1.0), accumulate=True)
    expected = 4 * BLOCK / 81
    assert (often - expected).abs().max() < 5 * expected**0.5
    for other in (*drawn.split(BLOCK)[1:], corners(1, 0, BLOCK, 9)):
        assert (drawn[:BLOCK] != other).any(1).float().mean() > 0.9
