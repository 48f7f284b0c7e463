"""Who is found dead, by whom, when; and who is not."""

from __future__ import annotations

import statistics

import pytest

from hivenode.hive import statements
from hivenode.hive.profiles import PROFILES, suspicion_min
from hivenode.hive.swim import Effect, MemberState, Redial, Send
from hivenode.net.messages import Ack, Gossip, Message, Nack, Ping, PingRequest, PushPull
from hivenode.net.transport import LinkEnd
from tests.hive.swarm import Swarm, core, node_id, signer

ME, *PEERS = (node_id(i) for i in range(6))
A, B, C, D, E = PEERS
LAN = PROFILES["lan"]
BOOT = 1 << 32


class Prodded:
    """One core with peers that answer only what the test lets them."""

    def __init__(self, *linked: str, unlinked: tuple[str, ...] = ()) -> None:
        self.swim = core(ME)
        self.swim.start(0.0)
        self.now = 0.0
        for peer in linked:
            self.swim.link_up(0.0, peer)
        known = [statements.alive(signer(p), p, BOOT, p[:7], ("10.0.0.1:1",), "1") for p in (*linked, *unlinked)]
        self.swim.receive(0.0, (*linked, *unlinked)[0], Gossip(tuple(known)))

    def until(self, kind: type[Message] | type[Redial], limit: float = 10.0) -> list[tuple[str, Message | Redial]]:
        """Tick until something of this kind is sent; returns all of that kind from that tick."""
        while self.now < limit:
            self.now = self.swim.deadline()
            found = self.of(kind, self.swim.tick(self.now))
            if found:
                return found
        raise AssertionError(f"no {kind.__name__} within {limit} s")

    def run(self, seconds: float) -> list[Effect]:
        end, effects = self.now + seconds, []
        while self.swim.deadline() <= end:
            self.now = self.swim.deadline()
            effects += self.swim.tick(self.now)
        self.now = end
        return effects

    def get(self, peer: str, message: Message) -> list[Effect]:
        return self.swim.receive(self.now, peer, message)

    @staticmethod
    def of(kind: type[Message] | type[Redial], effects: list[Effect]) -> list[tuple[str, Message | Redial]]:
        if kind is Redial:
            return [(e.peer, e) for e in effects if isinstance(e, Redial)]
        return [(e.peer, e.message) for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]

    def state(self, node: str) -> MemberState:
        return self.swim.members[node].state


# --- one node's view --------------------------------------------------------------------------------------------------


def test_an_answer_is_timed_and_keeps_a_member_alive() -> None:
    rig = Prodded(A)
    ((peer, ping),) = rig.until(Ping)
    rig.now += 0.02
    rig.get(peer, Ack(ping.sequence))
    assert rig.swim.latency(A) == pytest.approx(0.02)
    rig.run(0.9)
    assert rig.state(A) is MemberState.alive


def test_without_an_answer_others_are_asked_and_one_answer_suffices() -> None:
    rig = Prodded(*PEERS)
    ((target, ping),) = rig.until(Ping)
    asked = rig.until(PingRequest)
    assert len(asked) == 3
    assert {request.target for _, request in asked} == {target}
    assert target not in [peer for peer, _ in asked]
    rig.get(asked[0][0], Ack(ping.sequence))
    rig.run(0.6)
    assert rig.state(target) is MemberState.alive
    assert rig.swim.latency(target) is None, "a detour says nothing about the way"


def test_an_answer_from_somebody_not_asked_counts_for_nothing() -> None:
    rig = Prodded(A, B)
    ((target, ping),) = rig.until(Ping)
    other = B if target == A else A
    rig.get(other, Ack(ping.sequence))
    rig.run(1.0)
    assert rig.state(target) is MemberState.suspect


@pytest.mark.parametrize(("nacks", "score"), [(3, 0), (2, 1), (0, 3)])
def test_awareness_missed_nack(nacks: int, score: int) -> None:
    """Relays that say they got no answer either acquit us; each that stays silent counts against us."""
    rig = Prodded(*PEERS)
    ((target, ping),) = rig.until(Ping)
    asked = rig.until(PingRequest)
    for relay, _ in asked[:nacks]:
        rig.get(relay, Nack(ping.sequence))
    rig.run(0.5)
    assert rig.state(target) is MemberState.suspect
    assert rig.swim.health == score


