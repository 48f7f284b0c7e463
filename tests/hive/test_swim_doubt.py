"""In a large hive, whoever fails a probe is asked again before anybody is told."""

from __future__ import annotations

import pytest

from hivenode.hive import statements
from hivenode.hive.broadcasts import MAX_STATEMENTS, Broadcasts
from hivenode.hive.profiles import PROFILES, Profile, patience, suspicion_min
from hivenode.hive.swim import Effect, MemberState, Redial, Send
from hivenode.net.messages import Ack, Alive, Gossip, Message, Nack, Ping, PingRequest, Statement, Suspect
from tests.hive.swarm import Swarm, core, node_id, signer

LAN = PROFILES["lan"]
BOOT = 1 << 32
ME, *PEERS = (node_id(i) for i in range(40))
LINKED, FAR = PEERS[:30], PEERS[30]
PATIENCE, SHORTEST = patience(LAN, 31), suspicion_min(LAN, 31)


def alive(node: str, incarnation: int = BOOT) -> Alive:
    return statements.alive(signer(node), node, incarnation, node[:7], ("10.0.0.1:1",), "1")


class Rig:
    """One core linked with thirty. All answer its pings at once but `silent`, whom nobody else can reach either."""

    def __init__(self, silent: str, beside: tuple[str, ...] = (), unlinked: tuple[str, ...] = ()) -> None:
        self.silent, self.now = silent, 0.0
        self.swim = core(ME, dials=lambda peer: peer in unlinked, beside=lambda peer: beside)
        self.swim.start(0.0)
        for peer in LINKED:
            self.swim.link_up(0.0, peer)
        self.swim.receive(0.0, LINKED[0], Gossip(tuple(alive(peer) for peer in (*LINKED, *unlinked))))
        self.asked: list[tuple[float, str, Message]] = []
        """What was sent to, or about, the silent one."""
        self.told: list[tuple[float, Statement]] = []
        """What was said of it to anybody."""
        self.sequence = 0

    def step(self) -> list[Effect]:
        self.now = self.swim.deadline()
        effects = self.swim.tick(self.now)
        for effect in effects:
            if isinstance(effect, Send):
                self._sent(effect.peer, effect.message)
        return effects

    def _sent(self, peer: str, message: Message) -> None:
        self.told += [(self.now, s) for s in getattr(message, "gossip", ()) if s.node == self.silent]
        about = peer == self.silent and isinstance(message, Ping)
        if about or (isinstance(message, PingRequest) and message.target == self.silent):
            self.asked.append((self.now, peer, message))
            self.sequence = message.sequence
        if isinstance(message, Ping) and peer != self.silent:
            self.swim.receive(self.now, peer, Ack(message.sequence))
        if isinstance(message, PingRequest):
            self.swim.receive(self.now, peer, Nack(message.sequence))

    def until_failed(self) -> float:
        """Until its probe has ended without an answer; returns when that was."""
        while not self.asked:
            self.step()
        self.told.clear()
        while self.now < self.asked[0][0] + LAN.probe_interval:
            self.step()
        return self.now

    def until(self, end: float) -> None:
        while self.swim.deadline() <= end:
            self.step()
        self.now = end

    @property
    def state(self) -> MemberState:
        return self.swim.members[self.silent].state


def test_among_ten_nobody_is_asked_twice_and_beyond_as_much_longer_as_there_are_decades() -> None:
    assert [patience(LAN, n) for n in (0, 1, 2, 10)] == [0.0] * 4
    assert [round(patience(LAN, n), 2) for n in (32, 100, 1000, 10_000)] == [0.51, 1.0, 2.0, 3.0]
    assert patience(PROFILES["wan"], 100) == 5.0


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_most_of_the_time_to_live_is_left_when_the_accused_is_told(profile: Profile) -> None:
    assert all(patience(profile, n) < suspicion_min(profile, n) / 3 + 1e-9 for n in (11, 100, 1000, 10_000))


def test_whoever_fails_a_probe_is_asked_again_before_anybody_is_told_and_dies_no_later() -> None:
    rig = Rig(LINKED[7])
    failed = rig.until_failed()
    again = [(peer, type(message)) for at, peer, message in rig.asked if at == failed]
    assert (rig.silent, Ping) in again
    assert [kind for _, kind in again].count(PingRequest) == 3
    rig.until(failed + PATIENCE - 0.001)
    assert rig.state is MemberState.alive
    assert not any(isinstance(said, Suspect) for _, said in rig.told)
    rig.until(failed + PATIENCE)
    assert rig.state is MemberState.suspect
    for accuser in LINKED[1:3]:
        accusation = statements.suspect(signer(accuser), rig.silent, BOOT, accuser)
        rig.swim.receive(rig.now, accuser, Gossip((accusation,)))
    rig.until(failed + SHORTEST - 0.001)
    assert rig.state is MemberState.suspect
    rig.until(failed + SHORTEST + 0.001)
    assert rig.state is MemberState.dead, "timed from the failure, not from when others were told"


