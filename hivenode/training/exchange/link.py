"""The link between two workers: one TLS connection each way, a thread that reads and a thread that writes.

Each connection carries data in one direction only. OpenSSL does not allow one connection to be read and written at
once by two threads, and this way a big send cannot hold up a read. Frames are a fixed header and bytes; numbers go
from and to the arrays themselves, in chunks, with control frames in between.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from dataclasses import dataclass

import msgspec
import numpy as np

from hivenode.training.exchange.channel import Channel, LinkBroken
from hivenode.training.exchange.clock import now
from hivenode.training.exchange.codecs import BLOCK, Codec, Encoded
from hivenode.training.exchange.effects import Bulk, Landing, Malformed, Transfer
from hivenode.training.exchange.messages import Control, ViewId, decode, encode
from hivenode.training.exchange.scratch import Vector

HEADER = struct.Struct("<BxHIQQII")
"""Type, leader and number of the view, round, first element, elements, bytes that follow."""

CONTROL, HEARTBEAT = 0, 16
"""Frame types beside those of `Bulk`."""

MAX_CONTROL = 64 * 1024
MAX_CHUNK = 1024 * 1024
"""Bytes of numbers in one frame, before they are encoded."""
MAX_FRAME = MAX_CHUNK + 64 * 1024
"""Bytes. No frame is longer, whatever the codec adds."""

ENOUGH_SENT = 1024 * 1024
"""Bytes by which a rate can be told."""

BEATS = 32
"""Heartbeats that the longest gap is looked for in, and as many before."""

MAX_QUEUED = 4096
"""Control frames waiting for one peer; it is lost when there are more."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A header as read."""

    kind: int
    view: ViewId
    round: int
    start: int
    count: int
    length: int


def write_control(message: Control) -> bytes:
    """The frame of a control message."""
    body = encode(message)
    return HEADER.pack(CONTROL, 0, 0, 0, 0, 0, len(body)) + body


def read_control(channel: Channel) -> Control:
    """One control message, as the first on a connection. Raises LinkBroken, Malformed, OSError."""
    header = bytearray(HEADER.size)
    channel.fill(memoryview(header))
    kind, _, _, _, _, _, length = HEADER.unpack(header)
    if kind != CONTROL or not 0 < length <= MAX_CONTROL:
        raise Malformed("a frame before the greeting")
    body = bytearray(length)
    channel.fill(memoryview(body))
    try:
        return decode(body)
    except msgspec.MsgspecError as error:
        raise Malformed(str(error)) from error


class Sink:
    """What a link reports to. Called from the link's own threads."""

    def control(self, sender: int, message: Control) -> None:
        raise NotImplementedError

    def landing(self, sender: int, frame: Frame) -> Landing | None:
        """Where numbers go; None for stale ones. Raises Malformed."""
        raise NotImplementedError

    def landed(self, landing: Landing) -> None:
        raise NotImplementedError

    def ended(self, sender: int, unfinished: Landing | None, *, malformed: bool) -> None:
        """Nothing more will be read, and no more of what was landing."""
        raise NotImplementedError


