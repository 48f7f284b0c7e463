"""Who coordinates, in scenarios; several after etcd's raft tests."""

from __future__ import annotations

import itertools

import pytest

from hivenode.errors import Corrupted
from hivenode.hive import ballots
from hivenode.hive.election import (
    MAX_STEP,
    STRAY_STEP,
    Election,
    Leader,
    Persist,
    Send,
)
from hivenode.net.messages import Heartbeat, HeartbeatAck, VoteReply, VoteRequest
from hivenode.spec.values import ZERO_EPOCH, Epoch
from tests.hive.arena import Arena
from tests.hive.voters import ABC, elected, granted, redialled, restored, sent, single

SEEDS = range(4)


# --- one voter --------------------------------------------------------------------------------------------------------


@pytest.mark.claim("E2")
def test_a_vote_is_on_disk_before_it_is_given() -> None:
    effects = single().receive(3.0, "a", VoteRequest(Epoch(1, "a"), False))
    assert [type(effect) for effect in effects] == [Persist, Send]
    assert sent(effects, "a") == [VoteReply(Epoch(1, "a"), False, True, Epoch(1, "a"))]


@pytest.mark.claim("E1")
def test_one_vote_per_counter_also_across_a_crash() -> None:
    effects = single().receive(3.0, "a", VoteRequest(Epoch(1, "a"), False))
    again = restored(effects)
    assert not granted(again.receive(9.0, "c", VoteRequest(Epoch(1, "c"), False)))
    assert not granted(again.receive(9.0, "c", VoteRequest(Epoch(1, "c"), True)))
    assert granted(again.receive(9.0, "a", VoteRequest(Epoch(1, "a"), False))), "the same one may ask again"
    assert granted(again.receive(19.0, "c", VoteRequest(Epoch(2, "c"), False)))


def test_a_pre_vote_binds_nobody() -> None:
    election = single()
    for candidate in ("a", "c"):
        effects = election.receive(3.0, candidate, VoteRequest(Epoch(1, candidate), True))
        assert granted(effects)
        assert not any(isinstance(effect, Persist) for effect in effects)
    assert election.highest == ZERO_EPOCH


@pytest.mark.claim("E22")
def test_a_voter_that_hears_a_leader_refuses_until_that_one_falls_silent_or_is_dead() -> None:
    election = single()
    election.receive(1.0, "a", Heartbeat(Epoch(1, "a")))
    assert not granted(election.receive(3.9, "c", VoteRequest(Epoch(2, "c"), True)))
    assert not granted(election.receive(3.9, "c", VoteRequest(Epoch(2, "c"), False)))
    assert granted(election.receive(4.1, "c", VoteRequest(Epoch(2, "c"), True)))

    election = single()
    election.receive(1.0, "a", Heartbeat(Epoch(1, "a")))
    assert election.electorate(1.6, ("b", "c"), ABC, True) == [], "held dead, but heard a moment ago"
    assert not granted(election.receive(1.7, "c", VoteRequest(Epoch(2, "c"), True)))
    election.receive(1.8, "a", Heartbeat(Epoch(1, "a")))
    assert election.tick(2.7) == []
    assert election.tick(election.deadline()) == [Leader(None)]
    assert granted(election.receive(2.9, "c", VoteRequest(Epoch(2, "c"), False)))

    election = single()
    election.receive(1.0, "a", Heartbeat(Epoch(1, "a")))
    assert election.electorate(1.1, ("b", "c"), ("b", "c"), True) == [Leader(None)], "it has left"


def test_who_has_the_vote_gets_a_moment_to_win_with_it() -> None:
    election = single()
    election.receive(3.0, "a", VoteRequest(Epoch(1, "a"), False))
    assert not granted(election.receive(3.1, "c", VoteRequest(Epoch(2, "c"), True)))
    assert granted(election.receive(3.6, "c", VoteRequest(Epoch(2, "c"), True)))


