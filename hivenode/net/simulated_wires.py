"""A connection in memory and virtual time, between two hosts of a `simulated_network`.

It is like TCP: bytes arrive in order or not at all, a lost segment only delays what follows it, and one that goes
nowhere is over when the keepalive gives up. Not modelled: the loss of a connection's last bytes when its process is
killed (they arrive, then the reset).
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hivenode.net.transport import LinkEnd
from hivenode.store.ports import BlobStore

QUEUE_MESSAGES = 4096
QUEUE_BYTES = 4 * 1024 * 1024
"""Sent and not arrived, per direction of a connection; beyond it nothing more is taken."""
CATCH_UP_SECONDS = 3.0
"""After an interruption the retransmission timer still waits for up to as long as it lasted, at most this long."""


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


class Ways(Protocol):
    """What a connection needs of its network."""

    rng: random.Random
    silence_seconds: tuple[float, float]

    @property
    def now(self) -> float: ...

    def passes(self, source: Host, target: Host) -> bool: ...

    def reachable(self, a: str, b: str) -> bool: ...

    def delay_of(self, source: Host, target: Host) -> float: ...

    def call_at(self, when: float, call: Callable[..., object], *args: object) -> asyncio.TimerHandle: ...

    def note(self, text: str) -> None: ...


class ConnectionEnded(Exception):
    """The connection ended before what was waited for arrived."""

    def __init__(self, why: LinkEnd) -> None:
        super().__init__(why.value)
        self.why = why


class End:
    """One process's end of a connection. Its callbacks run in the context of that process."""

    def __init__(self, network: Ways, host: Host, context: contextvars.Context, lane: Lane) -> None:
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

    def __init__(self, network: Ways, source: Host, target: Host) -> None:
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


class Wire:
    """A connection."""

    def __init__(self, network: Ways, a: Host, b: Host, ours: Listener, theirs: Listener) -> None:
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