def test_awareness_degraded_and_improved() -> None:
    """A failed probe that nobody could confirm counts against us and stretches the next; a good one makes up for it."""
    rig = Prodded(A)
    rig.until(Ping)
    ((_, ping),) = rig.of(Ping, rig.run(1.0))
    assert rig.swim.health == 1
    assert rig.state(A) is MemberState.suspect
    again = statements.alive(signer(A), A, BOOT + 1, A[:7], ("10.0.0.1:1",), "1")
    rig.get(A, Gossip((again,)))
    rig.run(1.5)
    assert rig.state(A) is MemberState.alive, "twice the time"
    rig.get(A, Ack(ping.sequence))
    assert rig.swim.health == 0


def test_a_suspect_hears_of_it_in_the_next_probe() -> None:
    rig = Prodded(A, B)
    accusation = statements.suspect(signer(B), A, BOOT, B)
    rig.get(B, Gossip((accusation,)))
    for _ in range(2):
        ((peer, ping),) = rig.until(Ping)
        if peer == A:
            break
        rig.get(peer, Ack(ping.sequence))
    assert ping.gossip[0] == accusation


def test_probing_for_others() -> None:
    rig = Prodded(A, B, unlinked=(C,))
    assert rig.of(Nack, rig.get(A, PingRequest(9, C))) == [(A, Nack(9))], "no link: said at once"
    ((peer, ping),) = rig.of(Ping, rig.get(A, PingRequest(10, B)))
    assert peer == B
    assert rig.of(Ack, rig.get(C, Ack(ping.sequence))) == [], "not the one asked"
    ((origin, ack),) = rig.of(Ack, rig.get(B, Ack(ping.sequence)))
    assert (origin, ack.sequence) == (A, 10)
    rig.get(A, PingRequest(11, B))
    assert rig.until(Nack) == [(A, Nack(11))]
    assert rig.of(Ack, rig.get(A, PingRequest(12, ME)))[0][1].sequence == 12


def test_relays_are_bounded() -> None:
    rig = Prodded(A, B)
    answers = [rig.get(A, PingRequest(i, B)) for i in range(LAN.max_relays + 1)]
    assert rig.of(Nack, answers[-1]) == [(A, Nack(LAN.max_relays))]
    assert rig.of(Nack, answers[-2]) == []


def test_a_member_without_a_link_is_dialled_and_probed_through_others() -> None:
    rig = Prodded(A, unlinked=(B,))
    ((_, ping),) = rig.until(Ping)
    rig.get(A, Ack(ping.sequence))
    redials = rig.until(Redial)
    assert [peer for peer, _ in redials] == [B]
    linked = rig.swim.link_up(rig.now, B)
    ((_, ping),) = rig.of(Ping, linked)
    rig.get(B, Ack(ping.sequence))
    rig.run(0.9)
    assert rig.state(B) is MemberState.alive


def test_whoever_does_not_answer_over_its_link_is_dialled_afresh_with_the_suspicion() -> None:
    rig = Prodded(A, B)
    ((silent, _),) = rig.until(Ping)
    assert rig.until(Redial) == [(silent, Redial(silent))]
    assert rig.state(silent) is MemberState.suspect


def test_every_member_is_probed_once_a_round() -> None:
    rig = Prodded(*PEERS)
    probed = []
    for _ in range(3 * len(PEERS)):
        ((peer, ping),) = rig.until(Ping, limit=60.0)
        probed.append(peer)
        rig.get(peer, Ack(ping.sequence))
    # Members learnt during the first round take random places in it, so count from the second on.
    assert sorted(probed[-5:]) == sorted(probed[-10:-5]) == sorted(PEERS)


