"""How fit a node says it is."""

from __future__ import annotations

import itertools
import random

import pytest

from hivenode.hive.standing import (
    ORDINARY,
    SETTLED_SECONDS,
    SPREAD_SECONDS,
    UNABLE,
    SelfAssessment,
    Signs,
    clearly,
    compose,
)


def after(assessment: SelfAssessment, signs: Signs, begin: float, seconds: float) -> int:
    """The standing after these signs were seen once a second for so long."""
    standing = assessment.assess(begin, signs)
    for second in range(1, int(seconds) + 1):
        standing = assessment.assess(begin + second, signs)
    return standing


def test_a_node_that_has_just_started_is_ordinary_and_settles() -> None:
    assessment = SelfAssessment(5, 0.0)
    assert assessment.assess(0.0, Signs()) == ORDINARY
    settled = assessment.assess(SETTLED_SECONDS, Signs())
    assert settled > ORDINARY
    assert clearly(settled) == clearly(ORDINARY), "having been up for longer deposes nobody"


@pytest.mark.parametrize("members", [100, 1000])
def test_of_many_that_started_together_few_settle_at_a_time_and_all_do_for_good(members: int) -> None:
    rng = random.Random(members)
    nodes = [SelfAssessment(5, 0.0, turn=rng.random()) for _ in range(members)]
    settled, seen = 0, Signs(members=members)
    last = int(SETTLED_SECONDS + SPREAD_SECONDS * members)
    for second in range(0, last + 1, 10):
        now = sum(node.assess(second, seen) > ORDINARY for node in nodes)
        assert now == 0 or second >= SETTLED_SECONDS
        assert now - settled <= 12, "in ten seconds"
        settled = now
    assert settled == members
    assert all(node.assess(last + 1.0, Signs(members=100 * members)) > ORDINARY for node in nodes), "though more came"


def test_priority_goes_before_power_before_reach_before_health_before_time_up() -> None:
    flags = list(itertools.product((False, True), repeat=4))
    told = [compose(priority, mains=m, reaches=r, well=w, settled=s) for priority in (0, 5, 10) for m, r, w, s in flags]
    assert told == sorted(set(told))
    assert told[0] > UNABLE
    assert told[-1] <= 255, "it has a byte on the wire"


@pytest.mark.parametrize("signs", [Signs(battery=True), Signs(health=5), Signs(linked=0.2)])
def test_what_is_bad_for_a_moment_says_nothing_and_what_lasts_does(signs: Signs) -> None:
    assessment = SelfAssessment(5, 0.0)
    assessment.assess(0.0, Signs())
    assert after(assessment, signs, 1.0, 2.0) == ORDINARY
    assert assessment.assess(4.0, Signs()) == ORDINARY
    worse = after(assessment, signs, 5.0, 31.0)
    assert clearly(worse) < clearly(ORDINARY)
    assert clearly(after(assessment, Signs(), 40.0, 59.0)) == clearly(worse), "it mends late"
    assert clearly(after(assessment, Signs(), 100.0, 61.0)) == clearly(ORDINARY)


def test_a_machine_that_starts_on_battery_says_so_at_once() -> None:
    assert clearly(SelfAssessment(5, 0.0).assess(0.0, Signs(battery=True))) < clearly(ORDINARY)


def test_who_cannot_write_says_so_at_once_and_is_believed_again_after_a_while() -> None:
    assessment = SelfAssessment(10, 0.0)
    assert assessment.assess(0.0, Signs(able=False)) == UNABLE
    assert after(assessment, Signs(), 1.0, 9.0) == UNABLE
    assert after(assessment, Signs(), 11.0, 1.0) != UNABLE


@pytest.mark.claim("E17")
def test_signs_that_flap_change_the_standing_seldom() -> None:
    """A loose plug, on and off every five seconds for an hour: one change, not hundreds."""
    assessment = SelfAssessment(5, 0.0)
    told = [clearly(assessment.assess(t, Signs(battery=t % 10 < 5))) for t in range(3600)]
    assert sum(a != b for a, b in itertools.pairwise(told)) <= 1
