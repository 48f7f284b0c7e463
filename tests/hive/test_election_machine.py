"""The election under everything a network and a disk can do, in whatever order hypothesis thinks of.

Messages are lost, duplicated and reordered; nodes crash between any two effects and come back with what is on disk.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from hivenode.hive import ballots
from hivenode.hive.election import Effect, Election, ElectionSettings, Leader, Persist, Send
from hivenode.net.messages import Heartbeat, Message, VoteReply, VoteRequest
from hivenode.spec.values import ZERO_EPOCH, Epoch

VOTERS = ("a", "b", "c", "d")
NODES = (*VOTERS, "w")
nodes = st.sampled_from(NODES)
indices = st.integers(0, 10_000)


class Machine(RuleBasedStateMachine):
    """`w` may not coordinate. Effects wait in a queue per node, as they do for the disk."""

    kind: type[Election] = Election
    quorum = 3
    one_leader_per_counter = True
    views = True
    """Whether nodes may disagree on who is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.lives = 0
        self.disks: dict[str, bytes | None] = dict.fromkeys(NODES)
        self.waiting: dict[str, list[Effect]] = {node: [] for node in NODES}
        self.network: list[tuple[str, str, Message]] = []
        self.votes: dict[tuple[str, int], str] = {}
        self.leaders: dict[int, Epoch] = {}
        self.followed: dict[str, Epoch] = dict.fromkeys(NODES, ZERO_EPOCH)
        self.standings: dict[str, int] = {}
        self.seen: dict[str, tuple[str, ...]] = {}
        self.elections: dict[str, Election] = {}
        for node in NODES:
            self.boot(node)

    def boot(self, node: str) -> None:
        self.lives += 1
        self.waiting[node] = []
        self.elections[node] = self.kind(
            node,
            settings=ElectionSettings(quorum=self.quorum),
            rng=random.Random(self.lives),
            state=self.disks[node],
        )
        self.waiting[node] += self.elections[node].start(self.now)
        self.see(node, VOTERS)

    def see(self, node: str, alive: tuple[str, ...]) -> None:
        self.seen[node] = alive
        effects = self.elections[node].electorate(
            self.now, alive, VOTERS, node in VOTERS, NODES, standings=self.standings
        )
        self.waiting[node] += effects

    # --- what may happen ------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.1, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(node=nodes)
    def a_timer_fires(self, node: str) -> None:
        election = self.elections[node]
        if election.deadline() < float("inf"):
            self.now = max(self.now, election.deadline())
            self.waiting[node] += election.tick(self.now)

    @rule(node=nodes, count=st.integers(1, 8))
    def effects_are_carried_out(self, node: str, count: int) -> None:
        for _ in range(min(count, len(self.waiting[node]))):
            self.carry_out(node, self.waiting[node].pop(0))

    @precondition(lambda self: self.network)
    @rule(index=indices, twice=st.booleans())
    def a_message_arrives(self, index: int, twice: bool) -> None:
        index %= len(self.network)
        sender, receiver, message = self.network[index] if twice else self.network.pop(index)
        self.waiting[receiver] += self.elections[receiver].receive(self.now, sender, message)

    @precondition(lambda self: self.network)
    @rule(index=indices)
    def a_message_is_lost(self, index: int) -> None:
        self.network.pop(index % len(self.network))

    @rule(node=nodes)
    def a_node_crashes_and_returns(self, node: str) -> None:
        self.boot(node)

    @precondition(lambda self: self.views)
    @rule(node=nodes, gone=st.lists(st.sampled_from(VOTERS), max_size=3, unique=True))
    def a_node_sees_others_go(self, node: str, gone: list[str]) -> None:
        self.see(node, tuple(n for n in VOTERS if n not in gone or n == node))

    @rule(node=st.sampled_from(VOTERS), standing=st.integers(1, 191), hear=st.lists(nodes, unique=True))
    def a_standing_changes(self, node: str, standing: int, hear: list[str]) -> None:
        self.standings[node] = standing
        for hearer in hear:
            self.see(hearer, self.seen[hearer])

    @rule(node=nodes)
    def a_node_resigns(self, node: str) -> None:
        self.waiting[node] += self.elections[node].resign(self.now)

    @rule(order=st.randoms(use_true_random=False), lose=st.sampled_from([0.0, 0.2]), rounds=st.integers(1, 6))
    def much_happens(self, order: random.Random, lose: float, rounds: int) -> None:
        """The next timer, and then everything that follows from it, in some order."""
        node = min(NODES, key=lambda n: (self.elections[n].deadline(), n))
        self.a_timer_fires(node)
        for _ in range(rounds):
            for name in NODES:
                self.effects_are_carried_out(name, len(self.waiting[name]))
            under_way, self.network = self.network, []
            order.shuffle(under_way)
            for sender, receiver, message in under_way:
                if order.random() >= lose:
                    self.waiting[receiver] += self.elections[receiver].receive(self.now, sender, message)

    # --- what must hold -------------------------------------------------------------------------------------------

    def carry_out(self, node: str, effect: Effect) -> None:
        disk = ballots.load(self.disks[node])
        match effect:
            case Persist(state=state):
                after = ballots.load(state)
                assert after.accepted.counter >= disk.accepted.counter
                self.disks[node] = state
            case Send(peer=peer, message=message):
                self.check_sent(node, message, disk)
                self.network.append((node, peer, message))
            case Leader(epoch=None):
                pass
            case Leader(epoch=epoch):
                assert epoch is not None
                assert disk.accepted == epoch, "obeyed before it was on disk"
                before = self.followed[node]
                assert epoch == before or epoch.counter > before.counter, "two leaders under one counter, or back"
                self.followed[node] = epoch
                if epoch.node == node and self.one_leader_per_counter:
                    assert self.leaders.setdefault(epoch.counter, epoch) == epoch, "two leaders for one counter"

    def check_sent(self, node: str, message: Message, disk: ballots.State) -> None:
        match message:
            case VoteRequest(epoch=epoch, trial=False) | VoteReply(epoch=epoch, trial=False, granted=True):
                assert node in VOTERS
                assert disk.promised >= epoch, "voted before the vote was on disk"
                assert self.votes.setdefault((node, epoch.counter), epoch.node) == epoch.node, "voted twice"
            case Heartbeat(epoch=epoch):
                assert epoch.node == node
                assert disk.accepted >= epoch


