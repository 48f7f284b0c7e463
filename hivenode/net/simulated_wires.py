"""A network in memory and virtual time: hosts, connections between them, and what can go wrong with both.

What is modelled. A connection is like TCP: bytes arrive in order or not at all, a lost segment only delays what
follows it, and a silent network is noticed by nobody until the keepalive gives up. A killed process resets its
connections and its host refuses new ones; a host that is gone, or cut off, is silent; a frozen process lets its host
accept bytes and answers nothing. Not modelled: congestion between control connections, and the loss of a connection's
last bytes when its process is killed (they arrive, then the reset).
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from hivenode.errors import Conflict
from hivenode.net.dialing import DialError
from hivenode.net.transport import LinkEnd
from hivenode.store.ports import BlobStore

QUEUE_MESSAGES = 4096
QUEUE_BYTES = 4 * 1024 * 1024
"""Sent and not arrived, per direction of a connection; beyond it nothing more is taken."""
CATCH_UP_SECONDS = 3.0
"""After an interruption the retransmission timer still waits for up to as long as it lasted, at most this long."""


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


class Listener(Protocol):
    """A process that listens on a host."""

    node: str
    hive: str
    context: contextvars.Context
    """In which it is called."""
    blobs: BlobStore

    def accepted(self, end: End, peer: str, address: str) -> None:
        """`peer` is authenticated, and has dialled from `address`."""
        ...


@dataclass(eq=False)
class Host:
    """A machine: at most one process listens on it."""

    name: str
    up: bool = True
    frozen: bool = False
    listener: Listener | None = None

    @property
    def address(self) -> str:
        return f"sim-{self.name}:1"


class ConnectionEnded(Exception):
    """The connection ended before what was waited for arrived."""

    def __init__(self, why: LinkEnd) -> None:
        super().__init__(why.value)
        self.why = why


class End:
    """One process's end of a connection. Its callbacks run in the context of that process."""

    def __init__(self, network: SimulatedNetwork, host: Host, context: contextvars.Context, lane: Lane) -> None:
        self._network = network
        self.host = host
        self._context = context
        self._lane = lane
        self.open = True
        self._inbox: deque[bytes] = deque()
        self._first: asyncio.Future[None] | None = None
        self._on_frame: Callable[[bytes], None] | None = None
        self._on_end: Callable[[LinkEnd], None] | None = None
        self._ended = LinkEnd.reset

    def send(self, frame: bytes, label: str) -> bool:
        """Queue bytes; False if the connection has ended or too much is under way."""
        return self.open and self._lane.push(frame, label)

    async def first(self) -> bytes:
        """The next frame, before `attach`. Raises ConnectionEnded."""
        if not self._inbox and self.open:
            self._first = asyncio.get_running_loop().create_future()
            await self._first
        if not self._inbox:
            raise ConnectionEnded(self._ended)
        return self._inbox.popleft()

    def attach(self, on_frame: Callable[[bytes], None], on_end: Callable[[LinkEnd], None]) -> None:
        """Hand over everything from here on, soon."""
        self._on_frame, self._on_end = on_frame, on_end
        loop = asyncio.get_running_loop()
        for frame in self._inbox:
            loop.call_soon(on_frame, frame, context=self._context)
        self._inbox.clear()
        if not self.open:
            loop.call_soon(on_end, self._ended, context=self._context)

    def close(self, why: LinkEnd = LinkEnd.closed) -> None:
        """End it from this side; the other hears `why` after everything sent before."""
        if self.open:
            self.open = False
            self._lane.push(why, "end")

    def vanish(self) -> None:
        """The host is gone, and says nothing."""
        self.open = False

    def deliver(self, frame: bytes) -> None:
        asyncio.get_running_loop().call_soon(self._take, frame, context=self._context)

    def break_off(self, why: LinkEnd) -> None:
        """The connection is over, as this side sees it."""
        asyncio.get_running_loop().call_soon(self._finish, why, context=self._context)

    def _take(self, frame: bytes) -> None:
        if not self.open:
            return
        if self._on_frame is not None:
            self._on_frame(frame)
            return
        self._inbox.append(frame)
        self._wake()

    def _finish(self, why: LinkEnd) -> None:
        if not self.open:
            return
        self.open = False
        self._ended = why
        if why is LinkEnd.unreachable:
            self._lane.push(LinkEnd.reset, "end")  # should the peer still be there, it learns it when it next speaks
        if self._on_end is not None:
            self._on_end(why)
        else:
            self._wake()

    def _wake(self) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(None)


