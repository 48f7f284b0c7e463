"""The link between two workers: one TLS connection each way, a thread that reads and a thread that writes.

Each connection carries data in one direction only. OpenSSL does not allow one connection to be read and written at
once by two threads, and this way a big send cannot hold up a read. Frames are a fixed header and bytes; numbers go
from and to the arrays themselves, in chunks, with control frames in between.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections import deque
from dataclasses import dataclass

import msgspec
import numpy as np

from hivenode.training.exchange.clock import now
from hivenode.training.exchange.effects import Bulk, Landing, Malformed, Transfer
from hivenode.training.exchange.messages import Control, ViewId, decode, encode
from hivenode.training.exchange.reduction import Vector

HEADER = struct.Struct("<BxHIQQI")
"""Type, leader and number of the view, round, first element, bytes that follow."""

CONTROL, HEARTBEAT = 0, 16
"""Frame types beside those of `Bulk`."""

MAX_CONTROL = 64 * 1024
MAX_CHUNK = 1024 * 1024
"""Bytes. No frame is longer."""

MAX_QUEUED = 4096
"""Control frames waiting for one peer; it is lost when there are more."""


class LinkBroken(Exception):
    """The connection ended."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A header as read."""

    kind: int
    view: ViewId
    round: int
    start: int
    length: int


def write_control(message: Control) -> bytes:
    """The frame of a control message."""
    body = encode(message)
    return HEADER.pack(CONTROL, 0, 0, 0, 0, len(body)) + body


def read_exactly(connection: socket.socket, target: memoryview) -> None:
    """Fill `target`. Raises LinkBroken at the end of the stream, OSError."""
    while target:
        count = connection.recv_into(target)
        if count == 0:
            raise LinkBroken
        target = target[count:]


def read_control(connection: socket.socket) -> Control:
    """One control message, as the first on a connection. Raises LinkBroken, Malformed, OSError."""
    header = bytearray(HEADER.size)
    read_exactly(connection, memoryview(header))
    kind, _, _, _, _, length = HEADER.unpack(header)
    if kind != CONTROL or not 0 < length <= MAX_CONTROL:
        raise Malformed("a frame before the greeting")
    body = bytearray(length)
    read_exactly(connection, memoryview(body))
    try:
        return decode(body)
    except msgspec.MsgspecError as error:
        raise Malformed(str(error)) from error


def sever(connection: socket.socket) -> None:
    """End a connection that other threads are blocked in. Not `SSLSocket.shutdown`: that turns the object into a
    plaintext socket under the feet of whoever is writing to it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Sink:
    """What a link reports to. Called from the link's own threads."""

    def control(self, sender: int, message: Control) -> None:
        raise NotImplementedError

    def landing(self, sender: int, frame: Frame) -> Landing | None:
        """Where numbers go; None for stale ones. Raises Malformed."""
        raise NotImplementedError

    def landed(self, landing: Landing) -> None:
        raise NotImplementedError

    def ended(self, sender: int, *, malformed: bool) -> None:
        """Nothing more will be read."""
        raise NotImplementedError


