"""Who owns how much: by what the links were measured to carry, so that all are done at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.training.exchange.effects import Phase, Send
from hivenode.training.exchange.group import Group
from hivenode.training.exchange.messages import FIRST, Begin, Fixed, Flush
from hivenode.training.exchange.slices import ALIKE, shares, speeds


def test_without_a_measurement_and_of_two_all_are_alike() -> None:
    assert speeds({}, [0, 1, 2]) == {0: 1.0, 1: 1.0, 2: 1.0}
    assert shares({0: 1.0, 1: 100.0}) == {0: 1.0, 1: 1.0}


def test_a_member_is_as_fast_as_the_narrower_of_its_directions() -> None:
    rates = {0: {1: 10.0, 2: 10.0}, 1: {0: 10.0, 2: 10.0}, 2: {0: 1.0, 1: 1.0}}
    assert speeds(rates, [0, 1, 2]) == {0: 11.0, 1: 11.0, 2: 2.0}
    down = {0: {1: 10.0, 2: 1.0}, 1: {0: 10.0, 2: 1.0}, 2: {0: 10.0, 1: 10.0}}
    assert speeds(down, [0, 1, 2])[2] == 2.0


def test_a_link_nobody_has_measured_counts_like_its_senders_others() -> None:
    assert speeds({0: {1: 4.0}, 1: {0: 8.0, 2: 8.0}, 2: {0: 6.0, 1: 6.0}}, [0, 1, 2])[0] == 8.0


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.floats(0.001, 1000.0), min_size=3, max_size=8))
def test_all_that_own_anything_are_done_at_once_and_who_owns_nothing_is_no_sooner(given_speeds: list[float]) -> None:
    found = shares(dict(enumerate(given_speeds)))
    assert sum(found.values()) == pytest.approx(1.0)
    fastest, count = max(given_speeds), len(given_speeds)
    relative = [1.0 if speed >= ALIKE * fastest else speed / fastest for speed in given_speeds]
    took = {rank: (1 + (count - 2) * found[rank]) / relative[rank] for rank in found}
    working = [took[rank] for rank in found if found[rank] > 1e-9]
    assert max(working) == pytest.approx(min(working), rel=1e-5)
    assert all(took[rank] >= max(working) * (1 - 1e-5) for rank in found)


def test_a_round_is_cut_by_what_its_callers_have_measured() -> None:
    leader = Group(0, [0, 1, 2, 3])
    for rank in (1, 2, 3):
        leader.linked(rank)
        leader.receive(rank, Flush(FIRST, FIRST, (0, 1, 2, 3), (), 0), 0.0)
    assert leader.phase is Phase.stable
    view, fast, slow = leader.view.id, 10**8, 2 * 10**7
    leader.begin(np.ones(10_000, np.float32), 1.0, 0.0, rates={1: fast, 2: fast, 3: fast})
    effects = list[object]()
    for rank in (1, 2, 3):
        rate = slow if rank == 3 else fast
        begin = Begin(view, 1, 10_000, "", 1.0, -1.0, {other: rate for other in range(4) if other != rank})
        effects += leader.receive(rank, begin, 0.0)
    (fixed,) = {e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Fixed)}
    widths = np.diff(fixed.bounds)
    assert widths[3] == 0, (
        "to send and receive the whole vector, as all do, takes it longer than the others need for all"
    )
    assert max(widths[:3]) - min(widths[:3]) <= 1
