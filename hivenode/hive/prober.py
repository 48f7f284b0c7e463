"""SWIM's failure detector with Lifeguard's local health: direct probes, indirect ones, and probing for
others. Pure.

One member is probed per interval, round robin over a shuffled list (so that each is probed within one round). Where
there are links to some members only, most probes go round those, the others round everybody, by dials.
Without an answer after the probe timeout, others are asked to probe it; they answer Ack, or Nack if they got
none either, which at least proves that we can hear. Relays that stay silent count against our own health.

In a large hive a member that failed its probe is first only doubted (`profiles.patience`): it is asked again, directly
and through others, while the next members are probed, and any answer acquits it without a word to anybody. Its time to
live counts from the failure all the same, so the dead are found as soon as without the doubt. memberlist asks a second
time at once, over another transport; here there is but one, and who is slow answers later rather than elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hivenode.hive.effects import Redial, Send
from hivenode.hive.profiles import Profile
from hivenode.hive.roster import PRESENT, Health, Member, MemberState
from hivenode.net.messages import Ack, Nack, Ping, PingRequest, Statements

NEVER = float("inf")
_NACK_AT = 0.8
"""Fraction of the probe timeout after which a relay answers Nack (Lifeguard, section IV.A), so that it
arrives before the asker's probe ends."""
_RTT_GAIN = 1 / 8
"""Smoothing of round trips, as in RFC 6298."""


ProbeEffect = Send | Redial


@dataclass(slots=True)
class _Probe:
    target: str
    sequence: int
    began: float
    ends: float
    indirect_at: float
    pinged: float | None = None
    """When the direct ping went out."""
    relays: dict[str, bool] = field(default_factory=dict)
    """Those asked, and whether they have answered Nack."""


@dataclass(slots=True)
class _Doubt:
    """A member that has failed a probe and is asked again before anybody is told."""

    target: str
    incarnation: int
    sequence: int
    since: float
    ends: float
    ask_at: float
    relays: dict[str, bool]


@dataclass(slots=True)
class _Relay:
    origin: str
    sequence: int
    """Under which the origin wants its answer."""
    target: str
    nack_at: float
    """Infinite once it has."""
    ends: float


