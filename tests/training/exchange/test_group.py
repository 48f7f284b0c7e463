"""The protocol over a network that does its worst, with no sockets and no clock: whoever dies whenever, survivors
finish, with one result."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivenode.training.exchange.attempt import State
from hivenode.training.exchange.effects import Bulk, Malformed, Phase
from hivenode.training.exchange.group import Group
from hivenode.training.exchange.messages import Begin, Reason
from tests.training.exchange.world import World

PATIENT = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)


def run_with_kills(world: World, kills: list[tuple[int, int]]) -> None:
    """Kill each `(rank)` once so many messages have been delivered."""
    pending = sorted(kills)
    for _ in range(20_000):
        while pending and world.deliveries >= pending[0][0]:
            _, rank = pending.pop(0)
            if rank not in world.dead:
                world.kill(rank)
        if not world.step():
            return
    raise AssertionError("the members talk without end")


@pytest.mark.parametrize("members", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 23])
def test_without_faults_every_round_is_the_mean_of_all(members: int, count: int) -> None:
    world = World(members, rounds=3, count=count, rng=random.Random(members * 100 + count))
    world.run()
    world.check_all_finish()
    for member in world.survivors:
        assert [contributors for contributors, _ in member.results.values()] == [tuple(range(members))] * 3


@pytest.mark.parametrize(("members", "seed"), [(2, 1), (3, 2), (3, 3), (4, 4)])
def test_one_death_at_every_point_of_a_run(members: int, seed: int) -> None:
    healthy = World(members, rounds=2, count=7, rng=random.Random(seed))
    healthy.run()
    for victim in range(members):
        for point in range(0, healthy.deliveries + 1, 1 if members < 4 else 3):
            world = World(members, rounds=2, count=7, rng=random.Random(seed))
            run_with_kills(world, [(point, victim)])
            assert world.dead == {victim}
            world.check_all_finish()


@PATIENT
@given(
    seed=st.integers(0, 2**32),
    members=st.integers(3, 5),
    count=st.sampled_from([0, 1, 7, 16]),
    first=st.integers(0, 250),
    gap=st.integers(0, 40),
    data=st.data(),
)
def test_two_deaths_at_any_two_points(
    seed: int, members: int, count: int, first: int, gap: int, data: st.DataObject
) -> None:
    victims = data.draw(st.permutations(range(members)))[:2]
    world = World(members, rounds=3, count=count, rng=random.Random(seed))
    run_with_kills(world, [(first, victims[0]), (first + gap, victims[1])])
    world.check_all_finish()


@PATIENT
@given(
    seed=st.integers(0, 2**32), members=st.integers(2, 5), first=st.integers(0, 150), gaps=st.lists(st.integers(0, 30))
)
def test_all_but_one_may_die(seed: int, members: int, first: int, gaps: list[int]) -> None:
    rng = random.Random(seed)
    victims = rng.sample(range(members), members - 1)
    points = [first + sum(gaps[:index]) for index in range(len(victims))]
    world = World(members, rounds=2, count=5, rng=rng)
    run_with_kills(world, list(zip(points, victims, strict=True)))
    world.check_all_finish()


@PATIENT
@given(
    seed=st.integers(0, 2**32),
    members=st.integers(3, 5),
    points=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    death=st.integers(0, 300),
)
def test_false_accusations_cost_members_but_never_agreement(
    seed: int, members: int, points: list[int], death: int
) -> None:
    rng = random.Random(seed)
    world = World(members, rounds=3, count=7, rng=rng)
    pending = sorted(points)
    for _ in range(20_000):
        while pending and world.deliveries >= pending[0]:
            pending.pop(0)
            by, rank = rng.sample(range(members), 2)
            if by not in world.dead and not world.members[by].out:
                world.accuse(by, rank)
        if not world.dead and world.deliveries >= death:
            world.kill(rng.randrange(members))
        if not world.step():
            break
    world.check_bits()
    for member in world.survivors:
        assert member.out or member.done


def test_a_round_somebody_completed_is_fetched_bit_for_bit() -> None:
    """Found by search: one member holds the result, its owner dies before the others have all of it."""
    fetched = 0
    for seed in range(60):
        world = World(3, rounds=1, count=12, rng=random.Random(seed))
        while not any(member.results for member in world.survivors) and world.step():
            pass
        holders = [member.rank for member in world.survivors if member.results]
        world.kill(next(rank for rank in range(3) if rank not in holders))
        world.run()
        world.check_all_finish()
        fetched += any(
            member.group.last is not None and member.group.last.source is not None for member in world.survivors
        )
    assert fetched


@pytest.mark.parametrize(
    ("seed", "kills"), [(110, [(203, 1), (241, 3)]), (131, [(95, 0), (127, 3)]), (148, [(179, 0), (219, 3)])]
)
def test_a_result_fetched_twice_counts_only_what_belongs_to_the_second_time(
    seed: int, kills: list[tuple[int, int]]
) -> None:
    """Found by search: a piece announced in one view comes in after the next view has asked for the result again."""
    world = World(5, rounds=3, count=16, rng=random.Random(seed))
    run_with_kills(world, kills)
    world.check_all_finish()


def test_who_contributes_nan_is_out_and_named() -> None:
    world = World(3, rounds=2, count=9, rng=random.Random(5))
    guilty = world.members[1]
    honest_step = guilty.step

    def step(moment: float) -> list[object]:
        if guilty.attempt is not None:
            return honest_step(moment)  # type: ignore[return-value]
        effects = honest_step(moment)
        if guilty.attempt is not None:
            guilty.attempt.vector[4] = np.nan
        return effects  # type: ignore[return-value]

    guilty.step = step  # type: ignore[method-assign, assignment]
    world.run()
    assert guilty.out
    assert guilty.group.verdict is not None
    assert guilty.group.verdict.reason is Reason.nonfinite
    for rank in (0, 2):
        assert world.members[rank].done
        assert world.members[rank].group.view.ranks == (0, 2)
        assert world.members[rank].results[1][0] == (0, 2)
    world.check_bits()


def test_results_that_differ_are_noticed_by_both() -> None:
    world = World(2, rounds=1, count=4, rng=random.Random(1))
    original = world.members[1].group.digested
    world.members[1].group.digested = lambda attempt, digest, now: original(attempt, digest ^ 1, now)  # type: ignore[method-assign]
    world.run()
    assert [world.members[rank].group.mismatch for rank in (0, 1)] == [(1, 1), (0, 1)]


def test_members_named_on_one_list_only_are_left_out() -> None:
    """Rank 2 is unknown to rank 1: the group is agreed on without it."""
    world = World(3, rounds=1, count=3, rng=random.Random(2))
    world.members[1].group = Group(1, [0, 1])
    world.links = [(a, b) for a, b in world.links if {a, b} != {1, 2}]
    world.run()
    world.check_bits()
    assert [m.rank for m in world.survivors if m.out] == [2]
    assert {m.group.view.ranks for m in world.survivors if not m.out} == {(0, 1)}


def test_alone_after_standing_still_means_left_out() -> None:
    group = Group(1, [0, 1])
    group.start()
    group.doubt = True
    group.linked(0)
    group.accuse(0, Reason.silent)
    assert group.phase is Phase.out
    assert group.verdict is not None
    assert group.verdict.reason is Reason.paused


def test_numbers_nobody_may_send_are_malformed() -> None:
    world = World(2, rounds=1, count=8, rng=random.Random(3))
    group = world.members[0].group
    while group.attempt is None or group.attempt.state is not State.active:
        world.step()
    view, number = group.view.id, group.attempt.number
    assert group.landing(1, Bulk.part, view, number + 1, 0, 2) is None
    for kind, start, count in ((Bulk.part, 2, 2), (Bulk.part, 0, 5), (Bulk.reduced, 0, 1), (Bulk.fetched, 0, 1)):
        with pytest.raises(Malformed):
            group.landing(1, kind, view, number, start, count)
    with pytest.raises(Malformed):
        group.receive(1, Begin(view, number + 1, 8, "", float("nan"), -1.0, {}), 0.0)