class Link:
    """Args:
    rank: the peer's.
    outgoing: what this side writes to.
    incoming: what this side reads from.
    chunk_bytes: numbers are sent in frames of at most this size; a control frame waits for one of them at most.
    """

    def __init__(self, rank: int, outgoing: Channel, incoming: Channel, sink: Sink, chunk_bytes: int) -> None:
        self.rank = rank
        self.heard = now()
        """When something was last read; a long frame on a slow link is not silence."""
        self._gap = self._gap_before = 0.0
        self._beats = 0
        self._sent, self._seconds = 0, 0.0
        self.broken_since: float | None = None
        """When writing failed. The reader, which first reads all that the peer had to say, decides what it means."""
        self._outgoing, self._incoming, self._sink = outgoing, incoming, sink
        self._chunk_bytes = chunk_bytes
        self._scratch = np.empty(0, np.uint8)
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

    @property
    def gap(self) -> float:
        """The longest time between two readings, of late."""
        return max(self._gap, self._gap_before)

    def rate(self) -> int | None:
        """Bytes a second that numbers lately went out with, while they did; None if there were too few."""
        sent, seconds = self._sent, self._seconds
        if sent < ENOUGH_SENT or seconds <= 0.0:
            return None
        self._sent, self._seconds = sent // 2, seconds / 2
        return int(sent / seconds)

    # --- writing ---------------------------------------------------------------------------------------------

    def send(self, message: Control) -> None:
        """Queue a control message, ahead of all numbers."""
        with self._wake:
            if self._cut or self._finishing:
                return
            if len(self._control) >= MAX_QUEUED:
                self._cut = True
                self._incoming.sever()
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
        """Drop queued numbers of all views but this one, except a newcomer's state."""
        with self._wake:
            self._bulk = deque(item for item in self._bulk if item[0].view == keep or item[0].kind is Bulk.state)

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
        self._outgoing.sever()
        self._incoming.sever()
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
                    return HEADER.pack(HEARTBEAT, 0, 0, 0, 0, 0, 0)
                if self._bulk:
                    transfer, done = self._bulk.popleft()
                    step = min(transfer.values.size - done, self._step(transfer.codec))
                    if done + step < transfer.values.size:
                        self._bulk.appendleft((transfer, done + step))
                    self._bulk_busy = True
                    return transfer, done
                self._wake.wait()

    def _write_all(self) -> None:
        try:
            while (item := self._next()) is not None:
                if isinstance(item, bytes):
                    self._outgoing.send(item)
                    continue
                self._write_numbers(*item)
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

    def _write_numbers(self, transfer: Transfer, done: int) -> None:
        """One chunk, from element `done` of the transfer on."""
        values = transfer.values[done : done + self._step(transfer.codec)]
        piece = self._on_the_wire(transfer, done, values)
        view = transfer.view
        header = HEADER.pack(
            transfer.kind, view.leader, view.number, transfer.round, transfer.start + done, values.size, piece.nbytes
        )
        began = now()
        self._outgoing.send(header, piece.data)
        self._seconds += now() - began
        self._sent += piece.nbytes

    def _step(self, codec: Codec | None) -> int:
        """Elements in a chunk: whole blocks."""
        block = 4 * BLOCK if codec is None else codec.encoded_size(BLOCK)
        return max(1, min(self._chunk_bytes // block, MAX_CHUNK // (4 * BLOCK))) * BLOCK

    def _on_the_wire(self, transfer: Transfer, done: int, values: Vector) -> Encoded:
        codec = transfer.codec
        if codec is None:
            return values.view(np.uint8)
        size = codec.encoded_size(values.size)
        if transfer.encoded is not None:
            at = codec.encoded_size(done)
            return transfer.encoded[at : at + size]
        if self._scratch.size < size:
            self._scratch = np.empty(size, np.uint8)
        codec.encode(values, self._scratch[:size])
        return self._scratch[:size]

    # --- reading ---------------------------------------------------------------------------------------------

    def _note(self) -> None:
        """Something has come."""
        moment = now()
        if moment - self.heard > self._gap:
            self._gap = moment - self.heard
        self.heard = moment

    def _read_all(self) -> None:
        malformed, landing = False, None
        header = bytearray(HEADER.size)
        scratch = np.empty(MAX_FRAME, np.uint8)
        fill = self._incoming.fill
        try:
            while True:
                fill(memoryview(header), self._note)
                kind, leader, number, round_number, start, count, length = HEADER.unpack(header)
                if kind == HEARTBEAT and length == 0:
                    self._beats += 1
                    if self._beats % BEATS == 0:
                        self._gap_before, self._gap = self._gap, 0.0
                    continue
                if kind == CONTROL and 0 < length <= MAX_CONTROL:
                    body = bytearray(length)
                    fill(memoryview(body), self._note)
                    self._sink.control(self.rank, decode(body))
                    continue
                if (
                    kind not in Bulk._value2member_map_
                    or not 0 < length <= MAX_FRAME
                    or not 0 < count <= MAX_CHUNK // 4
                ):
                    raise Malformed(f"a frame of type {kind}, {count} elements and {length} bytes")
                frame = Frame(kind, ViewId(number, leader), round_number, start, count, length)
                landing = self._sink.landing(self.rank, frame)
                if landing is None:
                    fill(scratch[:length].data, self._note)
                    continue
                if landing.size != length:
                    raise Malformed(f"{length} bytes where {count} elements take {landing.size}")
                if landing.target is not None:
                    fill(landing.target.data, self._note)
                else:
                    assert landing.codec is not None
                    assert landing.values is not None
                    fill(scratch[:length].data, self._note)
                    landing.codec.decode(scratch[:length], landing.values)
                done, landing = landing, None
                self._sink.landed(done)
        except (LinkBroken, OSError):
            pass  # `ended` says it
        except (Malformed, msgspec.MsgspecError):
            malformed = True
        finally:
            self._sink.ended(self.rank, landing, malformed=malformed)
            self._incoming.close()
