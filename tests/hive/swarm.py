"""Many membership cores in one process, in virtual time, over a network that loses, delays, breaks and refuses.

A discrete-event simulation: nothing but the cores decides anything, and a seed replays exactly.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import random
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import lru_cache

from hivenode.hive.broadcasts import Broadcasts
from hivenode.hive.mesh import Rings, ring_keys
from hivenode.hive.swim import PROFILES, Changed, Conflict, Effect, MemberState, Profile, Redial, Send, Swim
from hivenode.net.messages import Message, PushPull
from hivenode.net.redial import DialLimits
from hivenode.net.transport import LinkEnd


def node_id(index: int) -> str:
    return f"node{index:03d}".ljust(32, "x")


def _rings(nodes: list[str]) -> dict[str, dict[str, None]]:
    """The links of a partial mesh."""
    rings, keys = Rings(), {node: ring_keys("h" * 32, node) for node in nodes}
    for node in nodes:
        rings.add(node, keys[node])
    return {node: dict.fromkeys(peer for peer in rings.beside(node, keys[node]) if peer != node) for node in nodes}


def signer(node: str) -> Callable[[bytes], bytes]:
    """A stand-in for Ed25519 with the same shape, fast enough for a hundred thousand statements."""
    return lambda data: hashlib.sha512(node.encode() + data).digest()


@lru_cache(maxsize=65_536)
def verify(node: str, signature: bytes, data: bytes) -> bool:
    return signature == signer(node)(data)


def core(
    node: str,
    *,
    boot: int = 1,
    seed: object = 0,
    profile: Profile = PROFILES["lan"],
    addresses: tuple[str, ...] = ("10.0.0.1:7701",),
    known: Container[str] | None = None,
    dials: Callable[[str], bool] = lambda peer: False,
    beside: Callable[[str], Iterable[str]] = lambda peer: (),
) -> Swim:
    """One core; `known` are the nodes whose signatures it can check, as they are at any time, all if None."""

    def check(who: str, signature: bytes, data: bytes) -> bool:
        return (known is None or who in known) and verify(who, signature, data)

    return Swim(
        node,
        name=node[:7],
        addresses=addresses,
        version="1",
        boot=boot,
        profile=profile,
        rng=random.Random(f"{seed}/{node}/{boot}"),
        sign=signer(node),
        verify=check,
        dials=dials,
        beside=beside,
    )


@dataclass(frozen=True)
class Sight:
    """What one node came to believe of another, and when (virtual seconds)."""

    at: float
    observer: str
    subject: str
    state: MemberState
    was: MemberState | None


class Swarm:
    """n nodes, all linked with each other.

    Args:
        mesh: they know each other from the start and keep the links of a partial mesh only; a message to anybody else
            takes two round trips more, for a dial, and either end has its part in each.
        loss: probability, once settled, that a message is lost (links then stay up).
        delay: bounds of the uniform one-way delay, seconds.
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int,
        profile: Profile = PROFILES["lan"],
        loss: float = 0.0,
        delay: tuple[float, float] = (0.0005, 0.005),
        mesh: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.loss, self._loss = 0.0, loss
        self.delay = delay
        self.ids = [node_id(i) for i in range(n)]
        self.sights: list[Sight] = []
        self.conflicts: list[tuple[str, Conflict]] = []
        self.sent = 0
        self._seed, self._profile = seed, profile
        self._boots = dict.fromkeys(self.ids, 1)
        self._mesh = mesh
        self._links = _rings(self.ids) if mesh else {n: {o: None for o in self.ids if o != n} for n in self.ids}
        self.cores = {node: self._core(node) for node in self.ids}
        self._refusing: dict[str, None] = {}
        self._gone: dict[str, None] = {}
        self._frozen: dict[str, list[Callable[[], None]]] = {}
        self._lag: dict[str, float] = {}
        self._side: dict[str, int] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._alarms: dict[str, float] = {}
        for node in self.ids:
            self._act(node, self.cores[node].start(0.0))
        if mesh:
            self._acquaint()
        for node in self.ids if not mesh else ():
            for other in self._links[node]:
                self._act(node, self.cores[node].link_up(0.0, other))

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, event = heapq.heappop(self._queue)
            event()
        self.now = until

    def settle(self) -> None:
        """Run, without loss, until everybody knows everybody, and forget how that came about."""
        self.run(self.now + 5.0)
        self.loss = self._loss
        assert all(len(core.members) == len(self.ids) for core in self.cores.values())
        self.sights.clear()

    def at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._serial), event))

    # --- what happens to nodes ------------------------------------------------------------------------------------

    def kill(self, node: str) -> None:
        """The process dies: its links are reset and its host refuses dials."""
        self._gone[node] = self._refusing[node] = None
        self._break_links(node)

    def unplug(self, node: str) -> None:
        """Host and all vanish without a word."""
        self._gone[node] = None

    def freeze(self, node: str) -> None:
        """SIGSTOP: what is sent to it waits."""
        self._frozen[node] = []

    def thaw(self, node: str) -> None:
        """SIGCONT: its overdue timers fire before it reads what has come meanwhile."""
        waiting = self._frozen.pop(node)
        self._tick(node)
        for event in waiting:
            event()

    def slow(self, node: str, lag: float) -> None:
        """From now on it gets round to anything only every `lag` seconds."""
        self._lag[node] = lag

    def split(self, *sides: Iterable[str]) -> None:
        self._side = {node: index for index, side in enumerate(sides) for node in side}

    def heal(self) -> None:
        self._side = {}

    def restart(self, node: str) -> None:
        """A new life of a killed node, linked with everybody that lives."""
        self._gone.pop(node, None)
        self._refusing.pop(node, None)
        self._boots[node] += 1
        self.cores[node] = self._core(node)
        self._act(node, self.cores[node].start(self.now))
        for other in self.ids:
            if other != node and other not in self._gone:
                self.link(node, other)

    def leave(self, node: str) -> None:
        self._act(node, self.cores[node].leave(self.now))
        self.at(self.now + 0.05, lambda: self.kill(node))

    # --- what can be asked ----------------------------------------------------------------------------------------

    def first(self, subject: str, state: MemberState) -> float:
        return min(s.at for s in self.sights if s.subject == subject and s.state is state)

    def last(self, subject: str, state: MemberState) -> float:
        """When the last of those running came to it; all must have."""
        sights = [s for s in self.sights if s.subject == subject and s.observer != subject]
        by_observer = {s.observer: s.at for s in sights if s.state is state}
        assert sorted(by_observer) == sorted(n for n in self.running() if n != subject)
        return max(by_observer.values())

    def deaths(self) -> list[str]:
        return sorted({s.subject for s in self.sights if s.state is MemberState.dead})

    def running(self) -> list[str]:
        return [node for node in self.ids if node not in self._gone]

    # --- the network ----------------------------------------------------------------------------------------------

    def _core(self, node: str) -> Swim:
        dials = (lambda peer: peer not in self._links[node]) if self._mesh else (lambda peer: False)
        return core(
            node, boot=self._boots[node], seed=self._seed, profile=self._profile, dials=dials,
            beside=self._links.__getitem__,
        )  # fmt: skip

    def _acquaint(self) -> None:
        """Everybody has heard of everybody, and passes nothing of it on any more."""
        said = PushPull(tuple(each._roster.own for each in self.cores.values()), reply=False)
        for node, each in self.cores.items():
            for other in self._links[node]:
                each.link_up(0.0, other)
            self._act(
                node, [e for e in each.receive(0.0, next(iter(self._links[node])), said) if not isinstance(e, Send)]
            )
            each._roster.broadcasts = Broadcasts()

    def _act(self, node: str, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer=peer, message=message):
                    self._send(node, peer, message)
                case Redial(peer=peer):
                    self._dial(node, peer)
                case Changed(member=member, was=was):
                    self.sights.append(Sight(self.now, node, member.node, member.state, was))
                case Conflict():
                    self.conflicts.append((node, effect))
        self._set_alarm(node)

    def _send(self, node: str, peer: str, message: Message) -> None:
        dialled = self._mesh and peer not in self._links[node]
        if peer not in self._links[node] and not dialled:
            return
        self.sent += 1
        failed = lambda: self._act(node, self.cores[node].dial_failed(self.now, peer, LinkEnd.unreachable))  # noqa: E731
        if dialled and peer in self._gone:
            self.at(self.now + DialLimits.attempt_seconds, lambda: self._arrive(node, failed))
        if not self._connected(node, peer) or self.rng.random() < self.loss:
            return
        if dialled:
            later = self.now
            for end in (node, peer) * 3:
                later = self._when(end, later + self.rng.uniform(*self.delay))
            if later > self.now + DialLimits.attempt_seconds:
                self.at(self.now + DialLimits.attempt_seconds, lambda: self._arrive(node, failed))
            else:
                self.at(later, lambda: self._arrive(peer, lambda: self._hear(peer, node, message)))
            return
        self._deliver(peer, lambda: self._act(peer, self.cores[peer].receive(self.now, node, message)))

    def _hear(self, node: str, peer: str, message: Message) -> None:
        self._act(node, self.cores[node].receive(self.now, peer, message))

    def _dial(self, node: str, peer: str) -> None:
        if peer in self._links[node] or not self._connected(node, peer, dialling=True):
            return
        if peer in self._refusing:
            refused = lambda: self._act(node, self.cores[node].dial_failed(self.now, peer, LinkEnd.refused))  # noqa: E731
            self._deliver(node, refused)
        elif peer not in self._gone:
            self.link(node, peer)

    def _connected(self, node: str, peer: str, dialling: bool = False) -> bool:
        if peer in self._gone and not (dialling and peer in self._refusing):
            return False
        return self._side.get(node) == self._side.get(peer)

    def link(self, a: str, b: str) -> None:
        for node, peer in ((a, b), (b, a)):
            self._links[node][peer] = None
            self._deliver(node, lambda n=node, p=peer: self._act(n, self.cores[n].link_up(self.now, p)))

    def break_link(self, a: str, b: str) -> None:
        for node, peer in ((a, b), (b, a)):
            if self._links[node].pop(peer, self) is None:
                self._deliver(node, lambda n=node, p=peer: self._down(n, p))

    def _break_links(self, node: str) -> None:
        for peer in list(self._links[node]):
            self.break_link(node, peer)

    def _down(self, node: str, peer: str) -> None:
        self._act(node, self.cores[node].link_down(self.now, peer, LinkEnd.reset))

    def _deliver(self, node: str, event: Callable[[], None]) -> None:
        self.at(self._when(node, self.now + self.rng.uniform(*self.delay)), lambda: self._arrive(node, event))

    def _arrive(self, node: str, event: Callable[[], None]) -> None:
        if node in self._frozen:
            self._frozen[node].append(event)
        elif node not in self._gone:
            event()

    def _set_alarm(self, node: str) -> None:
        due = max(self.now, self.cores[node].deadline())
        if due == math.inf or self._alarms.get(node, math.inf) <= due:
            return
        due = self._when(node, due)
        self._alarms[node] = due
        self.at(due, lambda: self._ring(node, due))

    def _ring(self, node: str, due: float) -> None:
        if self._alarms.get(node) == due:
            del self._alarms[node]
            self._tick(node)

    def _tick(self, node: str) -> None:
        if node in self._frozen or node in self._gone:
            return
        core = self.cores[node]
        self._act(node, core.tick(self.now) if core.deadline() <= self.now else [])

    def _when(self, node: str, when: float) -> float:
        lag = self._lag.get(node)
        return when if lag is None else math.ceil(when / lag) * lag