def test_who_may_not_coordinate_neither_votes_nor_stands_but_follows() -> None:
    election = single("w", eligible=False)
    assert election.receive(1.0, "a", VoteRequest(Epoch(1, "a"), False)) == []
    effects = election.receive(1.0, "a", Heartbeat(Epoch(1, "a")))
    assert [type(effect) for effect in effects] == [Persist, Leader]
    assert election.leader == Epoch(1, "a")
    assert election.tick(election.deadline()) == [Leader(None)], "it notices silence"
    assert election.deadline() == float("inf")


def test_strangers_are_neither_voted_for_nor_followed() -> None:
    election = single()
    assert election.receive(3.0, "x", VoteRequest(Epoch(1, "x"), False)) == []
    assert election.receive(3.0, "x", Heartbeat(Epoch(1, "x"))) == []
    assert election.receive(3.0, "c", Heartbeat(Epoch(1, "a"))) == [], "nobody speaks for another"
    assert election.receive(3.0, "c", VoteRequest(Epoch(1, "a"), False)) == []
    election.tick(election.deadline())
    election.receive(3.0, "x", VoteReply(Epoch(1, "b"), True, True, ZERO_EPOCH))
    assert not election.leading


def test_a_counter_out_of_all_proportion_is_not_believed() -> None:
    election = single()
    far = Epoch(MAX_STEP + 1, "a")
    assert election.receive(1.0, "a", Heartbeat(far)) == []
    assert not granted(election.receive(1.0, "a", VoteRequest(far, False)))
    assert election.highest == ZERO_EPOCH
    elected(election)
    election.receive(3.1, "c", HeartbeatAck(Epoch(2**48, "c")))
    for _ in range(4):
        assert {type(m) for m in sent(election.tick(election.deadline()))} == {Heartbeat}


def test_who_may_not_coordinate_can_raise_the_epoch_by_little_only() -> None:
    """A stray that obeyed a leader long gone must be led again; that it names any number must not use up the epochs."""
    for counter, bids in ((STRAY_STEP + 1, True), (STRAY_STEP + 2, False)):
        election = single()
        elected(election)
        election.receive(3.1, "w", HeartbeatAck(Epoch(counter, "z")))
        said = [message for _ in range(4) for message in sent(election.tick(election.deadline()))]
        assert any(isinstance(message, VoteRequest) for message in said) is bids


@pytest.mark.claim("E4")
def test_no_two_leaders_with_the_same_counter_are_accepted() -> None:
    """Neither the lower nor the higher node id displaces the one accepted first, also after a crash."""
    for first, second in itertools.permutations(("a", "c")):
        election = single()
        effects = election.receive(1.0, first, Heartbeat(Epoch(1, first)))
        for voter in (election, restored(effects)):
            effects = voter.receive(5.0, second, Heartbeat(Epoch(1, second)))
            assert Leader(Epoch(1, second)) not in effects
            assert sent(effects, second) == [HeartbeatAck(Epoch(1, first))], "it is told why"


@pytest.mark.claim("E4")
def test_nobody_goes_back_to_a_lower_counter() -> None:
    """Neither from a leader that it follows nor from one that has fallen silent, also after a crash."""
    effects = (election := single()).receive(1.0, "a", Heartbeat(Epoch(4, "a")))
    for voter, now in ((election, 1.5), (election, 9.0), (restored(effects), 9.0)):
        voter.tick(now)
        effects = voter.receive(now, "c", Heartbeat(Epoch(3, "c")))
        assert not any(isinstance(effect, Leader) for effect in effects)
        assert sent(effects, "c") == [HeartbeatAck(Epoch(4, "a"))], "it is told why"


def test_state_that_is_not_ours_is_refused() -> None:
    with pytest.raises(Corrupted):
        single(state=b"\xc1")
    accepted, promised = Epoch(3, "a"), Epoch(4, "c")
    assert ballots.load(ballots.dump(accepted, promised)) == ballots.State(accepted, promised)


# --- one leader -------------------------------------------------------------------------------------------------------


@pytest.mark.claim("E2")
def test_a_leader_acts_only_once_its_epoch_is_on_disk_and_tells_everybody() -> None:
    effects = elected(single())
    assert [type(effect) for effect in effects] == [Persist, Leader, Send, Send]
    assert sent(effects) == [Heartbeat(Epoch(1, "b"))] * 2