class Prober:
    """Probes members and carries out probes for others.

    Args:
        members: the live list, by id.
        links: ids with a live link.
        gossip: statements to attach to a message for this member.
        health: our own score, shared with the membership list.
        dials: whether a message to this member, with no link, dials it.
        patience: seconds for which a failed probe is doubted; 0 for not at all.
        beside: those who should keep a link to this member.
    """

    def __init__(
        self, me: str, *, profile: Profile, rng: random.Random, members: Mapping[str, Member],
        links: Mapping[str, None], gossip: Callable[[str], Statements], health: Health,
        dials: Callable[[str], bool], patience: Callable[[], float],
        beside: Callable[[str], Iterable[str]],
    ) -> None:  # fmt: skip
        self._me = me
        self._profile = profile
        self._rng = rng
        self._members = members
        self._links = links
        self._gossip = gossip
        self._health = health
        self._dials = dials
        self._patience = patience
        self._beside = beside
        self._near: list[str] = []
        """Those linked that are still to be probed in this round of theirs."""
        self._turn = 0
        self._order: list[str] = []
        self._index = 0
        self._urgent: dict[str, None] = {}
        self._probe: _Probe | None = None
        self._doubts: dict[str, _Doubt] = {}
        """By target. Few: probes fail one after the other, and a doubt lasts for some."""
        self._next = NEVER
        self._relays: dict[int, _Relay] = {}
        self._sequence = 0
        self._latency: dict[str, float] = {}

    def begin(self, now: float) -> None:
        self._next = now + self._rng.uniform(0, self._profile.probe_interval)

    def stop(self) -> None:
        self._next = NEVER
        self._probe = None
        self._doubts.clear()
        self._relays.clear()

    def add(self, node: str) -> None:
        """A new member takes a random place in the round, so that not everybody probes it last."""
        self._order.insert(self._rng.randint(self._index, len(self._order)), node)

    def forget(self, node: str) -> None:
        self._latency.pop(node, None)
        self._urgent.pop(node, None)

    def latency(self, node: str) -> float | None:
        return self._latency.get(node)

    # --- time -----------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        due = min([min(r.nack_at, r.ends) for r in self._relays.values()]) if self._relays else NEVER
        for doubt in self._doubts.values():
            due = min(due, doubt.ends, doubt.ask_at)
        if self._probe is None:
            return min(due, self._next)
        return min(due, self._probe.ends, self._probe.indirect_at)

    def postpone(self, seconds: float) -> None:
        """We could not listen for so long: the member under probe gets that time back."""
        if self._probe is not None:
            self._probe.ends += seconds
            self._probe.indirect_at += seconds
        for doubt in self._doubts.values():
            doubt.since += seconds
            doubt.ends += seconds
            doubt.ask_at += seconds

    def tick(self, now: float) -> tuple[list[ProbeEffect], list[tuple[str, float]]]:
        """Returns what to do, and the members to accuse, each with the time at which it failed its probe."""
        effects: list[ProbeEffect] = []
        failed: list[tuple[str, float]] = []
        for sequence, relay in [(s, r) for s, r in self._relays.items() if min(r.nack_at, r.ends) <= now]:
            if relay.nack_at <= now:
                relay.nack_at = NEVER
                effects.append(Send(relay.origin, Nack(relay.sequence)))
            if relay.ends <= now:
                del self._relays[sequence]
        probe = self._probe
        if probe is not None and now >= probe.ends:
            self._fail(now, probe)
        elif probe is not None and now >= probe.indirect_at:
            effects += self._ask_others(probe)
        for doubt in [d for d in self._doubts.values() if now >= min(d.ends, d.ask_at)]:
            if now < doubt.ends:
                effects += self._ask_again(now, doubt)
                continue
            del self._doubts[doubt.target]
            member = self._members.get(doubt.target)
            if member is not None and member.incarnation == doubt.incarnation:  # else it has been heard of since
                failed.append((doubt.target, doubt.since))
        if self._probe is None and now >= self._next:
            effects += self._start(now)
        return effects, failed

    # --- our own probes -------------------------------------------------------------------------------------

    def hurry(self, now: float, node: str) -> None:
        """Probe this member next: something about it looks wrong."""
        self._urgent[node] = None
        probe = self._probe
        if probe is None:
            self._next = min(self._next, now)
        elif probe.target == node:
            probe.indirect_at = min(probe.indirect_at, now)

    def undelivered(self, now: float, node: str) -> None:
        """A dial of this member has failed: if it is being probed, the direct probe has."""
        if self._probe is not None and self._probe.target == node:
            self._probe.indirect_at = min(self._probe.indirect_at, now)

    def linked(self, now: float, peer: str) -> list[ProbeEffect]:
        """A member under probe has just been linked: ask it directly as well."""
        self._urgent.pop(peer, None)
        effects: list[ProbeEffect] = []
        doubt, probe = self._doubts.get(peer), self._probe
        if doubt is not None:
            effects.append(Send(peer, Ping(doubt.sequence, self._gossip(peer))))
        if probe is not None and probe.target == peer:
            probe.pinged = now
            effects.append(Send(peer, Ping(probe.sequence, self._gossip(peer))))
        return effects

    def acked(self, now: float, peer: str, sequence: int) -> list[ProbeEffect]:
        probe = self._probe
        if probe is not None and probe.sequence == sequence:
            if peer == probe.target or peer in probe.relays:
                if peer == probe.target and probe.pinged is not None:
                    self._measured(peer, now - probe.pinged)
                self._health.add(-1)
                self._doubts.pop(probe.target, None)
                self._finish(now, probe)
            return []
        for doubt in self._doubts.values():
            if doubt.sequence == sequence:
                if peer == doubt.target or peer in doubt.relays:
                    del self._doubts[doubt.target]
                return []
        relay = self._relays.get(sequence)
        if relay is None or relay.target != peer:
            return []
        del self._relays[sequence]
        return [Send(relay.origin, Ack(relay.sequence, self._gossip(relay.origin)))]

    def nacked(self, peer: str, sequence: int) -> None:
        probe = self._probe
        if probe is not None and probe.sequence == sequence and peer in probe.relays:
            probe.relays[peer] = True

    def _start(self, now: float) -> list[ProbeEffect]:
        target = self._choose()
        if target is None:
            self._next = now + self._profile.probe_interval
            return []
        self._sequence += 1
        probe = _Probe(
            target, self._sequence, now,
            ends=now + self._health.stretch(self._profile.probe_interval),
            indirect_at=now + self._profile.probe_timeout,
        )  # fmt: skip
        self._probe = probe
        if target in self._links:
            probe.pinged = now  # of a dial the round trip is not measured: it holds the dial
        asked = self._ask(target, probe.sequence)
        return asked if isinstance(asked[0], Send) else [*asked, *self._ask_others(probe)]

    def _ask(self, target: str, sequence: int) -> list[ProbeEffect]:
        if target in self._links or self._dials(target):
            return [Send(target, Ping(sequence, self._gossip(target)))]
        return [Redial(target)]

    def _choose(self) -> str | None:
        for node in list(self._urgent):
            del self._urgent[node]
            if self._may_be_probed(node):
                return node
        for _ in range(2):
            while self._index < len(self._order):
                node = self._order[self._index]
                if not self._may_be_probed(node):
                    self._index += 1
                    continue
                if node not in self._links and self._dials(node):
                    self._turn = (self._turn + 1) % self._profile.near_probes
                    near = self._choose_near() if self._turn else None
                    if near is not None:
                        return near
                self._index += 1
                return node
            # A new round: who is gone is left out until it is added again.
            self._order = [node for node in dict.fromkeys(self._order) if self._may_be_probed(node)]
            self._rng.shuffle(self._order)
            self._index = 0
        return None

    def _choose_near(self) -> str | None:
        for _ in range(2):
            while self._near:
                node = self._near.pop()
                if node in self._links and self._may_be_probed(node):
                    return node
            self._near = list(self._links)
            self._rng.shuffle(self._near)
        return None

    def _may_be_probed(self, node: str) -> bool:
        member = self._members.get(node)
        return member is not None and node != self._me and member.state in PRESENT

    def _ask_others(self, probe: _Probe) -> list[ProbeEffect]:
        probe.indirect_at = NEVER
        probe.relays = dict.fromkeys(self._relays_for(probe.target), False)
        return self._request(probe.relays, probe.target, probe.sequence)

    def _relays_for(self, target: str) -> list[str]:
        """Some that we are linked with, and of a target that would have to be dialled some that keep a link to it as
        well: whoever is slow may not be done with a dial before it is given up."""
        relays = self._some_of(self._links, target)
        if self._dials(target):
            relays += self._some_of(dict.fromkeys(self._beside(target)), target)
        return relays

    def _some_of(self, peers: Iterable[str], target: str) -> list[str]:
        able = [
            peer for peer in peers
            if peer not in (target, self._me) and peer in self._members
            and self._members[peer].state is MemberState.alive
        ]  # fmt: skip
        return self._rng.sample(able, min(len(able), self._profile.indirect_checks))

    def _request(self, relays: Iterable[str], target: str, sequence: int) -> list[ProbeEffect]:
        return [Send(peer, PingRequest(sequence, target, self._gossip(peer))) for peer in relays]

    def _fail(self, now: float, probe: _Probe) -> None:
        silent = sum(not nacked for nacked in probe.relays.values())
        self._health.add(silent if probe.relays else 1)
        self._finish(now, probe)
        if probe.target not in self._doubts:
            incarnation = self._members[probe.target].incarnation if probe.target in self._members else -1
            self._doubts[probe.target] = _Doubt(
                probe.target, incarnation, probe.sequence, since=now, ends=now + self._patience(), ask_at=now,
                relays=dict(probe.relays),
            )  # fmt: skip

    def _ask_again(self, now: float, doubt: _Doubt) -> list[ProbeEffect]:
        """Directly and through others; at first over a fresh connection as well, if its link is stalled."""
        fresh = doubt.ask_at <= doubt.since and doubt.target in self._links
        doubt.ask_at = now + self._profile.probe_timeout
        relays = self._relays_for(doubt.target)
        doubt.relays.update(dict.fromkeys(relays, False))
        return [
            *([Redial(doubt.target)] if fresh else []),
            *self._ask(doubt.target, doubt.sequence),
            *self._request(relays, doubt.target, doubt.sequence),
        ]

    def _finish(self, now: float, probe: _Probe) -> None:
        self._probe = None
        self._next = max(now, probe.began + self._profile.probe_interval)
        if any(self._may_be_probed(node) for node in self._urgent):
            self._next = now

    def _measured(self, peer: str, seconds: float) -> None:
        known = self._latency.get(peer)
        self._latency[peer] = seconds if known is None else known + (seconds - known) * _RTT_GAIN

    # --- probes for others ----------------------------------------------------------------------------------

    def requested(self, now: float, origin: str, request: PingRequest) -> list[ProbeEffect]:
        """Probe for someone else."""
        if request.target == self._me:
            return [Send(origin, Ack(request.sequence, self._gossip(origin)))]
        linked = request.target in self._links or self._dials(request.target)
        if not linked or len(self._relays) >= self._profile.max_relays:
            return [Send(origin, Nack(request.sequence))]
        self._sequence += 1
        self._relays[self._sequence] = _Relay(
            origin,
            request.sequence,
            request.target,
            now + _NACK_AT * self._profile.probe_timeout,
            ends=now + max(_NACK_AT * self._profile.probe_timeout, self._patience()),
        )
        return [Send(request.target, Ping(self._sequence, self._gossip(request.target)))]
