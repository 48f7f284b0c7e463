"""One control link: a websocket between two authenticated nodes, whichever of them dialled.

One task reads, decodes and hands on; one task writes what stands in the queues, most urgent first. Nothing else
touches the socket, so a slow consumer elsewhere can neither delay a pong nor reorder messages.
"""

from __future__ import annotations

import asyncio
import socket as sockets
import struct
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

import aiohttp
import msgspec
from aiohttp import WSMsgType, web

from hivenode.logs import get_logger
from hivenode.net.codec import ProtocolError, decode
from hivenode.net.conduct import Control, Intake, Rate
from hivenode.net.messages import MAX_FRAME, PRIORITY, Address, Message
from hivenode.net.transport import LinkEnd, Use
from hivenode.spec.values import HiveId, Name, NodeId

log = get_logger("link")

PROTOCOL_VERSIONS = (1, 1)
"""Oldest and newest version of the messages that this build understands."""

MAX_HELLO = 8 * 1024
MAX_WEBSOCKET_MESSAGE = MAX_FRAME + 1
"""aiohttp's limit is exclusive."""

TCP_RTO_MAX_MS = 44
"""Linux 6.15: the longest that TCP waits before it sends again what was not acknowledged; not in Python's socket."""
_BYTES_RECEIVED = struct.Struct("=128xQ")
"""Where `struct tcp_info` of linux/tcp.h has tcpi_bytes_received (since 4.1)."""

CLOSE_GOODBYE = 1001
CLOSE_PROTOCOL = 1002
CLOSE_DUPLICATE = 4001
CLOSE_VERSION = 4002
CLOSE_IDLE = 4003

_CLOSE_CODES = {LinkEnd.protocol: CLOSE_PROTOCOL, LinkEnd.idle: CLOSE_IDLE}

Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse
Nonce = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]


class Hello(msgspec.Struct, frozen=True, tag_field="t", tag="hello"):
    """First frame each way. The dialler speaks first; the answer means that the link is accepted."""

    node: NodeId
    hive: HiveId
    oldest: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    newest: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    build: Name
    instance: Nonce
    """Drawn once per process: a peer that returns with another one has restarted."""
    link: Nonce
    """Names this link; the answer repeats it."""
    ended: Annotated[tuple[Nonce, ...], msgspec.Meta(max_length=8)] = ()
    """Links to the receiver that the sender knows to be over, so that the receiver lets go of them too."""
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=8)] = ()
    keep: bool = True
    """Whether the sender wants the link kept up; see `messages.Keep`."""


_HELLO_DECODER = msgspec.msgpack.Decoder(Hello)


@dataclass(frozen=True)
class LinkLimits:
    """Bounds of one link."""

    queue_messages: int = 1024
    """Outbound, per priority."""
    queue_bytes: int = 4 * 1024 * 1024
    """Outbound, all priorities together."""
    rates: Mapping[type, Rate] = field(default_factory=dict)
    """Of inbound messages, by type, where they are not to be those of `conduct.RATES`; `object` stands for every type.
    Beyond them the link is read more slowly."""
    heartbeat_seconds: float = 20.0
    """Websocket pings; a peer that answers none for half as long again is gone."""
    goodbye_seconds: float = 1.0
    """Time for flushing and for the closing handshake."""
    resend_seconds: float = 2.0
    """Longest pause of TCP before it tries again, 1 to 120: so long a link may stay silent after a network heals.
    TCP's own doubles with the length of the outage. Where the kernel cannot be told, that one holds."""
    reconcile_seconds: float = 2.0
    """Between looks at whether what arrives becomes messages."""


def resend_soon(socket: Socket, seconds: float) -> None:
    """Have TCP try again after at most so long, where the kernel can be told."""
    raw = socket.get_extra_info("socket")
    if raw is not None and sys.platform == "linux":
        with suppress(OSError):  # an older kernel
            raw.setsockopt(sockets.IPPROTO_TCP, TCP_RTO_MAX_MS, round(seconds * 1000))


class LinkClosed(Exception):
    """The other side ended the connection before the link was up.

    Args:
        why: how it ended.
        code: websocket close code; 0 when there was no goodbye.
        reason: what the other side said.
    """

    def __init__(self, why: LinkEnd, code: int, reason: str) -> None:
        super().__init__(reason or f"closed with code {code}")
        self.why = why
        self.code = code


def arrived(raw: sockets.socket | None) -> int | None:
    """Bytes that the system has received on a connection so far; None where it does not say."""
    if raw is None or sys.platform != "linux":
        return None
    try:
        info = raw.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _BYTES_RECEIVED.size)
    except OSError:
        return None  # closed meanwhile
    return int(_BYTES_RECEIVED.unpack(info)[0]) if len(info) == _BYTES_RECEIVED.size else None