def test_a_late_tick_gives_the_others_their_time_back_and_blames_ourselves() -> None:
    """After ten seconds in which we did not run, nobody is suspected for not having answered us."""
    rig = Prodded(A, B)
    ((target, ping),) = rig.until(Ping)
    other = B if target == A else A
    rig.get(other, Gossip((statements.suspect(signer(other), target, BOOT, other),)))
    rig.now += 60.0
    rig.swim.tick(rig.now)
    assert rig.state(target) is MemberState.suspect, "not dead"
    assert rig.swim.health == 1
    rig.get(target, Ack(ping.sequence))
    assert rig.swim.health == 0


def test_own_lag_counts_once_a_probe_interval_and_at_most_to_seven() -> None:
    rig = Prodded(A)
    rig.swim.lag(0.0, 0.05)
    assert rig.swim.health == 0
    for tenth in range(200):
        rig.swim.lag(tenth / 10, 0.3)
    assert rig.swim.health == 7


# --- links that break -------------------------------------------------------------------------------------------------


def test_a_broken_link_is_dialled_at_once_and_its_peer_probed_next() -> None:
    rig = Prodded(*PEERS)
    assert rig.swim.link_down(0.1, D, LinkEnd.reset) == [Redial(D)]
    rig.now = 0.1
    requests = rig.until(PingRequest)
    assert {request.target for _, request in requests} == {D}


@pytest.mark.parametrize("why", [LinkEnd.local, LinkEnd.identity])
def test_a_link_we_closed_or_cannot_trust_is_not_dialled(why: LinkEnd) -> None:
    assert Prodded(A).swim.link_down(0.1, A, why) == []


def test_two_refusals_make_a_member_dead_and_the_first_a_suspect() -> None:
    rig = Prodded(A, B)
    rig.swim.link_down(1.0, A, LinkEnd.reset)
    rig.swim.dial_failed(1.01, A, LinkEnd.refused)
    assert rig.state(A) is MemberState.suspect
    rig.swim.dial_failed(1.5, A, LinkEnd.refused)
    assert rig.state(A) is MemberState.suspect, "too soon"
    rig.now = 1.5
    assert Redial(A) in rig.run(0.3)
    rig.swim.dial_failed(1.8, A, LinkEnd.refused)
    assert rig.state(A) is MemberState.dead


def test_a_link_in_between_forgives_a_refusal() -> None:
    rig = Prodded(A, B)
    rig.swim.link_down(1.0, A, LinkEnd.reset)
    rig.swim.dial_failed(1.01, A, LinkEnd.refused)
    rig.swim.link_up(1.2, A)
    rig.swim.link_down(1.3, A, LinkEnd.reset)
    rig.swim.dial_failed(1.9, A, LinkEnd.refused)
    assert rig.state(A) is MemberState.suspect


def test_an_address_that_never_led_to_a_member_proves_nothing() -> None:
    rig = Prodded(A, unlinked=(B,))
    for at in (1.0, 2.0, 3.0):
        assert rig.swim.dial_failed(at, B, LinkEnd.refused) == []
    assert rig.state(B) is MemberState.alive


def test_a_refuted_refusal_is_not_believed_again_without_a_new_link() -> None:
    """A member that lives behind a port which refuses us must not be declared dead over and over."""
    rig = Prodded(A, B)
    rig.swim.link_down(1.0, A, LinkEnd.reset)
    rig.swim.dial_failed(1.0, A, LinkEnd.refused)
    lives = statements.alive(signer(A), A, BOOT + 1, A[:7], ("10.0.0.1:1",), "1")
    rig.now = 1.2
    rig.get(B, Gossip((lives,)))
    rig.run(0.1)
    for at in (1.4, 2.4, 3.4):
        rig.swim.dial_failed(at, A, LinkEnd.refused)
    assert rig.state(A) is MemberState.alive


def test_a_refusal_right_after_a_refutation_is_no_second_one() -> None:
    rig = Prodded(A, B)
    rig.swim.link_down(1.0, A, LinkEnd.reset)
    rig.swim.dial_failed(1.0, A, LinkEnd.refused)
    lives = statements.alive(signer(A), A, BOOT + 1, A[:7], ("10.0.0.1:1",), "1")
    rig.now = 1.9
    rig.get(B, Gossip((lives,)))
    assert rig.swim.dial_failed(1.9, A, LinkEnd.refused) == []
    assert rig.state(A) is MemberState.alive