class Lane:
    """One direction of a connection: first in, first out."""

    def __init__(self, network: SimulatedNetwork, source: Host, target: Host) -> None:
        self._network = network
        self.source = source
        self.target = target
        self.receiver: End
        self.back: Lane
        self._queue: deque[tuple[float, bytes | LinkEnd, str]] = deque()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0
        self._stalled: float | None = None
        self._closing = False

    def push(self, what: bytes | LinkEnd, label: str) -> bool:
        size = len(what) if isinstance(what, bytes) else 0
        if self._closing or (size and (len(self._queue) >= QUEUE_MESSAGES or self._bytes + size > QUEUE_BYTES)):
            return False
        self._closing = isinstance(what, LinkEnd)
        now = self._network.now
        self._last = max(self._last, now + self._network.delay_of(self.source, self.target))
        self._queue.append((self._last, what, label))
        self._bytes += size
        self._arm()
        return True

    def review(self) -> None:
        """The network has changed: go on if that is possible now."""
        if self._stalled is not None and self._network.passes(self.source, self.target):
            now = self._network.now
            again = now + self._network.rng.uniform(0.0, min(now - self._stalled, CATCH_UP_SECONDS))
            self._queue = deque((max(due, again), what, label) for due, what, label in self._queue)
            self._last = max(self._last, again)
            self._stalled = None
            self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._stalled is None and self._queue:
            self._timer = self._network.call_at(self._queue[0][0], self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        if not self._network.passes(self.source, self.target):
            self._stalled = self._network.now
            return
        _, what, label = self._queue.popleft()
        if isinstance(what, bytes):
            self._bytes -= len(what)
            self._network.note(f"{self.source.name}>{self.target.name} {label} {zlib.crc32(what):08x}")
            if self.receiver.open:
                self.receiver.deliver(what)
            else:
                self.back.push(LinkEnd.reset, "end")
        else:
            self._network.note(f"{self.source.name}>{self.target.name} {what.value}")
            self.receiver.break_off(what)
        self._arm()


class _Wire:
    """A connection."""

    def __init__(self, network: SimulatedNetwork, a: Host, b: Host, ours: Listener, theirs: Listener) -> None:
        there, back = Lane(network, a, b), Lane(network, b, a)
        there.back, back.back = back, there
        self._network = network
        self.ends = (End(network, a, ours.context, there), End(network, b, theirs.context, back))
        there.receiver, back.receiver = self.ends[1], self.ends[0]
        self._lanes = (there, back)
        self._silence: dict[End, asyncio.TimerHandle] = {}

    @property
    def over(self) -> bool:
        return not any(end.open for end in self.ends)

    def review(self) -> None:
        for lane in self._lanes:
            lane.review()
        a, b = self.ends[0].host, self.ends[1].host
        if self._network.reachable(a.name, b.name):
            for timer in self._silence.values():
                timer.cancel()
            self._silence.clear()
            return
        for end in self.ends:
            if end.open and not end.host.frozen and end not in self._silence:
                until = self._network.now + self._network.rng.uniform(*self._network.silence_seconds)
                self._silence[end] = self._network.call_at(until, end.break_off, LinkEnd.unreachable)


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
        self._wires: dict[_Wire, None] = {}
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
        wire = _Wire(self, here, there, dialler, listener)
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