def test_a_leader_has_fresh_links_to_those_that_do_not_answer() -> None:
    """TCP on a bad network may hold a link up for longer than followers wait."""
    election = single()
    elected(election)
    asked: dict[float, list[str]] = {}
    while election.deadline() < 6.0:
        now = election.deadline()
        asked[now] = redialled(election.tick(now))
        election.receive(now + 0.01, "a", HeartbeatAck(Epoch(1, "b")))
        if now < 4.2:
            election.receive(now + 0.01, "c", HeartbeatAck(Epoch(1, "b")))
    assert asked == {3.5: [], 4.0: [], 4.5: [], 5.0: [], 5.5: ["c"]}


def test_a_leader_that_nobody_answers_does_not_dial_all_at_once() -> None:
    voters = tuple("abcdefgh")
    election = single(alive=voters, known=voters)
    election.tick(election.deadline())
    for trial in (True, False):
        for peer in "acdef":
            election.receive(3.0, peer, VoteReply(Epoch(1, "b"), trial, True, ZERO_EPOCH))
    assert election.leading
    while election.deadline() < 5.0:
        now = election.deadline()
        asked = redialled(election.tick(now))
        if now < 3.6:
            election.receive(now, "a", HeartbeatAck(Epoch(1, "b")))
    assert asked == ["c", "d", "e"]


def test_a_newcomer_hears_from_the_leader_at_once() -> None:
    election = single()
    elected(election)
    effects = election.electorate(3.2, ABC, ABC, True, (*ABC, "w"))
    assert effects == [Send("w", Heartbeat(Epoch(1, "b")))]


def test_overwrite_newer() -> None:
    """A stray has seen a higher counter, of a leader that is no more. It does not depose the leader; the leader goes
    above it and leads on. After etcd's LeaderElectionOverwriteNewerLogs."""
    election = single()
    elected(election)
    election.receive(3.1, "c", HeartbeatAck(Epoch(7, "c")))
    assert election.leading
    for _ in range(3):
        asked = [m for m in sent(election.tick(election.deadline())) if isinstance(m, VoteRequest)]
        if asked:
            break
    assert asked == [VoteRequest(Epoch(8, "b"), True)] * 2
    assert election.leader == Epoch(1, "b"), "meanwhile it leads on"
    election.receive(4.5, "a", VoteReply(Epoch(8, "b"), True, True, Epoch(1, "b")))
    effects = election.receive(4.5, "c", VoteReply(Epoch(8, "b"), False, True, Epoch(8, "b")))
    assert Leader(Epoch(8, "b")) in effects


def test_a_voter_grants_its_own_leader_a_higher_counter() -> None:
    election = single()
    election.receive(1.0, "a", Heartbeat(Epoch(1, "a")))
    assert granted(election.receive(1.1, "a", VoteRequest(Epoch(8, "a"), True)))
    assert granted(election.receive(1.2, "a", VoteRequest(Epoch(8, "a"), False)))
    effects = election.receive(1.3, "a", Heartbeat(Epoch(1, "a")))
    assert sent(effects) == [HeartbeatAck(Epoch(1, "a"))], "followed until it has won"
    assert Leader(Epoch(8, "a")) in election.receive(1.4, "a", Heartbeat(Epoch(8, "a")))


def test_a_leader_gives_way_to_a_higher_one_and_follows_it() -> None:
    election = single()
    elected(election)
    effects = election.receive(3.5, "a", Heartbeat(Epoch(2, "a")))
    assert [e for e in effects if isinstance(e, Leader)] == [Leader(None), Leader(Epoch(2, "a"))]
    assert sent(effects, "c") == [HeartbeatAck(Epoch(1, "b"), over=True)], "its followers hear that it is over"


def test_followers_of_a_leader_that_lays_down_need_not_wait() -> None:
    election = single()
    election.receive(1.0, "a", Heartbeat(Epoch(1, "a")))
    assert election.receive(1.1, "c", HeartbeatAck(Epoch(1, "a"), over=True)) == [], "only it can say so"
    assert election.receive(1.1, "a", HeartbeatAck(Epoch(1, "a"))) == []
    assert election.receive(1.1, "a", HeartbeatAck(Epoch(1, "a"), over=True)) == [Leader(None)]
    assert election.deadline() < 1.5
    assert election.receive(1.2, "a", Heartbeat(Epoch(1, "a"))) == [], "sent before, and overtaken"
    assert election.leader is None


