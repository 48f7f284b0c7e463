"""How long a round waits: by what each member did before, in multiples of how far it strays from that."""

from __future__ import annotations

import numpy as np
import pytest

from hivenode.training.exchange.deadlines import NORMAL, SPREADS, Deadlines
from hivenode.training.exchange.effects import Phase, Send
from hivenode.training.exchange.fixing import Terms
from hivenode.training.exchange.group import Group
from hivenode.training.exchange.messages import FIRST, Begin, Completed, Fixed, Flush


def taught(delays: dict[int, list[float]], least: float = 2.0) -> Deadlines:
    deadlines = Deadlines(least, 30.0)
    for rank, found in delays.items():
        for delay in found:
            deadlines.observe(rank, delay)
    return deadlines


def test_until_something_is_known_the_first_is_waited_for_long() -> None:
    assert taught({}).seconds() == 30.0
    assert taught({0: [0.0, 0.0], 1: [5.0, 5.0]}).seconds() == 30.0
    assert taught({0: [0.0, 0.0, 0.0]}).seconds() == 2.0


def test_it_is_the_median_and_six_deviations_of_the_slowest() -> None:
    slow = [4.0, 5.0, 5.0, 6.0, 9.0]  # about the median of 5: 1, 0, 0, 1, 4
    assert taught({0: [0.0] * 5, 1: slow}).seconds() == pytest.approx(5.0 + SPREADS * NORMAL * 1.0)
    assert taught({0: [0.0] * 5, 1: [5.0] * 5}).seconds() == 5.0, "steady slowness is waited for, and no longer"
    assert taught({0: [0.0] * 5, 1: [0.1] * 5}).seconds() == 2.0, "the least"


def test_one_stall_changes_nothing_and_what_lasts_is_learned() -> None:
    assert taught({1: [3.0] * 9 + [500.0]}).seconds() == 3.0
    assert taught({1: [3.0] * 9 + [40.0] * 32}).seconds() == 40.0


def test_who_has_gone_is_not_waited_for() -> None:
    deadlines = taught({0: [0.0] * 3, 1: [50.0] * 3})
    deadlines.keep([0])
    assert deadlines.seconds() == 2.0


def test_a_leader_learns_how_late_a_member_is_also_from_rounds_without_it() -> None:
    leader = Group(0, [0, 1, 2], Terms(Deadlines(0.5, 1.0)))
    for rank in (1, 2):
        leader.linked(rank)
        leader.receive(rank, Flush(FIRST, FIRST, (0, 1, 2), (), 0), 0.0)
    assert leader.phase is Phase.stable
    view, now = leader.view.id, 100.0
    for number in range(1, 4):
        attempt, _ = leader.begin(np.ones(3, np.float32), 1.0, now)
        leader.receive(1, Begin(view, number, 3, "", 1.0, -1.0, {}), now)
        due = leader.due()
        assert due is not None
        effects = leader.tick(due)
        fixed = [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Fixed)]
        assert {found.contributors for found in fixed} == {(0, 1)}
        leader._complete(attempt)
        leader.digested(attempt, 7, due)
        leader.receive(1, Completed(number, 7), due)
        leader.receive(2, Completed(number, 7), now + 8.0)  # it has called at last, and has the others' result
        now += 20.0
    assert leader.deadlines.seconds() == 8.0, "so much is it waited for the next time"


def test_who_is_slow_at_one_place_of_a_step_is_waited_for_there() -> None:
    deadlines = Deadlines(2.0, 30.0)
    for _ in range(40):
        deadlines.observe(1, 6.0, place=1)
        for place in (2, 3, 0):
            deadlines.observe(1, 0.01, place=place)
    assert deadlines.seconds(1) >= 6.0
    assert deadlines.seconds(2) == deadlines.seconds() == 2.0
    assert deadlines.seconds(4) == 30.0, "nothing is known of it"
    deadlines.keep([0])
    assert deadlines.seconds(1) == 30.0
