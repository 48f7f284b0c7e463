"""The state that a newcomer is given in parts: what one gives is checked against what another holds."""

from __future__ import annotations

import numpy as np
import pytest

from hivenode.training.exchange.effects import Malformed
from hivenode.training.exchange.inheritance import Inheritance, donate
from hivenode.training.exchange.messages import FIRST

DONORS = (0, 2, 5)
STATE = [np.arange(7, dtype=np.int64), np.random.default_rng(1).standard_normal(1001).astype(np.float32)]


def given(states: dict[int, list[np.ndarray]], spoilt: int | None = None) -> Inheritance:
    """All that the donors give, `spoilt` having been damaged on its way."""
    inheritance = Inheritance(DONORS, 10_000)
    gifts = {rank: donate(states[rank], DONORS, rank, FIRST) for rank in DONORS}
    for rank, (donation, start, gift) in gifts.items():
        inheritance.announced(rank, donation)
        assert not inheritance.complete
        inheritance.landing(rank, start, gift.size)[:] = gift
        if rank == spoilt:
            inheritance.state[start] += 1.0
        inheritance.arrived(rank, gift.size)
    assert inheritance.complete
    return inheritance


def test_every_donor_gives_a_part_and_together_they_are_the_state() -> None:
    found = given(dict.fromkeys(DONORS, STATE))
    assert found.liar() is None
    assert found.state.tobytes()[: 7 * 8] == STATE[0].tobytes()
    assert found.state.tobytes()[7 * 8 : 7 * 8 + 1001 * 4] == STATE[1].tobytes()


@pytest.mark.parametrize("rank", DONORS)
def test_what_is_damaged_on_its_way_is_noticed(rank: int) -> None:
    assert given(dict.fromkeys(DONORS, STATE), rank).liar() == rank


@pytest.mark.parametrize("place", [500, 1000], ids=["in its own part", "in the next one's"])
def test_a_donor_that_holds_something_else_is_noticed(place: int) -> None:
    other = STATE[1].copy()
    other[place] += 1.0
    assert given({**dict.fromkeys(DONORS, STATE), 2: [STATE[0], other]}).liar() is not None


def test_more_than_was_to_be_expected_is_malformed() -> None:
    donation, _, _ = donate(STATE, DONORS, 0, FIRST)
    with pytest.raises(Malformed, match="most"):
        Inheritance(DONORS, 100).announced(0, donation)
