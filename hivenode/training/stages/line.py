"""Messages between the stages of a model: any worker of the attempt to any other, over mutually authenticated TLS.

Workers meet as those of an exchange do. A frame is a header that says what it carries and the bytes of one tensor.
Receivers know what is due and how long it is; anything else ends the line. A stage cannot go on without the others, so
the loss of one is the end for all: each says so at once, and the job is planned again over those that are left.
"""

from __future__ import annotations

import queue
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from hivenode.errors import Conflict, HiveError, InvalidInput, Unavailable
from hivenode.net.local import Peer
from hivenode.training.exchange.channel import Channel, LinkBroken
from hivenode.training.exchange.clock import now
from hivenode.training.exchange.effects import Malformed
from hivenode.training.exchange.exchange import Seat
from hivenode.training.exchange.keys import WorkerKey
from hivenode.training.exchange.meeting import Meeting, listen

HEADER = struct.Struct("<BHIII")
"""Subject, place, step, number of the small batch, bytes that follow."""
SEND_BYTES = 1024 * 1024
MAX_WAITING = 4096
MAX_WAITING_LONGEST = 64
"""Messages of one peer that wait to be asked for, and how many of the longest their bytes may be; the schedule never
has more under way. One that sends more does not follow the protocol."""
LINGER_SECONDS = 2.0


class Subject(IntEnum):
    """What a message carries."""

    alive = 0
    activation = 1
    gradient = 2
    shared = 3
    """The gradient of a parameter that several stages use."""
    numbers = 4
    """Small float64 vectors: losses, counts, norms."""
    piece = 5
    """Part of a file that is gathered."""
    ask = 6
    """For the next piece."""
    bye = 7