def test_a_lower_leader_is_told_of_the_higher() -> None:
    election = single(state=ballots.dump(Epoch(4, "b"), Epoch(4, "b")))
    elected(election, 5)
    effects = election.receive(3.5, "a", Heartbeat(Epoch(2, "a")))
    assert effects == [Send("a", HeartbeatAck(Epoch(5, "b")))]


def test_a_leader_whose_role_is_taken_steps_down() -> None:
    election = single()
    elected(election)
    effects = election.electorate(4.0, ("a", "c"), ("a", "c"), False, ABC)
    assert effects[0] == Leader(None)
    assert not election.leading


# --- together ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voters", [1, 2, 3, 5, 30])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_hive_agrees_on_one_coordinator_and_keeps_it(voters: int, seed: int) -> None:
    arena = Arena(voters, seed=seed, followers=3)
    arena.run(9.0)
    first = arena.leader()
    arena.run(30.0)
    assert arena.leader() == first
    assert first.counter <= 2
    arena.check()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("voters", [2, 3, 7])
def test_after_a_death_is_known_a_new_coordinator_stands_within_a_second(voters: int, seed: int) -> None:
    arena = Arena(voters, seed=seed, followers=2, detect=0.9)
    arena.run(10.0)
    first = arena.leader()
    arena.crash(first.node)
    arena.run(0.9 + 0.9)
    assert arena.leader().counter > first.counter
    arena.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_deaths_noticed_one_after_the_other_still_end_in_one_election(seed: int) -> None:
    arena = Arena(7, seed=seed, detect=60.0)
    arena.run(10.0)
    first = arena.leader()
    arena.crash(first.node)
    for node in list(arena.nodes):
        arena.believes_gone(node, first.node)
        arena.run(0.08)
    arena.run(2.0)
    assert arena.leader().counter <= first.counter + 2


@pytest.mark.parametrize("seed", range(8))
def test_a_silent_coordinator_is_replaced_and_gives_way_when_it_wakes(seed: int) -> None:
    arena = Arena(5, seed=seed, followers=1)
    arena.run(10.0)
    first = arena.leader()
    arena.freeze(first.node)
    arena.run(5.0)
    others = [e.leader for n, e in arena.nodes.items() if n != first.node]
    assert len(set(others)) == 1
    assert others[0] is not None
    assert others[0].counter > first.counter
    arena.thaw(first.node)
    arena.run(1.0)
    assert arena.leader() == others[0]
    arena.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_coordinator_that_stops_hands_over_at_once(seed: int) -> None:
    arena = Arena(3, seed=seed, followers=1)
    arena.run(10.0)
    first = arena.leader()
    arena._act(first.node, arena.nodes[first.node].resign(arena.now))
    arena.run(0.9)
    assert arena.leader().node != first.node
    arena.run(20.0)
    assert arena.leader().node != first.node


@pytest.mark.parametrize("seed", SEEDS)
def test_a_coordinator_that_restarts_at_once_is_not_waited_for(seed: int) -> None:
    arena = Arena(3, seed=seed)
    arena.run(10.0)
    first = arena.leader()
    arena.crash(first.node)
    arena.run(0.2)
    arena.restart(first.node)
    arena.run(1.5)
    assert arena.leader().counter == first.counter + 1
    arena.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_all_restart_together_and_remember(seed: int) -> None:
    arena = Arena(4, seed=seed, followers=1)
    arena.run(10.0)
    first = arena.leader()
    for node in arena.all:
        arena.crash(node)
    for node in arena.all:
        arena.restart(node)
    arena.run(13.0)
    assert arena.leader().counter > first.counter
    arena.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_two_machines_survive_losing_one(seed: int) -> None:
    arena = Arena(2, seed=seed)
    arena.run(10.0)
    first = arena.leader()
    (other,) = [n for n in arena.voters if n != first.node]
    arena.crash(other)
    arena.run(5.0)
    assert arena.leader() == first
    arena.restart(other)
    arena.run(5.0)
    assert arena.leader() == first
    arena.crash(first.node)
    arena.run(5.0)
    assert arena.leader().node == other