class Quorum(Machine):
    """Three of four votes needed, and views may differ in any way."""


class Whole(Machine):
    """No quorum, but all agree on who there is: a majority of all."""

    quorum = 0
    views = False


class Open(Machine):
    """No quorum and differing views, as in a partition: a counter may have several leaders, but on no node."""

    quorum = 0
    one_leader_per_counter = False


class ForgetsVotes(Election):
    def _persist(self) -> Persist:
        return Persist(ballots.dump(self._accepted, ZERO_EPOCH))


class VotesFirst(Election):
    """Answers before the vote is on disk."""

    def _on_request(self, now: float, peer: str, epoch: Epoch, trial: bool) -> list[Effect]:
        return sorted(super()._on_request(now, peer, epoch, trial), key=lambda effect: isinstance(effect, Persist))


class TakesTheHigherId(Election):
    """Follows whichever epoch is higher, also under the same counter."""

    def _on_heartbeat(self, now: float, peer: str, epoch: Epoch, heir: str) -> list[Effect]:
        if epoch.counter == self._accepted.counter and epoch > self._accepted and not self.leading:
            self._accepted = epoch
            return [self._persist(), *self._follow(now, epoch)]
        return super()._on_heartbeat(now, peer, epoch, heir)


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@pytest.mark.claim("E3", "E4")
@pytest.mark.parametrize("machine", [Quorum, Whole, Open])
def test_whatever_happens(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=CHECKS),
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", [Quorum, Whole, Open])
def test_whatever_happens_for_long(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=3000, stateful_step_count=100, deadline=None, suppress_health_check=CHECKS),
    )


def hear_two_leaders_of_one_counter(kind: type[Election]) -> None:
    machine = type("Scripted", (Open,), {"kind": kind})()
    for leader in ("a", "b"):
        machine.waiting["c"] += machine.elections["c"].receive(machine.now, leader, Heartbeat(epoch=Epoch(5, leader)))
        machine.effects_are_carried_out("c", len(machine.waiting["c"]))


def test_a_node_follows_one_leader_under_a_counter() -> None:
    hear_two_leaders_of_one_counter(Election)
    with pytest.raises(AssertionError, match="two leaders under one counter"):
        hear_two_leaders_of_one_counter(TakesTheHigherId)


@pytest.mark.parametrize(("machine", "broken"), [(Quorum, ForgetsVotes), (Quorum, VotesFirst)])
def test_the_machine_finds_what_is_broken(machine: type[Machine], broken: type[Election]) -> None:
    """Each of the rules is needed, and each breach would be seen."""
    mutant = type(f"{machine.__name__}{broken.__name__}", (machine,), {"kind": broken})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            mutant,
            settings=settings(
                max_examples=2000,
                stateful_step_count=50,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=CHECKS,
            ),
        )