@pytest.mark.parametrize("why", [LinkEnd.unreachable, LinkEnd.reset, LinkEnd.identity])
def test_a_dial_that_is_not_refused_accuses_nobody(why: LinkEnd) -> None:
    rig = Prodded(A, B)
    rig.swim.link_down(1.0, A, LinkEnd.reset)
    assert rig.swim.dial_failed(1.0, A, why) == rig.swim.dial_failed(2.0, A, why) == []
    assert rig.state(A) is MemberState.alive


def test_a_new_link_is_told_everything_and_asked_only_if_it_is_not_new() -> None:
    rig = Prodded(A, B)
    first = [m for _, m in rig.of(PushPull, rig.swim.link_up(1.0, C))]
    again = [m for _, m in rig.of(PushPull, rig.swim.link_up(2.0, C))]
    assert [m.reply for m in first] == [False]
    assert [m.reply for m in again] == [True]
    assert {s.node for s in first[0].members} == {ME, A, B}
    replies = rig.of(PushPull, rig.get(C, PushPull((), True)))
    assert [m.reply for _, m in replies] == [False]


# --- a swarm ----------------------------------------------------------------------------------------------------------


def times(n: int, loss: float, seeds: int) -> tuple[list[float], list[str]]:
    """Seconds until a silent member is first declared dead, and who was declared dead wrongly."""
    found, wrongly = [], []
    for seed in range(seeds):
        swarm = Swarm(n, seed=seed, loss=loss)
        swarm.settle()
        swarm.run(10.0 + seed / 7)
        victim, begin = swarm.ids[seed % n], swarm.now
        swarm.unplug(victim)
        swarm.run(begin + 40.0)
        found.append(swarm.first(victim, MemberState.dead) - begin)
        wrongly += [node for node in swarm.deaths() if node != victim]
    return found, wrongly


@pytest.mark.parametrize(("n", "loss", "seeds"), [
    (8, 0.0, 25), (8, 0.3, 25), (32, 0.0, 9), (32, 0.3, 9), (128, 0.0, 3),
    pytest.param(128, 0.3, 5, marks=pytest.mark.slow),
])  # fmt: skip
def test_the_silent_are_found_in_the_time_the_formula_says(n: int, loss: float, seeds: int) -> None:
    """Virtual time. A silent member is first probed after about one interval, suspected when that fails, and dead
    after the shortest suspicion, for others confirm it meanwhile, also where three of ten messages are lost. Nobody
    else dies."""
    found, wrongly = times(n, loss, seeds)
    shortest = suspicion_min(LAN, n)
    assert wrongly == []
    assert min(found) >= shortest
    expected = 1.7 * LAN.probe_interval + shortest
    assert expected * 0.8 <= statistics.median(found) <= expected * 1.2


def test_a_killed_process_is_known_to_all_in_under_two_and_a_half_seconds() -> None:
    for n, seed in ((2, 1), (8, 2), (32, 3)):
        swarm = Swarm(n, seed=seed)
        swarm.settle()
        begin = swarm.now
        swarm.kill(swarm.ids[1])
        swarm.run(begin + 10.0)
        assert swarm.last(swarm.ids[1], MemberState.dead) - begin < 2.5
        assert swarm.deaths() == [swarm.ids[1]]


def test_a_process_that_restarts_within_a_second_never_dies() -> None:
    swarm = Swarm(8, seed=4)
    swarm.settle()
    victim = swarm.ids[2]
    swarm.kill(victim)
    swarm.run(swarm.now + 0.4)
    swarm.restart(victim)
    swarm.run(swarm.now + 30.0)
    assert swarm.deaths() == []
    assert all(core.members[victim].boot == 2 for core in swarm.cores.values())
    assert all(m.state is MemberState.alive for core in swarm.cores.values() for m in core.members.values())