class Link:
    """Args:
    rank: the peer's.
    outgoing: connection this side writes to.
    incoming: connection this side reads from.
    chunk_bytes: numbers are sent in frames of at most this size; a control frame waits for one of them at most.
    """

    def __init__(
        self, rank: int, outgoing: ssl.SSLSocket, incoming: ssl.SSLSocket, sink: Sink, chunk_bytes: int
    ) -> None:
        self.rank = rank
        self.received = 0
        """Bytes read so far."""
        self._noticed = (0, now())
        self.broken_since: float | None = None
        """When writing failed. The reader, which first reads all that the peer had to say, decides what it means."""
        self._outgoing, self._incoming, self._sink = outgoing, incoming, sink
        self._chunk = min(chunk_bytes, MAX_CHUNK) // 4 * 4
        self._wake = threading.Condition()
        self._control: deque[bytes] = deque()
        self._bulk: deque[tuple[Transfer, int]] = deque()
        self._beat_due = False
        self._finishing = self._cut = False
        self._bulk_busy = False
        self._writer = threading.Thread(target=self._write_all, name=f"exchange-write-{rank}", daemon=True)
        self._reader = threading.Thread(target=self._read_all, name=f"exchange-read-{rank}", daemon=True)

    def start(self) -> None:
        self._writer.start()
        self._reader.start()

    def heard(self, moment: float, *, anew: bool = False) -> float:
        """When something was last read, as far as calls of this have noticed; `anew` counts this moment as such."""
        if anew or self._noticed[0] != self.received:
            self._noticed = (self.received, moment)
        return self._noticed[1]

    # --- writing ---------------------------------------------------------------------------------------------

    def send(self, message: Control) -> None:
        """Queue a control message, ahead of all numbers."""
        with self._wake:
            if self._cut or self._finishing:
                return
            if len(self._control) >= MAX_QUEUED:
                self._cut = True
                sever(self._incoming)
            self._control.append(write_control(message))
            self._wake.notify_all()

    def transfer(self, transfer: Transfer) -> None:
        """Queue numbers, in order. They are read from the array when their turn comes."""
        with self._wake:
            if self._cut or self._finishing:
                return
            self._bulk.append((transfer, 0))
            self._wake.notify_all()

    def beat(self) -> None:
        """Let the peer know that this process runs."""
        with self._wake:
            self._beat_due = True
            self._wake.notify_all()

    def forget(self, keep: ViewId) -> None:
        """Drop queued numbers of all views but this one."""
        with self._wake:
            self._bulk = deque(item for item in self._bulk if item[0].view == keep)

    def finish(self) -> None:
        """Send the control messages still queued, then end."""
        with self._wake:
            self._finishing = True
            self._bulk.clear()
            self._wake.notify_all()

    def drain(self, seconds: float) -> None:
        """Wait until all that is queued has been handed to the system, or writing has failed."""
        with self._wake:
            self._wake.wait_for(self._drained, seconds)

    def settle(self, seconds: float) -> None:
        """Wait until no chunk of numbers is being written; cut the link if one still is after `seconds`."""
        with self._wake:
            if not self._wake.wait_for(lambda: not self._bulk_busy, seconds):
                self._cut_now()

    def cut(self) -> None:
        """End at once, whatever is under way."""
        with self._wake:
            self._cut_now()

    def join(self, seconds: float) -> None:
        """Wait for both threads."""
        deadline = now() + seconds
        for thread in (self._writer, self._reader):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - now()))

    def _drained(self) -> bool:
        return self._cut or not (self._control or self._bulk or self._bulk_busy)

    def _cut_now(self) -> None:
        self._cut = True
        sever(self._outgoing)
        sever(self._incoming)
        self._wake.notify_all()

    def _next(self) -> bytes | tuple[Transfer, int] | None:
        """Block until there is something to write; None when there never will be."""
        with self._wake:
            self._bulk_busy = False
            self._wake.notify_all()
            while True:
                if self._cut:
                    return None
                if self._control:
                    return self._control.popleft()
                if self._finishing:
                    return None
                if self._beat_due:
                    self._beat_due = False
                    return HEADER.pack(HEARTBEAT, 0, 0, 0, 0, 0)
                if self._bulk:
                    transfer, done = self._bulk.popleft()
                    step = min(transfer.data.size - done, self._chunk // 4)
                    if done + step < transfer.data.size:
                        self._bulk.appendleft((transfer, done + step))
                    self._bulk_busy = True
                    return transfer, done
                self._wake.wait()

    def _write_all(self) -> None:
        try:
            while (item := self._next()) is not None:
                if isinstance(item, bytes):
                    self._outgoing.sendall(item)
                    continue
                transfer, done = item
                piece = transfer.data[done : done + self._chunk // 4]
                view = transfer.view
                header = HEADER.pack(
                    transfer.kind, view.leader, view.number, transfer.round, transfer.start + done, piece.nbytes
                )
                self._outgoing.sendall(header)
                self._outgoing.sendall(bytes_of(piece))
        except OSError:
            self.broken_since = now()
        finally:
            with self._wake:
                self._cut = True
                self._bulk_busy = False
                self._bulk.clear()
                self._control.clear()
                self._wake.notify_all()
            self._outgoing.close()

    # --- reading ---------------------------------------------------------------------------------------------

    def _fill(self, target: memoryview) -> None:
        """As `read_exactly`; counts, because a long frame on a slow link is not silence."""
        receive = self._incoming.recv_into
        while target:
            count = receive(target)
            if count == 0:
                raise LinkBroken
            self.received += count
            target = target[count:]

    def _read_all(self) -> None:
        malformed = False
        header = bytearray(HEADER.size)
        scratch = memoryview(bytearray(64 * 1024))
        try:
            while True:
                self._fill(memoryview(header))
                kind, leader, number, round_number, start, length = HEADER.unpack(header)
                if kind == HEARTBEAT and length == 0:
                    continue
                if kind == CONTROL and 0 < length <= MAX_CONTROL:
                    body = bytearray(length)
                    self._fill(memoryview(body))
                    self._sink.control(self.rank, decode(body))
                    continue
                if kind not in Bulk._value2member_map_ or not 0 < length <= MAX_CHUNK or length % 4:
                    raise Malformed(f"a frame of type {kind} and {length} bytes")
                frame = Frame(kind, ViewId(number, leader), round_number, start, length)
                landing = self._sink.landing(self.rank, frame)
                if landing is not None:
                    self._fill(bytes_of(landing.target))
                    self._sink.landed(landing)
                    continue
                while length:
                    step = min(length, len(scratch))
                    self._fill(scratch[:step])
                    length -= step
        except (LinkBroken, OSError):
            pass  # `ended` says it
        except (Malformed, msgspec.MsgspecError):
            malformed = True
        finally:
            self._sink.ended(self.rank, malformed=malformed)
            self._incoming.close()


def bytes_of(array: Vector) -> memoryview:
    """The array's own memory, as the bytes that go over the wire (little-endian float32)."""
    return array.view(np.uint8).data