@pytest.mark.claim("E11")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (3, 2), (4, 1)])
def test_both_sides_of_a_partition_go_on_and_one_epoch_stands_after_it_heals(sizes: tuple[int, int], seed: int) -> None:
    arena = Arena(sum(sizes), seed=seed, followers=2)
    arena.run(10.0)
    near, far = (*arena.voters[: sizes[0]], "w0"), (*arena.voters[sizes[0] :], "w1")
    arena.split(near, far)
    arena.run(15.0)
    for side in (near, far):
        (leader,) = {arena.nodes[n].leader for n in side}
        assert leader is not None
        assert leader.node in side
    highest = max(arena.epochs())
    arena.heal()
    arena.run(6.0)
    leader = arena.leader()
    assert leader >= highest
    assert leader.counter <= highest.counter + 2
    arena.check()
    arena.run(20.0)
    assert arena.leader() == leader


def test_rivals_under_one_counter_are_resolved_by_outbidding() -> None:
    """Both sides of a split that began before any election choose counter 1."""
    for seed in range(8):
        arena = Arena(4, seed=seed, followers=2)
        near, far = ("n0", "n1", "w0"), ("n2", "n3", "w1")
        arena.split(near, far, detect=0.1)
        arena.run(12.0)
        counters = {arena.nodes[n].leader for n in (*near, *far)}
        assert len(counters) == 2
        arena.heal()
        arena.run(6.0)
        assert arena.leader().counter > max(e.counter for e in counters if e)
        arena.check()


@pytest.mark.claim("E7")
@pytest.mark.parametrize("seed", SEEDS)
def test_disruptive_follower_prevote(seed: int) -> None:
    """A node that hears nobody for a while, without being held dead, and comes back does not disturb the leader nor
    raise the counter. After etcd's DisruptiveFollowerPreVote."""
    arena = Arena(5, seed=seed, detect=1000.0)
    arena.run(10.0)
    first = arena.leader()
    lonely = next(n for n in arena.voters if n != first.node)
    arena.split([lonely], [n for n in arena.all if n != lonely])
    arena.run(30.0)
    assert arena.nodes[lonely].leader is None
    arena.deaf.clear()
    arena.run(3.0)
    assert arena.leader() == first
    assert {election.highest for election in arena.nodes.values()} == {first}


@pytest.mark.claim("E8")
@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_flapping_link_costs_at_most_two_epochs(seed: int, leads: bool) -> None:
    """Two seconds up, two down, for five minutes: less than it takes to be held dead."""
    arena = Arena(4, seed=seed, detect=4.0)
    arena.run(10.0)
    first = arena.leader()
    shaky = next(n for n in arena.voters if (n == first.node) is leads)
    for _ in range(75):
        arena.split([shaky], [n for n in arena.all if n != shaky])
        arena.run(2.0)
        arena.deaf.clear()
        arena.run(2.0)
    arena.run(5.0)
    assert max(arena.epochs()).counter <= first.counter + 2
    arena.check()


