"""The protocol over a network that does its worst, with no sockets and no clock: whoever dies whenever, survivors
finish, with one result."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivenode.training.exchange.attempt import State
from hivenode.training.exchange.codecs import BLOCK, Fp16
from hivenode.training.exchange.effects import Bulk, Malformed, Phase, Send
from hivenode.training.exchange.fixing import Terms
from hivenode.training.exchange.group import Group
from hivenode.training.exchange.messages import FIRST, Accusation, Begin, Flush, Reason
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


@pytest.mark.parametrize("hasty", [False, True])
@pytest.mark.parametrize(("members", "seed"), [(2, 1), (3, 2), (3, 3), (4, 4)])
def test_one_death_at_every_point_of_a_run(members: int, seed: int, hasty: bool) -> None:
    healthy = World(members, rounds=2, count=7, rng=random.Random(seed), hasty=hasty)
    healthy.run()
    for victim in range(members):
        for point in range(0, healthy.deliveries + 1, 1 if members < 4 else 3):
            world = World(members, rounds=2, count=7, rng=random.Random(seed), hasty=hasty)
            run_with_kills(world, [(point, victim)])
            assert world.dead == {victim}
            world.check_all_finish()


@PATIENT
@given(
    seed=st.integers(0, 2**32),
    members=st.integers(3, 6),
    count=st.sampled_from([0, 1, 7, 16]),
    first=st.integers(0, 300),
    gap=st.integers(0, 40),
    hasty=st.booleans(),
    data=st.data(),
)
def test_two_deaths_at_any_two_points(
    seed: int, members: int, count: int, first: int, gap: int, hasty: bool, data: st.DataObject
) -> None:
    victims = data.draw(st.permutations(range(members)))[:2]
    world = World(members, rounds=3, count=count, rng=random.Random(seed), hasty=hasty)
    run_with_kills(world, [(first, victims[0]), (first + gap, victims[1])])
    world.check_all_finish()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("members", [3, 4])
def test_any_two_deaths_at_every_two_points_of_a_run(members: int, seed: int) -> None:
    """Exhaustive: any one or two of them, before and after every message."""
    healthy = World(members, rounds=2, count=5, rng=random.Random(seed), hasty=bool(seed % 2))
    healthy.run()
    for one in range(members):
        for other in range(members):
            for first in range(0, healthy.deliveries + 1, 2 * members - 5):
                for gap in range(0, 24, 2):
                    world = World(members, rounds=2, count=5, rng=random.Random(seed), hasty=bool(seed % 2))
                    run_with_kills(world, [(first, one), (first + gap, other)])
                    world.check_all_finish()


def test_who_is_late_has_the_mean_of_the_others_and_its_own_update_back() -> None:
    """That the update is untouched, and the mean that of those announced, is checked by the world itself."""
    late = 0
    for seed in range(40):
        world = World(4, rounds=4, count=7, rng=random.Random(seed), hasty=True)
        world.run()
        world.check_all_finish()
        late += sum(len(member.late) for member in world.survivors)
        assert all(member.group.view.ranks == (0, 1, 2, 3) for member in world.survivors), "nobody is put out for it"
    assert late > 40


@pytest.mark.parametrize("seed", range(12))
def test_numbers_that_travel_by_a_codec_are_the_same_for_all(seed: int) -> None:
    world = World(3, rounds=2, count=5 * BLOCK + 11, rng=random.Random(seed), hasty=bool(seed % 2), codec=Fp16())
    run_with_kills(world, [(20 + 3 * seed, seed % 3)] if seed % 4 else [])
    world.check_all_finish()


def test_a_newcomer_has_the_state_and_takes_part() -> None:
    shared = 0
    for seed in range(60):
        world = World(3, rounds=6, count=11, rng=random.Random(seed), hasty=bool(seed % 2), newcomer=True)
        world.run()
        newcomer = world.members[3]
        if newcomer.inherited is None:  # its links were there only when all was over
            world.check_all_finish(but=3)
            continue
        world.check_all_finish()
        number = int(np.frombuffer(newcomer.inherited[:8], np.int64)[0])
        assert newcomer.inherited[8:] == (world.members[0].results[number][1] if number else b"")
        assert sorted(newcomer.results) == list(range(number + 1, 7))
        shared += any(3 in contributors for contributors, _ in world.members[0].results.values())
    assert shared > 20


@PATIENT
@given(
    seed=st.integers(0, 2**32), members=st.integers(1, 4), first=st.integers(0, 200), gap=st.integers(0, 60),
    data=st.data(),
)  # fmt: skip
def test_deaths_while_somebody_joins_stop_nobody(
    seed: int, members: int, first: int, gap: int, data: st.DataObject
) -> None:
    """A newcomer may fail to come in when a member dies, and may die itself; the others finish in any case."""
    victims = data.draw(st.permutations(range(members + 1)))[:2]
    world = World(members, rounds=4, count=7, rng=random.Random(seed), hasty=data.draw(st.booleans()), newcomer=True)
    run_with_kills(world, [(first, victims[0]), (first + gap, victims[1])])
    world.check_all_finish(but=members)


def test_who_lacks_the_last_result_for_too_long_is_put_out() -> None:
    world = World(3, rounds=3, count=7, rng=random.Random(7), hasty=True)
    stuck = world.members[2]
    stuck.can_step = lambda: False  # type: ignore[method-assign]
    world.run()
    leader = world.members[0].group
    assert leader.holding_up() == [2]
    assert all(len(world.members[rank].results) == 1 for rank in (0, 1)), "the first round did not wait"
    due = leader.due()
    assert due is not None
    world.apply(0, leader.tick(due))
    world.run()
    assert stuck.out
    assert stuck.group.verdict is not None
    assert stuck.group.verdict.reason is Reason.behind
    assert all(world.members[rank].done for rank in (0, 1))
    world.check_bits()


def test_an_absurd_update_is_refused_by_name() -> None:
    groups = {rank: Group(rank, [0, 1, 2], Terms(norm_limit=10.0)) for rank in range(3)}
    leader = groups[0]
    for rank in (1, 2):
        leader.linked(rank)
        leader.receive(rank, Flush(FIRST, FIRST, (0, 1, 2), (), 0), 0.0)
    assert leader.phase is Phase.stable
    leader.begin(np.ones(4, np.float32), 1.0, 0.0, norm=2.0)
    leader.receive(1, Begin(leader.view.id, 1, 4, "", 1.0, 2.0, {}), 0.0)
    effects = leader.receive(2, Begin(leader.view.id, 1, 4, "", 1.0, 21.0, {}), 0.0)
    flushes = [effect.message for effect in effects if isinstance(effect, Send)]
    assert {a for flush in flushes if isinstance(flush, Flush) for a in flush.accused} == {
        Accusation(2, 0, Reason.absurd, 1)
    }


@PATIENT
@given(
    seed=st.integers(0, 2**32), members=st.integers(2, 5), first=st.integers(0, 150), gaps=st.lists(st.integers(0, 30))
)
def test_all_but_one_may_die(seed: int, members: int, first: int, gaps: list[int]) -> None:
    rng = random.Random(seed)
    victims = rng.sample(range(members), members - 1)
    points = [first + sum(gaps[:index]) for index in range(len(victims))]
    world = World(members, rounds=2, count=5, rng=rng, hasty=bool(seed % 2))
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
    world = World(members, rounds=3, count=7, rng=rng, hasty=bool(seed % 2))
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