class Tag(NamedTuple):
    """Which message: `number` counts small batches, `place` what one of them sends."""

    subject: Subject
    step: int
    number: int = 0
    place: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: silence after which a peer is lost, between signs of life, to wait for peers at the start."""

    silence: float = 3.0
    heartbeat: float = 0.5
    connect: float = 15.0


class _Link:
    """Both connections to one peer, and a thread for each. Messages wait in `inbox` until they are asked for."""

    def __init__(self, line: Line, rank: int, outgoing: Channel, incoming: Channel) -> None:
        self._line, self.rank, self._outgoing, self._incoming = line, rank, outgoing, incoming
        self.inbox: dict[Tag, bytearray] = {}
        self.heard = now()
        self.queue: queue.SimpleQueue[tuple[bytes, memoryview] | None] = queue.SimpleQueue()
        self.said_bye = False
        self._threads = [
            threading.Thread(target=target, name=f"line-{what}-{rank}", daemon=True)
            for what, target in (("read", self._read), ("write", self._write))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def send(self, tag: Tag, data: memoryview) -> None:
        self.queue.put((HEADER.pack(tag.subject, tag.place, tag.step, tag.number, len(data)), data))

    def end(self) -> None:
        """Send what is queued, then nothing more."""
        self.queue.put(None)

    def join(self, seconds: float) -> None:
        self._threads[1].join(max(0.0, seconds))
        self._outgoing.sever()
        self._incoming.sever()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(1.0)

    def _write(self) -> None:
        try:
            while (item := self.queue.get()) is not None:
                self._outgoing.send(*item)
        except OSError:
            self._line.broken(self.rank, "its connection broke")
        finally:
            self._outgoing.finish()

    def _note(self) -> None:
        self.heard = now()

    def _read(self) -> None:
        header = bytearray(HEADER.size)
        try:
            while True:
                self._incoming.fill(memoryview(header), self._note)
                subject, place, step, number, length = HEADER.unpack(header)
                if subject == Subject.alive and length == 0:
                    continue
                if subject not in Subject._value2member_map_ or length > self._line.limit:
                    raise Malformed(f"a message about {subject} of {length} bytes")
                body = bytearray(length)
                self._incoming.fill(memoryview(body), self._note)
                self._line.arrived(self, Tag(Subject(subject), step, number, place), body)
        except (LinkBroken, OSError):
            self._line.broken(self.rank, "its connection broke")
        except Malformed as error:
            self._line.broken(self.rank, f"it sent what is not of the protocol ({error})")
        finally:
            self._incoming.close()


class Line:
    """The workers of an attempt whose model is cut into stages. Listens from its creation on. One thread calls
    `send` and `receive` for the work, others may for files; `lost` and `close` are safe from any.

    Args:
        seat: this worker's node, rank and address.
        pace: how it tells that a peer is gone.
        key: its key; a new one if None.

    Attributes:
        limit: bytes of the longest message that may come; set it before `connect`.

    Raises:
        Conflict: there is no port to listen on.
    """

    def __init__(self, seat: Seat, pace: Pace | None = None, key: WorkerKey | None = None) -> None:
        self._me, self._pace = seat, pace or Pace()
        self._key = key or WorkerKey.create()
        self._listener = listen(seat.host, seat.ports)
        self.port: int = self._listener.getsockname()[1]
        self.certificate: str = self._key.certificate
        self.limit = SEND_BYTES
        self._nodes: dict[int, str] = {seat.rank: seat.node}
        self._links: dict[int, _Link] = {}
        self._changed = threading.Condition()
        self._failure: HiveError | None = None
        self._ending = self._closed = False
        self._meeting: Meeting | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Node ids by rank."""
        return tuple(self._nodes[rank] for rank in sorted(self._nodes))

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted(self._nodes))

    def connect(self, peers: Sequence[Peer]) -> None:
        """Link up with all peers.

        Raises:
            InvalidInput: two of them share a rank.
            Unavailable: not all could be reached in time.
        """
        others = [peer for peer in peers if peer.node != self._me.node]
        nodes = {peer.rank: peer.node for peer in others} | {self._me.rank: self._me.node}
        if len(nodes) != len(others) + 1:
            raise InvalidInput("Two workers share a rank.", fix="Give each worker of an attempt a rank of its own.")
        if self._meeting is not None:
            raise Conflict("The line is connected already.", fix="Make one for each attempt.")
        self._nodes = nodes
        self._meeting = Meeting(
            self._me.rank, self._key, self._listener, others, self._linked, now() + self._pace.connect
        )
        self._meeting.start()
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure is not None or len(self._links) == len(others), self._pace.connect
            )
            self._check()
            missing = [self._nodes[rank] for rank in self.ranks if rank != self._me.rank and rank not in self._links]
            if missing:
                self._fail(f"Stage workers could not be reached: {', '.join(missing)}.")
                self._check()
        threading.Thread(target=self._keep_time, name="line-timer", daemon=True).start()

    def send(self, rank: int, tag: Tag, data: memoryview | bytes) -> None:
        """Queue a message; `data` must not change until the peer has answered to it. Raises Unavailable."""
        with self._changed:
            self._check()
            self._links[rank].send(tag, memoryview(data))

    def receive(self, rank: int, tag: Tag, length: int) -> bytearray:
        """Wait for a message of exactly `length` bytes.

        Raises:
            Unavailable: a peer is lost, sent another length, or the line was closed.
        """
        link = self._links[rank]
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or tag in link.inbox)
            if tag not in link.inbox:
                self._check()
            body = link.inbox.pop(tag)
        if len(body) != length:
            self.broken(rank, f"it sent {len(body)} bytes where {length} are due")
            with self._changed:
                self._check()
        return body

    def finish(self) -> None:
        """Wait until all are finished, so that all may leave. Raises Unavailable."""
        with self._changed:
            self._ending = True
            for link in self._links.values():
                link.send(Tag(Subject.bye, 0), memoryview(b""))
            self._changed.wait_for(
                lambda: self._failure is not None or all(link.said_bye for link in self._links.values())
            )
            self._check()

    def admit(self, peer: Peer) -> None:
        """Nobody joins a line: its layers are divided already. The newcomer is left out, and told so by its end."""

    def lost(self, node: str) -> None:
        """The failure detector has given that node up."""
        with self._changed:
            for rank, name in self._nodes.items():
                if name == node and rank != self._me.rank:
                    self._fail(f"Worker {node}, which holds stage {rank}, is lost: its node is gone.")

    def close(self) -> None:
        """Leave; what is queued is sent first, for two seconds at most. Makes whoever waits fail."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._fail("The line of stages was closed.")
            links = list(self._links.values())
        for link in links:
            link.end()
        deadline = now() + LINGER_SECONDS
        for link in links:
            link.join(deadline - now())
        if self._meeting is not None:
            self._meeting.close()
        else:
            self._listener.close()

    # --- from links ---------------------------------------------------------------------------------------------

    def _linked(self, rank: int, outgoing: Channel, incoming: Channel) -> None:
        link = _Link(self, rank, outgoing, incoming)
        with self._changed:
            link.start()
            self._links[rank] = link
            self._changed.notify_all()

    def arrived(self, link: _Link, tag: Tag, body: bytearray) -> None:
        """A message is there. Raises Malformed."""
        with self._changed:
            if tag.subject is Subject.bye:
                link.said_bye = True
            elif tag in link.inbox or self._full(link, len(body)):
                raise Malformed("a message that is there already" if tag in link.inbox else "too many messages")
            else:
                link.inbox[tag] = body
            self._changed.notify_all()

    def _full(self, link: _Link, length: int) -> bool:
        waiting = length + sum(map(len, link.inbox.values()))
        return len(link.inbox) >= MAX_WAITING or waiting > MAX_WAITING_LONGEST * self.limit

    def broken(self, rank: int, why: str) -> None:
        """Nothing more comes from that peer, or goes to it."""
        with self._changed:
            link = self._links.get(rank)
            if link is not None and link.said_bye and self._ending:
                return
            self._fail(f"Worker {self._nodes.get(rank, rank)}, which holds stage {rank}, is lost: {why}.")

    def _keep_time(self) -> None:
        with self._changed:
            while self._failure is None:
                moment = now()
                for rank, link in self._links.items():
                    link.send(Tag(Subject.alive, 0), memoryview(b""))
                    if moment - link.heard > self._pace.silence and not link.said_bye:
                        self._fail(f"Worker {self._nodes[rank]}, which holds stage {rank}, is lost: it is silent.")
                self._changed.wait_for(lambda: self._failure is not None, self._pace.heartbeat)

    def _fail(self, sentence: str) -> None:
        """Lock held. The first reason stands."""
        if self._failure is None:
            self._failure = Unavailable(sentence, fix="The job goes on from its last checkpoint with the nodes left.")
        self._changed.notify_all()

    def _check(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(self._failure.sentence, fix=self._failure.fix)