@pytest.mark.claim("E8")
@pytest.mark.parametrize("way", ["from the leader", "to the leader", "between others"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_one_way_link_costs_a_bounded_number_of_epochs(seed: int, way: str) -> None:
    arena = Arena(4, seed=seed)
    arena.run(10.0)
    first = arena.leader()
    other, third = [n for n in arena.voters if n != first.node][:2]
    mute, deaf = {
        "from the leader": (first.node, other),
        "to the leader": (other, first.node),
        "between others": (other, third),
    }[way]
    arena.deaf[mute, deaf] = None
    arena.run(60.0)
    assert max(arena.epochs()).counter <= first.counter + 2
    arena.check()


# --- with a quorum ----------------------------------------------------------------------------------------------------


def test_quorum_counts_votes_not_the_living() -> None:
    election = single(quorum=2, alive=("b",))
    for _ in range(5):
        election.tick(election.deadline())
    assert not election.leading
    assert election.highest == ZERO_EPOCH, "nor does it raise the counter meanwhile"


@pytest.mark.parametrize("seed", SEEDS)
def test_leader_steps_down_when_quorum_is_lost(seed: int) -> None:
    """Cut off from the majority it stops leading, although nobody told it that anybody died; the majority elects, and
    on healing there is one leader. After etcd's LeaderStepdownWhenQuorumLost."""
    arena = Arena(5, seed=seed, quorum=3, detect=1000.0)
    arena.run(10.0)
    first = arena.leader()
    friend = next(n for n in arena.voters if n != first.node)
    rest = [n for n in arena.voters if n not in (first.node, friend)]
    arena.split((first.node, friend), rest)
    arena.run(12.0)
    assert arena.nodes[first.node].leader is None
    assert arena.nodes[friend].leader is None
    (second,) = {arena.nodes[n].leader for n in rest}
    assert second is not None
    assert second.counter > first.counter
    arena.heal()
    arena.run(5.0)
    assert arena.leader() == second
    assert len({e.counter for e in arena.epochs()}) == len(arena.epochs())


@pytest.mark.claim("E9")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_leader_without_its_quorum_steps_down_in_time(seed: int) -> None:
    arena = Arena(5, seed=seed, quorum=3, detect=1000.0)
    arena.run(10.0)
    first, begin = arena.leader(), arena.now
    arena.split([first.node], [node for node in arena.all if node != first.node])
    arena.run(10.0)
    (stepped,) = [at for at, node, epoch in arena.told if node == first.node and epoch is None and at > begin]
    assert stepped - begin <= arena.settings.timeout[1] + arena.settings.heartbeat


@pytest.mark.claim("E12")
@pytest.mark.parametrize("voters", [3, 8, 32])
def test_a_silent_coordinator_is_replaced_within_four_seconds(voters: int) -> None:
    for seed in range(8):
        arena = Arena(voters, seed=seed, detect=1000.0, disk=(0.001, 0.02))
        arena.run(10.0 + seed / 8)
        first, begin = arena.leader(), arena.now
        arena.freeze(first.node)
        arena.run(4.0)
        assert [e for at, node, e in arena.told if at > begin and e is not None and e.node == node != first.node]


@pytest.mark.parametrize("seed", SEEDS)
def test_with_a_quorum_most_gone_means_waiting_and_their_return_means_going_on(seed: int) -> None:
    arena = Arena(3, seed=seed, quorum=2)
    arena.run(10.0)
    arena.leader()
    arena.crash("n1")
    arena.crash("n2")
    arena.run(20.0)
    assert arena.nodes["n0"].leader is None
    arena.restart("n1")
    arena.run(12.0)
    arena.leader()
    arena.check()


# --- what the persisted vote is for -----------------------------------------------------------------------------------


class Forgetful(Election):
    """Persists whom it obeyed but not whom it voted for."""

    def _persist(self) -> Persist:
        return Persist(ballots.dump(self._accepted, ZERO_EPOCH))


@pytest.mark.parametrize(("kind", "leaders"), [(Election, 1), (Forgetful, 2)])
def test_forgetting_a_vote_would_give_one_counter_two_leaders(kind: type[Election], leaders: int) -> None:
    """b votes for a, crashes, comes back and is asked by c, all before anybody has won. Were the vote not on disk, a
    and c would both lead epoch 1."""
    a, b, c = (single(node, kind=kind) for node in ABC)
    winners = []

    def ask(candidate: Election, name: str, voter: Election) -> None:
        for trial in (True, False):
            reply = sent(voter.receive(3.0, name, VoteRequest(Epoch(1, name), trial)), name)
            for message in reply:
                effects = candidate.receive(3.0, "b", message)
                winners.extend(e.epoch for e in effects if isinstance(e, Leader) and e.epoch == Epoch(1, name))

    a.tick(a.deadline())
    c.tick(c.deadline())
    voted = b.receive(3.0, "a", VoteRequest(Epoch(1, "a"), False))
    ask(a, "a", b)
    (state,) = [e.state for e in voted if isinstance(e, Persist)]
    ask(c, "c", single("b", state=state, kind=kind))
    assert len(winners) == leaders
