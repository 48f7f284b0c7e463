"""A network in memory and virtual time: hosts, the ways between them, and what can go wrong with both. What passes on
the connections is `simulated_wires`'s.

What is modelled. A silent network is noticed by nobody until the keepalive gives up. A killed process resets its
connections and its host refuses new ones; a host that is gone, or cut off, is silent; a frozen process lets its host
accept bytes and answers nothing. Not modelled: congestion between control connections.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hivenode.errors import Conflict
from hivenode.net.dialing import DialError
from hivenode.net.simulated_wires import End, Host, Listener, Wire
from hivenode.net.transport import LinkEnd


@dataclass(frozen=True)
class Quality:
    """How good the way between two hosts is, each way."""

    delay_seconds: tuple[float, float] = (0.0002, 0.002)
    """Range of the time one message takes."""
    loss: float = 0.0
    """Chance that a message has to be sent again (and again)."""
    retransmit_seconds: float = 0.2
    """Added by the first retransmission; doubled by each further one."""
    bytes_per_second: float = 12.5e6
    """Of bulk transfers; control messages are small beside them."""


class Trace:
    """What happened, one line each; the hash covers all of them, the last ones are kept."""

    def __init__(self, keep: int = 5000) -> None:
        self._hash = hashlib.sha256()
        self.count = 0
        self.lines: deque[str] = deque(maxlen=keep)

    def add(self, now: float, text: str) -> None:
        line = f"{now:.6f} {text}"
        self._hash.update(line.encode() + b"\n")
        self.count += 1
        self.lines.append(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


@dataclass
class _Cuts:
    """Which ways are blocked."""

    groups: dict[str, int] = field(default_factory=dict)
    alone: dict[str, None] = field(default_factory=dict)
    one_way: dict[tuple[str, str], None] = field(default_factory=dict)

    def passes(self, a: str, b: str) -> bool:
        return (
            self.groups.get(a, -1) == self.groups.get(b, -1)
            and a not in self.alone
            and b not in self.alone
            and (a, b) not in self.one_way
        )


class SimulatedNetwork:
    """All hosts and the ways between them. To be made where no simulated process is current.

    Args:
        rng: source of all delays.
        quality: of every way, unless `delay` says otherwise.
        silence_seconds: range of the time after which one end of a connection gives up on a silent network. The
            default is that of the links' keepalive: a ping every 20 s, its answer awaited for 10 s.
    """

    def __init__(
        self,
        rng: random.Random,
        quality: Quality | None = None,
        *,
        silence_seconds: tuple[float, float] = (10.0, 30.0),
        trace: Trace | None = None,
    ) -> None:
        self.rng = rng
        self.silence_seconds = silence_seconds
        self.trace = trace or Trace()
        self._context = contextvars.copy_context()
        self._quality = quality or Quality()
        self._qualities: dict[tuple[str, str], Quality] = {}
        self._hosts: dict[str, Host] = {}
        self._addresses: dict[str, Host] = {}
        self._wires: dict[Wire, None] = {}
        self._prune_at = 64
        self._cuts = _Cuts()
        self._waiting: dict[asyncio.Future[None], None] = {}

    # --- faults -------------------------------------------------------------------------------------------------

    def partition(self, *groups: Iterable[str]) -> None:
        """Only hosts of one group reach each other; those in none of them form another."""
        self._cuts.groups = {name: number for number, group in enumerate(groups) for name in group}
        self._changed("partition " + " | ".join(",".join(sorted(group)) for group in groups))

    def isolate(self, name: str) -> None:
        """Cut one host off from all others."""
        self._cuts.alone[name] = None
        self._changed(f"isolate {name}")

    def one_way(self, source: str, target: str) -> None:
        """Let nothing through from `source` to `target`; the other direction stays open."""
        self._cuts.one_way[(source, target)] = None
        self._changed(f"block {source}>{target}")

    def heal(self) -> None:
        """Undo every partition, isolation and block."""
        self._cuts = _Cuts()
        self._changed("heal")

    def delay(self, a: str, b: str, quality: Quality) -> None:
        """The way between two hosts, both directions, is this good from now on."""
        self._qualities[(a, b)] = self._qualities[(b, a)] = quality
        self.note(f"quality {a} {b} {quality.delay_seconds} {quality.loss}")

    def cut(self, a: str, b: str) -> None:
        """Break the connections between two hosts, as a rebooting router does; they may dial again at once."""
        self.note(f"cut {a} {b}")
        for wire in list(self._wires):
            if {end.host.name for end in wire.ends} == {a, b}:
                for end in wire.ends:
                    end.break_off(LinkEnd.reset)

    def kill(self, name: str) -> None:
        """The process on this host dies; its host resets its connections and refuses new ones."""
        self.note(f"kill {name}")
        host = self.host(name)
        host.listener = None
        host.frozen = False
        for wire in list(self._wires):
            for end in wire.ends:
                if end.host is host:
                    end.close(LinkEnd.reset)
        self._changed(f"killed {name}")

    def crash_host(self, name: str) -> None:
        """The host falls silent, its process with it."""
        host = self.host(name)
        host.up, host.listener, host.frozen = False, None, False
        for wire in list(self._wires):
            for end in wire.ends:
                if end.host is host:
                    end.vanish()
        self._changed(f"crash {name}")

    def start_host(self, name: str) -> None:
        """The host is back and knows nothing of its earlier connections."""
        host = self.host(name)
        host.up = True
        self._changed(f"boot {name}")
        for wire in list(self._wires):
            for mine, other in (wire.ends, wire.ends[::-1]):
                if mine.host is host and not mine.open and other.open:
                    later = self.now + self.rng.uniform(0.0, 1.0)  # when the peer next speaks
                    self.call_at(later, other.break_off, LinkEnd.reset)

    def freeze(self, name: str) -> None:
        """The process stops answering; its host goes on accepting bytes. Freezing its code is the loop's part."""
        self.host(name).frozen = True
        self._changed(f"freeze {name}")

    def thaw(self, name: str) -> None:
        self.host(name).frozen = False
        self._changed(f"thaw {name}")

    # --- how things stand ---------------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(name)
            self._addresses[host.address] = host
        return host

    def passes(self, source: Host, target: Host) -> bool:
        """Whether a message gets from one host to the other now."""
        return source.up and target.up and self._cuts.passes(source.name, target.name)

    def reachable(self, a: str, b: str) -> bool:
        """Whether two hosts can talk: both ways, and neither frozen."""
        one, other = self.host(a), self.host(b)
        return self.passes(one, other) and self.passes(other, one) and not one.frozen and not other.frozen

    def listening(self, node: str) -> Host | None:
        """The host on which this node listens."""
        return next((h for h in self._hosts.values() if h.listener is not None and h.listener.node == node), None)

    # --- for the transports -------------------------------------------------------------------------------------

    def listen(self, name: str, listener: Listener) -> str:
        """Returns the address. Raises Conflict if something listens there."""
        host = self.host(name)
        if host.listener is not None or not host.up:
            raise Conflict(f"Host {name} is down, or something listens on it.", fix="Stop the other process.")
        host.listener = listener
        self.note(f"listen {name}")
        return host.address

    def unlisten(self, name: str, listener: Listener) -> None:
        host = self.host(name)
        if host.listener is listener:
            host.listener = None
            self.note(f"unlisten {name}")

    async def connect(self, name: str, dialler: Listener, address: str) -> tuple[End, str]:
        """A connection to whatever listens at an address, and the id it proves. The caller sets the deadline.

        Raises:
            DialError: refused, unreachable, reset or identity.
        """
        here = self.host(name)
        there = self._addresses.get(address)
        if there is None:
            raise DialError(LinkEnd.unreachable, f"no route to {address}")
        await self.hop(here, there)
        listener = there.listener
        if listener is None:
            await self.hop(there, here)
            raise DialError(LinkEnd.refused, "connection refused: nothing listens there")
        await self.hop(there, here)
        await self.hop(here, there)  # TLS 1.3: one more round trip
        await self._until(lambda: not there.frozen)
        await self.hop(there, here)
        if there.listener is not listener:
            raise DialError(LinkEnd.reset, "connection broken during the handshake")
        if listener.hive != dialler.hive:
            raise DialError(LinkEnd.identity, "it belongs to another hive")
        wire = Wire(self, here, there, dialler, listener)
        self._wires[wire] = None
        if len(self._wires) >= self._prune_at:
            self._wires = {w: None for w in self._wires if not w.over}
            self._prune_at = max(64, 2 * len(self._wires))
        asyncio.get_running_loop().call_soon(
            listener.accepted, wire.ends[1], dialler.node, here.address, context=listener.context
        )
        return wire.ends[0], listener.node

    async def hop(self, source: Host, target: Host, size: int = 0) -> None:
        """The time a message, or `size` bytes of bulk, takes; longer while the way is blocked."""
        await asyncio.sleep(self.delay_of(source, target) + size / self._quality_of(source, target).bytes_per_second)
        if not self.passes(source, target):
            await self._until(lambda: self.passes(source, target))
            await asyncio.sleep(self.rng.uniform(0.0, 1.0))

    def delay_of(self, source: Host, target: Host) -> float:
        quality = self._quality_of(source, target)
        seconds, again = self.rng.uniform(*quality.delay_seconds), quality.retransmit_seconds
        while quality.loss and self.rng.random() < quality.loss:
            seconds += again
            again *= 2
        return seconds

    def note(self, text: str) -> None:
        self.trace.add(self.now, text)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def call_at(self, when: float, call: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """A timer of the network's own, whichever process caused it."""
        return asyncio.get_running_loop().call_at(when, call, *args, context=self._context)

    def _quality_of(self, source: Host, target: Host) -> Quality:
        return self._qualities.get((source.name, target.name), self._quality)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[waiter] = None
            try:
                await waiter
            finally:
                self._waiting.pop(waiter, None)

    def _changed(self, what: str) -> None:
        self.note(what)
        for wire in list(self._wires):
            if wire.over:
                del self._wires[wire]
            else:
                wire.review()
        for waiter in list(self._waiting):
            if not waiter.done():
                waiter.set_result(None)