def test_frozen_for_three_seconds_a_member_refutes_and_condemns_nobody() -> None:
    swarm = Swarm(16, seed=5)
    swarm.settle()
    victim = swarm.ids[0]
    swarm.freeze(victim)
    swarm.run(swarm.now + 3.5)
    assert swarm.first(victim, MemberState.suspect)
    swarm.thaw(victim)
    assert swarm.cores[victim].health >= 1
    swarm.run(swarm.now + 40.0)
    assert swarm.deaths() == []
    assert all(core.members[victim].state is MemberState.alive for core in swarm.cores.values())
    assert swarm.cores[victim].health == 0, "it recovers"


def test_frozen_for_a_minute_a_member_dies_wakes_and_condemns_nobody() -> None:
    swarm = Swarm(8, seed=6)
    swarm.settle()
    victim = swarm.ids[0]
    swarm.freeze(victim)
    swarm.run(swarm.now + 60.0)
    assert swarm.deaths() == [victim]
    swarm.thaw(victim)
    swarm.run(swarm.now + 40.0)
    assert swarm.deaths() == [victim], "nobody else, although it heard nobody for a minute"
    assert all(m.state is MemberState.alive for core in swarm.cores.values() for m in core.members.values())


@pytest.mark.parametrize("seed", [7, 8])
def test_one_slow_node_kills_nobody_and_is_not_killed(seed: int) -> None:
    """Two seconds of lag in everything it does, among 32."""
    swarm = Swarm(32, seed=seed)
    swarm.settle()
    swarm.slow(swarm.ids[0], 2.0)
    swarm.run(swarm.now + 60.0)
    assert swarm.deaths() == []
    assert swarm.cores[swarm.ids[0]].health > 0


def test_after_a_partition_both_sides_find_each_other_again() -> None:
    swarm = Swarm(10, seed=9)
    swarm.settle()
    near, far = swarm.ids[:5], swarm.ids[5:]
    swarm.split(near, far)
    swarm.run(swarm.now + 30.0)
    assert all(swarm.cores[a].members[b].state is MemberState.dead for a in near for b in far)
    swarm.heal()
    for a in near:
        for b in far:
            swarm.break_link(a, b)
            swarm.link(a, b)
    swarm.run(swarm.now + 5.0)
    assert all(m.state is MemberState.alive for core in swarm.cores.values() for m in core.members.values())


def test_a_link_that_comes_and_goes_kills_nobody() -> None:
    swarm = Swarm(6, seed=10)
    swarm.settle()
    one, *rest = swarm.ids
    for _ in range(15):
        swarm.split([one], rest)
        swarm.run(swarm.now + 2.0)
        swarm.heal()
        swarm.run(swarm.now + 2.0)
    assert swarm.deaths() == []


def test_a_leaver_is_gone_for_all_without_suspicion() -> None:
    swarm = Swarm(8, seed=11)
    swarm.settle()
    begin = swarm.now
    swarm.leave(swarm.ids[3])
    swarm.run(begin + 30.0)
    assert swarm.last(swarm.ids[3], MemberState.left) - begin < 0.5
    assert not any(s.state in (MemberState.suspect, MemberState.dead) for s in swarm.sights)


def test_the_same_seed_tells_the_same_story() -> None:
    stories = []
    for _ in range(2):
        swarm = Swarm(8, seed=12, loss=0.3)
        swarm.settle()
        swarm.unplug(swarm.ids[1])
        swarm.run(swarm.now + 20.0)
        stories.append((swarm.sights, swarm.sent))
    assert stories[0] == stories[1]


def test_a_node_that_sees_nobody_distrusts_itself_and_comes_back_quickly() -> None:
    swarm = Swarm(8, seed=13)
    swarm.settle()
    alone = swarm.ids[0]
    swarm.split([alone], swarm.ids[1:])
    swarm.run(swarm.now + 5.0)
    assert swarm.cores[alone].health >= 1
    swarm.heal()
    swarm.run(swarm.now + 20.0)
    assert all(m.state is MemberState.alive for core in swarm.cores.values() for m in core.members.values())
