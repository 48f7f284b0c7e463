"""Dividing batches and data sets: nothing lost, nothing doubled."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.errors import InvalidInput
from hivenode.spec.split import counts, split

weights = st.lists(st.floats(0.0, 1e12, allow_nan=False), min_size=1, max_size=40)


def test_what_is_left_over_goes_to_the_largest_remainders() -> None:
    assert split(10, [1, 1, 1]) == (range(4), range(4, 7), range(7, 10))
    assert counts(10, [0.26, 0.48, 0.26]) == (3, 5, 2)
    assert counts(7, [3, 1]) == (5, 2)
    assert counts(3, [0.0, 5.0]) == (0, 3)
    assert counts(3, [0.0, 0.0]) == (2, 1)
    assert counts(0, [1.0, 2.0]) == (0, 0)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**60), weights)
def test_ranges_cover_every_index_once(total: int, weights: list[float]) -> None:
    ranges = split(total, weights)
    assert len(ranges) == len(weights)
    assert ranges[0].start == 0
    assert ranges[-1].stop == total
    assert all(a.stop == b.start for a, b in itertools.pairwise(ranges))
    assert all(r.stop >= r.start and r.step == 1 for r in ranges)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 100_000), weights)
def test_each_share_is_within_one_of_the_exact(total: int, weights: list[float]) -> None:
    if sum(weights) == 0:
        return
    for got, weight in zip(counts(total, weights), weights, strict=True):
        assert abs(got - total * (weight / sum(weights))) <= 1 + 1e-6
        assert weight > 0 or got == 0


@pytest.mark.parametrize(
    ("total", "weights"), [(-1, [1.0]), (1, []), (1, [-1.0]), (1, [float("nan")]), (1, [float("inf")])]
)
def test_nonsense_is_refused(total: int, weights: list[float]) -> None:
    with pytest.raises(InvalidInput):
        split(total, weights)
