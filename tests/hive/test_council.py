"""Large hives: a council votes, and who gets no heartbeats believes what the leader signs."""

from __future__ import annotations

import random

import pytest

from hivenode.hive.ballots import Persist
from hivenode.hive.council import FULL, SEATS, council
from hivenode.hive.election import MAX_STEP, Election, ElectionSettings, Leader
from hivenode.net.messages import Heartbeat, Message, VoteRequest
from hivenode.spec.values import Epoch
from tests.hive.arena import Arena
from tests.hive.voters import ABC, single

LARGE = 100
SEEDS = range(2)


# --- who is of it -----------------------------------------------------------------------------------------------------


def serials(count: int) -> dict[str, int]:
    return {f"n{number:03}": 1000 - number for number in range(count)}


@pytest.mark.claim("E20")
def test_up_to_sixty_four_all_vote_and_above_that_the_sixty_three_longest_granted() -> None:
    granted = serials(FULL)
    assert council(granted, granted.__getitem__) == tuple(sorted(granted))
    granted = serials(FULL + 1)
    voters = council(granted, granted.__getitem__)
    assert len(voters) == SEATS == 63
    assert set(granted) - set(voters) == {"n000", "n001"}, "the two whose grants are the latest"
    assert voters == tuple(sorted(voters))


def test_it_follows_from_who_is_alive_in_whatever_order_they_are_named() -> None:
    granted = serials(200)
    nodes = list(granted)
    first = council(nodes, granted.__getitem__)
    random.Random(1).shuffle(nodes)
    assert council(nodes, granted.__getitem__) == first
    gone = first[7]
    after = council([node for node in nodes if node != gone], granted.__getitem__)
    assert set(first) - set(after) == {gone}
    assert len(set(after) - set(first)) == 1, "one death, one new seat"


# --- a large hive -----------------------------------------------------------------------------------------------------


class Polls(Arena):
    """Remembers who asked whom for a vote."""

    def __init__(self, voters: int, *, seed: int, council: int) -> None:
        self.asked: dict[tuple[str, str], None] = {}
        super().__init__(voters, seed=seed, council=council)

    def _send(self, node: str, peer: str, message: Message) -> None:
        if isinstance(message, VoteRequest):
            self.asked[node, peer] = None
        super()._send(node, peer, message)


@pytest.mark.claim("E20")
@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_council_is_asked_and_stands_and_all_follow(seed: int) -> None:
    arena = Polls(LARGE, seed=seed, council=SEATS)
    arena.run(10.0)
    first = arena.leader()
    assert int(first.node[1:]) < SEATS
    assert {int(node[1:]) for pair in arena.asked for node in pair} == set(range(SEATS))
    arena.crash(first.node)
    arena.run(3.0)
    second = arena.leader()
    assert second.counter <= first.counter + 2
    assert int(second.node[1:]) <= SEATS, "one more has a seat now"
    assert max(int(node[1:]) for pair in arena.asked for node in pair) == SEATS
    arena.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_half_of_the_council_is_lost_at_once(seed: int) -> None:
    arena = Arena(LARGE, seed=seed, council=SEATS)
    arena.run(10.0)
    for node in arena.voters[:32]:
        arena.crash(node)
    arena.run(8.0)
    assert int(arena.leader().node[1:]) >= 32
    arena.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leader_that_loses_its_seat_leads_on(seed: int) -> None:
    """Members that were granted their roles before it come back: it needs no seat to lead."""
    arena = Arena(9, seed=seed, council=3)
    for node in ("n0", "n1", "n2"):
        arena.crash(node)
    arena.run(12.0)
    first = arena.leader()
    assert first.node in ("n3", "n4", "n5")
    for node in ("n0", "n1", "n2"):
        arena.restart(node)
    arena.run(20.0)
    assert arena.leader() == first
    arena.crash(first.node)
    arena.run(3.0)
    assert arena.leader().node in ("n0", "n1", "n2")
    arena.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_strays_without_a_seat_that_led_themselves_give_way(seed: int) -> None:
    """Each was elected by itself while it knew nobody, and has no seat now: it cannot outbid anybody, and its
    heartbeats must not keep the council from an election."""
    arena = Arena(12, seed=seed, council=3)
    arena.split(arena.voters[:3], *([node] for node in arena.voters[3:]), detect=0.0)
    arena.run(20.0)
    assert {epoch.node for epoch in arena.epochs()} >= {*arena.voters[3:]}
    arena.heal()
    arena.run(12.0)
    assert arena.leader().node in arena.voters
    arena.check()