def test_a_stalled_link_is_replaced_and_its_peer_asked_over_the_new_one() -> None:
    rig = Rig(LINKED[7])
    while not rig.asked:
        rig.step()
    effects: list[Effect] = []
    while rig.now < rig.asked[0][0] + LAN.probe_interval:
        effects = rig.step()
    assert effects.count(Redial(rig.silent)) == 1
    fresh = rig.swim.link_up(rig.now + 0.1, rig.silent)
    (ping,) = [e.message for e in fresh if isinstance(e, Send) and isinstance(e.message, Ping)]
    rig.swim.receive(rig.now + 0.2, rig.silent, Ack(ping.sequence))
    rig.until(rig.now + PATIENCE)
    assert rig.state is MemberState.alive


@pytest.mark.parametrize("through", ["itself", "a relay", "a stranger"])
def test_a_late_answer_acquits_without_a_word_to_anybody(through: str) -> None:
    rig = Rig(LINKED[7])
    failed = rig.until_failed()
    relay = next(peer for at, peer, message in rig.asked if at == failed and isinstance(message, PingRequest))
    stranger = next(peer for peer in LINKED if peer not in [asked for _, asked, _ in rig.asked])
    peer = {"itself": rig.silent, "a relay": relay, "a stranger": stranger}[through]
    rig.swim.receive(rig.now + 0.3, peer, Ack(rig.sequence))
    rig.until(failed + PATIENCE + 0.5)
    accused = through == "a stranger"
    assert rig.state is (MemberState.suspect if accused else MemberState.alive)
    assert any(isinstance(said, Suspect) for _, said in rig.told) is accused


def test_whoever_has_spoken_to_others_meanwhile_is_not_accused() -> None:
    rig = Rig(LINKED[7])
    failed = rig.until_failed()
    rig.swim.receive(rig.now, LINKED[0], Gossip((alive(rig.silent, BOOT + 1),)))
    rig.until(failed + PATIENCE)
    assert rig.state is MemberState.alive


def test_time_in_which_we_were_deaf_is_given_back_to_the_doubted() -> None:
    rig = Rig(LINKED[7])
    failed = rig.until_failed()
    rig.now = failed + 30.0
    rig.swim.tick(rig.now)
    assert rig.state is MemberState.suspect
    for accuser in LINKED[1:3]:
        rig.swim.receive(rig.now, accuser, Gossip((statements.suspect(signer(accuser), rig.silent, BOOT, accuser),)))
    rig.until(rig.now + SHORTEST - PATIENCE - 0.001)
    assert rig.state is MemberState.suspect, "not dead"


def test_of_one_that_would_have_to_be_dialled_those_are_asked_who_keep_a_link_to_it() -> None:
    beside = (LINKED[0], LINKED[1])
    rig = Rig(FAR, beside=(*beside, FAR, ME), unlinked=(FAR,))
    failed = rig.until_failed()
    asked = [peer for at, peer, message in rig.asked if isinstance(message, PingRequest) and at == failed]
    assert set(beside) <= set(asked)
    assert not {FAR, ME} & set(asked)
    assert len(asked) == 5, "and three others, who may see another way"


def test_a_relay_passes_on_what_comes_after_its_nack() -> None:
    rig = Rig(FAR)
    origin, target = LINKED[:2]
    (ping,) = [e.message for e in rig.swim.receive(0.0, origin, PingRequest(9, target)) if isinstance(e, Send)]
    assert isinstance(ping, Ping)
    nacked = 0
    while rig.swim.deadline() < 0.45:
        nacked += Send(origin, Nack(9)) in rig.step()
    assert nacked == 1
    late = rig.swim.receive(0.45, target, Ack(ping.sequence))
    assert [(e.peer, e.message.sequence) for e in late if isinstance(e, Send) and isinstance(e.message, Ack)] == [
        (origin, 9)
    ]


def test_a_lossy_network_is_not_flooded_with_accusations_and_denials() -> None:
    """Of a hundred members, three messages in ten lost, one probe in five goes unanswered; few of them are told."""
    swarm = Swarm(100, seed=3, loss=0.3)
    swarm.settle()
    begin = {node: own.members[node].incarnation for node, own in swarm.cores.items()}
    swarm.run(swarm.now + 10.0)
    denials = sum(own.members[node].incarnation - begin[node] for node, own in swarm.cores.items())
    assert 0 < denials < 10 * 100 * 0.04
    assert swarm.deaths() == []


def test_where_a_tenth_is_slow_no_healthy_member_is_even_accused() -> None:
    swarm = Swarm(150, seed=4, mesh=True)
    swarm.settle()
    slow = swarm.ids[::10]
    for node in slow:
        swarm.slow(node, 2.0)
    swarm.run(swarm.now + 15.0)
    accused = {s.subject for s in swarm.sights if s.state is MemberState.suspect}
    assert accused <= set(slow)
    assert swarm.deaths() == []


def test_what_newer_statements_have_replaced_does_not_pile_up() -> None:
    """Under a flood the latest goes first, and what lies below may never have its turn."""
    waiting = Broadcasts()
    for incarnation in range(10 * MAX_STATEMENTS):
        waiting.put(alive(PEERS[incarnation % 5], BOOT + incarnation))
        if incarnation % 5 == 4:
            waiting.take(16_384, limit=1000)
    assert len(waiting) == 5
    assert len(waiting._order) <= 2 * len(waiting) + MAX_STATEMENTS + 1
    newest = {statement.incarnation for statement in waiting.take(16_384, limit=1000)}
    assert newest == {BOOT + 10 * MAX_STATEMENTS - each for each in range(1, 6)}
