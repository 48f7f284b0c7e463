"""The arithmetic: exact to the bit, and the same however the work is divided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.training.exchange.reduction import cut, digest_of, reduce_into
from hivenode.training.exchange.scratch import PIECE


@settings(deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10**7), st.lists(st.floats(0.01, 1e4), min_size=1, max_size=8))
def test_slices_cover_the_vector_in_proportion(count: int, sizes: list[float]) -> None:
    ranks = [3 * index for index in range(len(sizes))]
    bounds = cut(count, ranks, dict(zip(ranks, sizes, strict=True)))
    assert bounds[0] == 0
    assert bounds[-1] == count
    widths = np.diff(bounds)
    assert (widths >= 0).all()
    assert np.abs(widths - count * np.array(sizes) / sum(sizes)).max() <= 2


@pytest.mark.parametrize("size", [1, 5, PIECE, PIECE + 1, 3 * PIECE - 7])
def test_mean_is_added_up_in_the_order_given(size: int) -> None:
    rng = np.random.default_rng(size)
    inputs = [rng.standard_normal(size).astype(np.float32) * np.float32(10.0**index) for index in range(4)]
    weights = [3.0, 0.0, 5.0, 0.25]
    out = np.empty(size, np.float32)
    assert reduce_into(out, inputs, weights) == ()
    expected = inputs[0] * np.float32(3)
    for values, weight in zip(inputs[1:], weights[1:], strict=True):
        expected = expected + values * np.float32(weight)
    expected = expected / np.float32(8.25)
    assert out.tobytes() == expected.tobytes()


def test_no_weight_at_all_gives_zeros() -> None:
    out = np.ones(3, np.float32)
    assert reduce_into(out, [np.ones(3, np.float32)] * 2, [0.0, 0.0]) == ()
    assert out.tolist() == [0.0, 0.0, 0.0]


def test_culprits_are_those_with_the_bad_values_only() -> None:
    good, bad = np.ones(4, np.float32), np.array([1, np.inf, 2, np.nan], np.float32)
    assert reduce_into(np.empty(4, np.float32), [good, bad, good], [1.0, 0.0, 1.0]) == (1,)
    huge = np.full(4, 3e38, np.float32)
    assert reduce_into(np.empty(4, np.float32), [huge, huge], [2.0, 2.0]) == ()


@pytest.mark.parametrize("size", [0, 1, 2, 1023, PIECE + 3])
def test_digest_sees_every_single_bit_and_copies(size: int) -> None:
    values = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    copy = np.zeros(size, np.float32)
    digest = digest_of(values, copy)
    assert copy.tobytes() == values.tobytes()
    assert digest == digest_of(values)
    for index in {0, size // 2, size - 1} if size else set():
        other = values.copy()
        other.view(np.uint32)[index] ^= 1
        assert digest_of(other) != digest
