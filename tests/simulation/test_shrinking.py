"""A failing schedule is reduced to what it takes to fail, and nothing else."""

from __future__ import annotations

import random

import pytest

from tests.simulation.loop import run
from tests.simulation.schedules import Fault, Kind, Schedule, draw
from tests.simulation.shrinking import MANY_RUNS, as_code, run_shrinking, shrink
from tests.simulation.test_ablations import without_fence
from tests.simulation.test_scenarios import chaos

NAMES = ("a", "b", "c", "d")
FEW = 5
"""Faults, of up to a hundred."""


def random_schedule(seed: int = 1, seconds: float = 200) -> Schedule:
    return draw(random.Random(seed), NAMES, seconds=seconds, every=2)


def test_a_seed_gives_one_schedule_in_order_of_time() -> None:
    schedule = random_schedule()
    assert schedule == random_schedule()
    assert schedule != random_schedule(2)
    assert [fault.at for fault in schedule] == sorted(fault.at for fault in schedule)
    assert len(schedule) > 50


def test_what_is_shrunk_is_the_fewest_faults_that_fail() -> None:
    """It fails when b is killed after a is frozen: two faults of a hundred."""

    def fails(schedule: Schedule) -> bool:
        frozen = [n for n, fault in enumerate(schedule) if fault.kind is Kind.freeze and fault.who[0] == "a"]
        killed = [n for n, fault in enumerate(schedule) if fault.kind is Kind.kill and fault.who[0] == "b"]
        return bool(frozen) and bool(killed) and frozen[0] < killed[-1]

    schedule = next(found for seed in range(50) if fails(found := random_schedule(seed)))
    found = shrink(schedule, fails)
    assert [(fault.kind, fault.who[0]) for fault in found] == [(Kind.freeze, "a"), (Kind.kill, "b")]
    assert found[0].at == found[1].at == 0.0 or found[1].at < 1.0, "and they come at once"
    assert found[0].amount <= 1, "and last no longer than needed"


def test_the_search_is_bounded() -> None:
    calls = []
    shrink(random_schedule(), lambda schedule: calls.append(schedule) is not None, runs=7)
    assert len(calls) == 7


def test_code_of_a_schedule_makes_the_schedule() -> None:
    schedule = random_schedule(seconds=30)
    assert eval(as_code(schedule), {"Fault": Fault, "Kind": Kind}) == schedule


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_broken_rule_is_found_and_told_with_few_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fence an outlived coordinator's orders are obeyed; the watch sees it, and the report says how."""
    without_fence(monkeypatch)
    seed = next(seed for seed in range(200) if "works for" in _ending(seed))
    with pytest.raises(AssertionError, match="works for") as caught:
        run_shrinking(chaos, seed, runs=MANY_RUNS)
    (note,) = [note for note in caught.value.__notes__ if "shrunk" in note]
    assert 1 <= note.count("Fault(") <= FEW, note


def _ending(seed: int) -> str:
    try:
        run(chaos, seed=seed)
    except (AssertionError, TimeoutError) as error:
        return str(error)
    return ""
