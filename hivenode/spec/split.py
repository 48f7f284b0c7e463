"""Dividing whole things: batches, data sets and layers into consecutive ranges, with nothing lost or doubled.

The planner and the workers both call this, so that what was planned is what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hivenode.errors import InvalidInput


def counts(total: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in proportion to `weights` that sum exactly to `total`: the method of largest remainders.

    Deterministic: equal remainders go to the earlier position. A weight of 0 gets 0 unless all weights are 0,
    which counts as all equal.

    Args:
        total: how many there are to give, >= 0.
        weights: at least one; finite and >= 0; they need not sum to 1.

    Raises:
        InvalidInput: no weights, a negative or non-finite weight, or a negative total.
    """
    if total < 0 or not weights or any(not math.isfinite(w) or w < 0 for w in weights):
        raise InvalidInput(
            f"Cannot divide {total} by the weights {list(weights)}.",
            fix="Give a total of at least 0 and one or more finite weights of at least 0.",
        )
    # Dividing by the largest first keeps the sum finite; correctly rounded, so every node computes the same.
    largest = max(weights)
    scaled = [w / largest for w in weights] if largest > 0 else [1.0] * len(weights)
    whole = math.fsum(scaled)
    exact = [total * (w / whole) for w in scaled]
    given = [math.floor(share) for share in exact]
    left = total - sum(given)
    order = sorted((i for i, w in enumerate(scaled) if w > 0), key=lambda i: (given[i] - exact[i], i))
    for place in range(left):
        given[order[place % len(order)]] += 1
    for _ in range(-left):  # rounding of very large totals may have given one too many
        given[max(range(len(given)), key=given.__getitem__)] -= 1
    return tuple(given)


def split(total: int, weights: Sequence[float]) -> tuple[range, ...]:
    """Consecutive ranges over `range(total)`, one per weight, in proportion to the weights.

    Together they cover every index exactly once. A range may be empty. `split(10, [1, 1, 1])` is
    `range(0, 4), range(4, 7), range(7, 10)`.

    Raises:
        InvalidInput: as `counts`.
    """
    ranges = []
    start = 0
    for count in counts(total, weights):
        ranges.append(range(start, start + count))
        start += count
    return tuple(ranges)


def member_range(total: int, members: Sequence[str], weights: Mapping[str, float], me: str) -> range:
    """This member's part of `range(total)`: the members' ranges cover it exactly, in rank order.

    Args:
        members: ids in the current view, in rank order.
        weights: share of each planned node, renormalised here over the members.
    """
    return split(total, [weights[member] for member in members])[members.index(me)]


def held_out(samples: int, test_fraction: float) -> int:
    """Samples of the test part: the nearest whole number, at least one when the fraction is above 0, and the training
    part keeps at least one.

    Args:
        test_fraction: in [0, 1).
    """
    return min(max(round(samples * test_fraction), 1), samples - 1) if test_fraction > 0 else 0
