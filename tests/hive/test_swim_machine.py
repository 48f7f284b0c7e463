"""The membership under everything a network can do, in whatever order hypothesis thinks of.

Messages are lost, duplicated, delayed and reordered, links break, nodes die, restart and leave, and a liar lies.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from hivenode.hive import roster, statements
from hivenode.hive.roster import PRESENT, MemberState, Roster
from hivenode.hive.swim import Effect, Send, Swim
from hivenode.net.messages import Gossip, Message, PushPull, Statement
from hivenode.net.transport import LinkEnd
from tests.hive.swarm import core, node_id, signer

NODES = tuple(node_id(number) for number in range(4))
LIAR = node_id(9)
nodes = st.sampled_from(NODES)
indices = st.integers(0, 10_000)
RANK = {MemberState.alive: 0, MemberState.suspect: 1, MemberState.dead: 2, MemberState.left: 3}


class Machine(RuleBasedStateMachine):
    """Four nodes, and a liar that is a member by its certificate. Every message waits in `network` until a rule lets it
    arrive, again if it likes, or loses it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.boots = dict.fromkeys(NODES, 0)
        self.cores: dict[str, Swim] = {}
        self.links: set[tuple[str, str]] = set()
        self.network: list[tuple[str, str, Message]] = []
        self.has_left: set[str] = set()
        """Nodes that have ever said that they leave."""
        self.believed: dict[tuple[str, str], tuple[int, int]] = {}
        for node in NODES:
            self.boot(node)

    def boot(self, node: str) -> None:
        self.boots[node] += 1
        self.cores[node] = core(node, boot=self.boots[node])
        self.believed = {pair: order for pair, order in self.believed.items() if pair[0] != node}
        self.act(node, self.cores[node].start(self.now))
        for other in self.cores:
            if other != node:
                self.connect(node, other)

    def act(self, node: str, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send) and effect.peer in self.cores:
                self.network.append((node, effect.peer, effect.message))
        del self.network[:-400]

    def connect(self, a: str, b: str) -> None:
        for node, peer in ((a, b), (b, a)):
            self.links.add((node, peer))
            self.act(node, self.cores[node].link_up(self.now, peer))

    # --- what happens ---------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 3.0, 12.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for node in NODES:
            if node in self.cores and self.cores[node].deadline() <= self.now:
                self.act(node, self.cores[node].tick(self.now))

    @precondition(lambda self: self.network)
    @rule(index=indices, again=st.booleans())
    def a_message_arrives(self, index: int, again: bool) -> None:
        at = index % len(self.network)
        sender, receiver, message = self.network[at] if again else self.network.pop(at)
        if receiver in self.cores and (receiver, sender) in self.links:
            self.act(receiver, self.cores[receiver].receive(self.now, sender, message))

    @precondition(lambda self: self.network)
    @rule(count=st.integers(1, 60))
    def messages_arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.network))):
            self.a_message_arrives(0, False)

    @precondition(lambda self: self.network)
    @rule(index=indices)
    def a_message_is_lost(self, index: int) -> None:
        self.network.pop(index % len(self.network))

    @rule(a=nodes, b=nodes)
    def a_link_breaks(self, a: str, b: str) -> None:
        if (a, b) in self.links and a in self.cores and b in self.cores:
            self.links -= {(a, b), (b, a)}
            for node, peer in ((a, b), (b, a)):
                self.act(node, self.cores[node].link_down(self.now, peer, LinkEnd.reset))

    @rule(a=nodes, b=nodes)
    def a_link_comes_up(self, a: str, b: str) -> None:
        if a != b and a in self.cores and b in self.cores:
            self.connect(a, b)

    @rule(node=nodes, peer=nodes, why=st.sampled_from([LinkEnd.refused, LinkEnd.unreachable]))
    def a_dial_fails(self, node: str, peer: str, why: LinkEnd) -> None:
        if node in self.cores and peer not in self.cores:
            self.links.discard((node, peer))
            self.act(node, self.cores[node].dial_failed(self.now, peer, why))

    @rule(node=nodes)
    def a_node_dies(self, node: str) -> None:
        if node in self.cores and len(self.cores) > 1:
            self.gone(node)

    def gone(self, node: str) -> None:
        del self.cores[node]
        for peer in list(self.cores):
            if (peer, node) in self.links:
                self.act(peer, self.cores[peer].link_down(self.now, node, LinkEnd.reset))
        self.links = {pair for pair in self.links if node not in pair}

    @rule(node=nodes)
    def a_node_starts_again(self, node: str) -> None:
        if node not in self.cores:
            self.boot(node)

    @rule(node=nodes)
    def a_node_leaves(self, node: str) -> None:
        if node in self.cores and len(self.cores) > 1:
            self.has_left.add(node)
            self.act(node, self.cores[node].leave(self.now))
            self.gone(node)

    @rule(
        victim=nodes, listener=nodes, kind=st.sampled_from(["alive", "left", "suspect", "dead"]),
        offset=st.sampled_from([-1, 0, 1, 1 << 32, 2**62]), whose=st.sampled_from([LIAR, *NODES]), pushed=st.booleans(),
    )  # fmt: skip
    def the_liar_lies(self, victim: str, listener: str, kind: str, offset: int, whose: str, pushed: bool) -> None:
        """About anybody, in its own name or another's; its own signature is the only one it can make."""
        if listener not in self.cores:
            return
        known = self.cores[listener].members.get(victim)
        incarnation = max(0, (known.incarnation if known else 0) + offset)
        made: Statement
        if kind == "alive":
            made = statements.alive(signer(LIAR), victim, incarnation, "lie", (), "0")
        elif kind == "left":
            made = statements.left(signer(LIAR), victim, incarnation)
        elif kind == "suspect":
            made = statements.suspect(signer(LIAR), victim, incarnation, whose)
        else:
            made = statements.dead(signer(LIAR), victim, incarnation, whose)
        message = PushPull((made,), False) if pushed else Gossip((made,))
        self.act(listener, self.cores[listener].receive(self.now, LIAR, message))

    # --- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def everybody_lives_in_its_own_eyes(self) -> None:
        for node, swim in self.cores.items():
            assert swim.members[node].state is MemberState.alive

    @invariant()
    def only_who_has_left_is_held_to_have(self) -> None:
        for node, swim in self.cores.items():
            for member in swim.members.values():
                assert member.state is not MemberState.left or member.node in self.has_left, f"{node} on {member}"

    @invariant()
    def nobody_is_given_an_incarnation_it_never_had(self) -> None:
        for node, swim in self.cores.items():
            for member in swim.members.values():
                assert member.node in NODES
                assert member.boot <= self.boots[member.node], f"{node} on {member}"
                if member.node in self.cores and member.boot == self.boots[member.node]:
                    own = self.cores[member.node].members[member.node]
                    assert member.incarnation <= own.incarnation, f"{node} on {member}"

    @invariant()
    def what_is_believed_only_rises(self) -> None:
        for node, swim in self.cores.items():
            for member in swim.members.values():
                order = (member.incarnation, RANK[member.state])
                assert order >= self.believed.get((node, member.node), (0, 0)), f"{node} on {member}"
                self.believed[node, member.node] = order

    @invariant()
    def health_is_bounded(self) -> None:
        assert all(0 <= swim.health <= 7 for swim in self.cores.values())

    def teardown(self) -> None:
        """Once all run and all messages arrive, everybody finds everybody alive."""
        for node in NODES:
            if node not in self.cores:
                self.boot(node)
        self.network.clear()
        for a in NODES:
            for b in NODES:
                if a < b:
                    self.connect(a, b)
        for _ in range(600):
            self.now += 0.1
            for node, swim in self.cores.items():
                if swim.deadline() <= self.now:
                    self.act(node, swim.tick(self.now))
            while self.network:
                self.messages_arrive(400)
        for node, swim in self.cores.items():
            present = {other for other, member in swim.members.items() if member.state in PRESENT}
            assert present == set(NODES), f"{node} sees {present}"


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def test_whatever_happens() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=CHECKS),
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whatever_happens_for_long() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=3000, stateful_step_count=100, deadline=None, suppress_health_check=CHECKS),
    )


@pytest.mark.parametrize("rule", ["signatures", "incarnations"])
def test_the_machine_finds_what_is_broken(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the rules is needed, and each breach would be seen."""
    if rule == "signatures":
        monkeypatch.setattr(statements, "valid", lambda statement, verify: True)
    else:
        monkeypatch.setattr(Roster, "learn", _credulous)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=300, stateful_step_count=50, deadline=None, derandomize=True, database=None,
                phases=[Phase.generate], suppress_health_check=CHECKS,
            ),
        )  # fmt: skip


_learn = Roster.learn


def _credulous(self, now, statement, **how):  # type: ignore[no-untyped-def]
    """An accusation above anything its subject has signed is taken for what it says."""
    record = self._records.get(statement.node)
    accuses = isinstance(statement, roster.Suspect | roster.Dead) and statement.node != self.me
    if record is not None and accuses and statement.incarnation > record.member.incarnation:
        self._set(record, roster.replace(record.member, incarnation=statement.incarnation))
    return _learn(self, now, statement, **how)