# --- who gets no heartbeats -------------------------------------------------------------------------------------------


def outsider(state: bytes | None = None) -> Election:
    """May coordinate, and has no seat."""
    election = single("x", alive=(*ABC, "x"), known=(*ABC, "x"), state=state)
    tell(election, None)
    return election


def tell(
    election: Election, told: Epoch | None, now: float = 1.0, alive: tuple[str, ...] = (*ABC, "x")
) -> list[object]:
    return [*election.electorate(now, alive, (*ABC, "x"), True, voters=ABC, told=told)]


@pytest.mark.claim("E21")
def test_what_the_leader_signs_is_followed_without_heartbeats_once_it_is_on_disk() -> None:
    election = outsider()
    effects = tell(election, Epoch(4, "a"))
    assert [type(effect) for effect in effects] == [Persist, Leader]
    assert election.leader == Epoch(4, "a")
    assert election.deadline() == float("inf"), "silence is what it expects"
    assert tell(election, Epoch(4, "a"), 100.0) == []


@pytest.mark.claim("E21")
def test_a_higher_epoch_supersedes_and_a_lower_or_rival_one_does_not() -> None:
    election = outsider()
    tell(election, Epoch(4, "a"))
    assert tell(election, Epoch(6, "b"))[-1] == Leader(Epoch(6, "b"))
    for stale in (Epoch(5, "c"), Epoch(6, "c")):
        tell(election, stale)
        assert election.leader is None, "whom we followed says no more that it leads"
        tell(election, Epoch(6, "b"))
        assert election.leader == Epoch(6, "b")
    assert tell(election, Epoch(7 + MAX_STEP, "c")) == [Leader(None)], "nor one out of all proportion"


@pytest.mark.claim("E21")
def test_a_leader_that_is_dead_or_says_no_more_that_it_leads_is_dropped() -> None:
    for told, alive in ((None, (*ABC, "x")), (None, ("b", "c", "x"))):
        election = outsider()
        tell(election, Epoch(4, "a"))
        assert Leader(None) in tell(election, told, 10.0, alive)


def test_what_was_believed_holds_across_a_crash() -> None:
    election = outsider()
    (state,) = [effect.state for effect in tell(election, Epoch(4, "a")) if isinstance(effect, Persist)]
    again = outsider(state)
    assert tell(again, Epoch(4, "b")) == []
    assert tell(again, Epoch(3, "c")) == []
    assert tell(again, Epoch(4, "a")) == [Leader(Epoch(4, "a"))]


def test_a_voter_believes_heartbeats_only() -> None:
    election = single()
    assert election.electorate(1.0, ABC, ABC, True, told=Epoch(4, "a")) == []


def test_who_gets_heartbeats_no_longer_goes_on_by_what_is_said() -> None:
    election = Election("w", settings=ElectionSettings(), rng=random.Random(1), state=None)
    election.start(0.0)
    election.electorate(0.0, ABC, ABC, False, told=Epoch(4, "a"))
    election.receive(1.0, "a", Heartbeat(Epoch(4, "a")))
    assert election.deadline() < 6.0
    assert election.tick(election.deadline()) == []
    assert election.leader == Epoch(4, "a")
    assert election.electorate(9.0, ABC, ABC, False, told=None) == [Leader(None)]