def encode_hello(hello: Hello) -> bytes:
    return msgspec.msgpack.encode(hello)


async def receive_hello(socket: Socket) -> Hello:
    """Wait for the other side's first frame. The caller sets the deadline.

    Raises:
        ProtocolError: something else arrived.
        LinkClosed: the connection ended instead.
    """
    received = await socket.receive()
    if received.type is WSMsgType.CLOSE:
        raise LinkClosed(LinkEnd.closed, int(received.data or 0), str(received.extra or ""))
    if received.type in (WSMsgType.CLOSED, WSMsgType.CLOSING):
        raise LinkClosed(LinkEnd.reset, 0, "connection broken before the hello")
    if received.type is WSMsgType.ERROR:
        raise ProtocolError(f"unreadable hello: {received.data}")
    if received.type is not WSMsgType.BINARY or len(received.data) > MAX_HELLO:
        raise ProtocolError("the first frame is not a hello")
    try:
        return _HELLO_DECODER.decode(received.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed hello: {error}") from error


def require_hello_of(hello: Hello, peer: str, hive: str) -> None:
    """Raises ProtocolError unless a hello says what the sender's certificate says."""
    if hello.node != peer or hello.hive != hive:
        raise ProtocolError(
            f"the hello is of node {hello.node} in hive {hello.hive}, the certificate of {peer} in {hive}"
        )


def incompatible(ours: Hello, theirs: Hello) -> str:
    """Why two builds cannot talk, as a sentence; empty when they can."""
    if ours.oldest <= theirs.newest and theirs.oldest <= ours.newest:
        return ""
    return (
        f"Node {theirs.node} (build {theirs.build}) speaks protocol {theirs.oldest}-{theirs.newest}, "
        f"this node (build {ours.build}) {ours.oldest}-{ours.newest}."
    )


async def close_socket(socket: Socket, code: int, reason: str, seconds: float) -> None:
    """Say goodbye, and stop waiting for the other side's after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            # A close frame holds at most 125 bytes, two of them the code.
            await socket.close(code=code, message=reason.encode()[:120])
    except (TimeoutError, ConnectionError, aiohttp.ClientError) as error:
        log.debug("no goodbye", reason=repr(error))


class Link:
    """A link that is up. `run` carries it until it ends.

    Args:
        peer: authenticated id of the other side.
        address: the one dialled, or where the peer dialled from.
        theirs: the peer's hello.
        use: what the link is for.
        on_message: called with every decoded message; must return at once.
        on_end: called exactly once, as soon as the end is known, with how and why.
    """

    def __init__(
        self,
        socket: Socket,
        *,
        peer: str,
        address: str,
        theirs: Hello,
        use: Use,
        limits: LinkLimits,
        on_message: Callable[[Link, Message], None],
        on_end: Callable[[Link, LinkEnd, str], None],
    ) -> None:
        self.peer = peer
        self.address = address
        self.nonce = theirs.link
        self.instance = theirs.instance
        self.peer_addresses = theirs.addresses
        self.use = use
        self.good_until = float("inf")
        """When the peer's certificate, as shown last, ends; seconds since 1970. The link must not outlive it."""
        self._socket = socket
        self._limits = limits
        self._on_message = on_message
        self._on_end = on_end
        self._queues: tuple[deque[bytes], ...] = tuple(deque() for _ in range(max(PRIORITY.values()) + 1))
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._intake = Intake(limits.rates)
        self._ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self._flush = False
        self._throttled: set[str] = set()
        self.done = asyncio.Event()
        """Set when `run` has finished and the socket is closed."""

    def send(self, priority: int, frame: bytes) -> bool:
        """Queue an encoded message; False if the link has ended or the queue is full."""
        queue = self._queues[priority]
        if (
            self._ended.done()
            or len(queue) >= self._limits.queue_messages
            or self._queued_bytes + len(frame) > self._limits.queue_bytes
        ):
            return False
        self.use.at = asyncio.get_running_loop().time()
        queue.append(frame)
        self._queued_bytes += len(frame)
        self._wake.set()
        return True

    def end(self, why: LinkEnd, reason: str = "") -> None:
        """End the link; `on_end` is called before this returns. With `local` and `idle` the queues are flushed
        first."""
        if self._ended.done():
            return
        self._flush = why in (LinkEnd.local, LinkEnd.idle)
        code = _CLOSE_CODES.get(why, CLOSE_GOODBYE)
        self._ended.set_result((code, reason))
        self._wake.set()
        self._on_end(self, why, reason)

    async def run(self) -> None:
        """Carry the link until it has ended and the socket is closed."""
        resend_soon(self._socket, self._limits.resend_seconds)
        loop = asyncio.get_running_loop()
        reader = loop.create_task(self._read(), name=f"link {self.peer}: read")
        writer = loop.create_task(self._write(), name=f"link {self.peer}: write")
        watcher = loop.create_task(self._watch(), name=f"link {self.peer}: watch")
        try:
            code, reason = await asyncio.shield(self._ended)
            if self._flush:
                await asyncio.wait({writer}, timeout=self._limits.goodbye_seconds)
            writer.cancel()
            await close_socket(self._socket, code, reason, self._limits.goodbye_seconds)
        finally:
            self.end(LinkEnd.reset, "the connection's task was cancelled")
            for task in (reader, writer, watcher):
                task.cancel()
            results = await asyncio.gather(reader, writer, watcher, return_exceptions=True)
            self.done.set()
            for result in results:
                if isinstance(result, Exception):
                    log.error("a link's task failed", peer=self.peer, reason=repr(result))

    async def _read(self) -> None:
        try:
            while not self._ended.done():
                received = await self._socket.receive()
                if received.type is WSMsgType.BINARY:
                    message = decode(received.data)
                    wait = self._charge(type(message), len(received.data))
                    if not self._ended.done():
                        self._on_message(self, message)
                    if wait:
                        await asyncio.sleep(wait)
                elif received.type in (WSMsgType.PING, WSMsgType.PONG):
                    # Not left to aiohttp, which would answer any number of them in one go of the loop.
                    wait = self._charge(Control, len(received.data))
                    if received.type is WSMsgType.PING:
                        await self._socket.pong(received.data)
                    if wait:
                        await asyncio.sleep(wait)
                else:
                    self.end(*self._meaning(received))
        except ProtocolError as error:
            self._offence(error)
        except (ConnectionError, aiohttp.ClientError) as error:
            self.end(LinkEnd.reset, repr(error))
        finally:
            self.end(LinkEnd.reset, "the reader ended")

    async def _watch(self) -> None:
        """End the link of a peer whose bytes never become messages: frames without an end pass through the websocket's
        parser unseen."""
        raw = self._socket.get_extra_info("socket")
        while not self._ended.done():
            await asyncio.sleep(self._limits.reconcile_seconds)
            count = arrived(raw)
            if count is None:
                return
            try:
                self._intake.reconcile(count)
            except ProtocolError as error:
                self._offence(error)

    def _offence(self, error: ProtocolError) -> None:
        if not self._ended.done():
            log.warning("link ended: the peer broke the protocol", peer=self.peer, address=self.address,
                        reason=str(error))  # fmt: skip
        self.end(LinkEnd.protocol, str(error))

    def _charge(self, kind: type, size: int) -> float:
        """Note what came in; returns for how long to read nothing more. Raises ProtocolError."""
        wait = self._intake.take(kind, size, asyncio.get_running_loop().time())
        if wait and kind.__name__ not in self._throttled:
            self._throttled.add(kind.__name__)
            log.warning("a peer floods its link, reading more slowly", peer=self.peer, type=kind.__name__)
        return wait

    def _meaning(self, received: aiohttp.WSMessage) -> tuple[LinkEnd, str]:
        """What a websocket event that is not a frame of ours says about the link."""
        if received.type is WSMsgType.CLOSE:
            return LinkEnd.idle if received.data == CLOSE_IDLE else LinkEnd.closed, str(received.extra or "")
        if received.type in (WSMsgType.CLOSED, WSMsgType.CLOSING):
            return LinkEnd.reset, "connection broken without a goodbye"
        if received.type is WSMsgType.ERROR:
            error = received.data
            if isinstance(error, TimeoutError):
                return LinkEnd.unreachable, "no answer to websocket pings"
            if isinstance(error, aiohttp.WebSocketError):
                raise ProtocolError(str(error))
            return LinkEnd.reset, repr(error)
        raise ProtocolError(f"unexpected {received.type.name} frame")

    async def _write(self) -> None:
        while True:
            queue = next((queue for queue in self._queues if queue), None)
            if queue is None:
                if self._ended.done():
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            frame = queue.popleft()
            self._queued_bytes -= len(frame)
            try:
                await self._socket.send_bytes(frame)
            except (ConnectionError, aiohttp.ClientError) as error:
                self.end(LinkEnd.reset, repr(error))
                return
