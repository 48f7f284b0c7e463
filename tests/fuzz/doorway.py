"""A node's own end of a link, from the first byte after TLS on, whether it was dialled or dials itself: HTTP, the door,
the upgrade to a websocket, the hello, and the link. All of it is real but the connection, which is in memory."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import random
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import WS_KEY

from hivenode.errors import Refused
from hivenode.net.conduct import Conduct
from hivenode.net.dialing import refused_by, skew_of
from hivenode.net.link import PROTOCOL_VERSIONS, Hello, encode_hello
from hivenode.net.messages import PROTOCOL, Message
from hivenode.net.peers import PeerTransport
from hivenode.net.transport import LinkEnd
from hivenode.store.blobs import FileBlobs
from hivenode.trust.certificates import read_certificate
from hivenode.trust.credentials import Credentials
from tests.net.nodes import credentials_of
from tests.security.wire import BINARY, UPGRADE, frame

TURNS = 40
"""Of the event loop, for what has arrived; what is left then waits for a rate."""
LOOKS = 5
"""Turns after each piece."""
LAST_SECONDS = 5.0
"""Within which everything is over after the connection is."""
MOST_KEPT = 16 << 10
WRITTEN = 64 << 20
"""More than that is no answer to one input."""


class _Shown:
    """What the TLS of a connection says of the other side."""

    def __init__(self, credentials: Credentials) -> None:
        self._der = credentials.certificate_der

    def getpeercert(self, binary_form: bool = False) -> Any:
        return self._der


class _Connection(asyncio.Transport):
    def __init__(self, protocol: asyncio.Protocol, credentials: Credentials) -> None:
        super().__init__({"ssl_object": _Shown(credentials), "peername": ("127.0.0.1", 9)})
        self._protocol = protocol
        self._closing = False
        self.said = b""
        """The beginning of what was written."""
        self.written = 0

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self.written < MOST_KEPT:
            self.said += data
        self.written += len(data)

    async def feed(self, data: bytes) -> None:
        """Let something arrive, and the node have a first look at it."""
        if not self._closing:
            self._protocol.data_received(data)
            for _ in range(LOOKS):
                await asyncio.sleep(0)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close


class _Listener:
    """`TransportHandler` that counts."""

    def __init__(self) -> None:
        self.heard = 0

    def link_up(self, peer: str, address: str) -> None: ...

    def link_down(self, peer: str, why: LinkEnd) -> None: ...

    def dial_failed(self, peer: str, address: str, why: LinkEnd, detail: str) -> None: ...

    def received(self, peer: str, message: Message) -> None:
        self.heard += 1
        msgspec.msgpack.encode(message)


class _Complaints(logging.Handler):
    """Defects that were caught and logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "incompatible node" not in record.getMessage():
            self.said.append(self.format(record))


class _Network(aiohttp.BaseConnector):
    """Where every address is the same machine, and every connection in memory."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(force_close=True)
        self._credentials = credentials
        self.connection: _Connection | None = None
        """The last one."""

    async def _create_connection(self, *_: Any) -> ResponseHandler:
        protocol: ResponseHandler = self._factory()
        self.connection = _Connection(protocol, self._credentials)
        protocol.connection_made(self.connection)
        return protocol


WAYS = ((False, False, False), (True, False, False), (True, False, True), (True, True, True), (True, True, False))


@dataclass(frozen=True)
class Input:
    """What arrives on one connection.

    Attributes:
        dialled: the node has dialled, and these are the answers; else it was dialled.
        upgraded, greeted: they begin with a proper upgrade to a websocket, and a proper hello.
        framed: the parts are the payloads of proper frames.
    """

    dialled: bool
    upgraded: bool
    greeted: bool
    framed: bool
    parts: tuple[bytes, ...]

    @classmethod
    def read(cls, cut: list[bytes]) -> Input:
        """All but the parts stands in the first byte of the first one."""
        if not cut or not cut[0]:
            return cls(False, False, False, False, tuple(cut))
        first = cut[0][0]
        return cls(bool(first // len(WAYS) & 1), *WAYS[first % len(WAYS)], (cut[0][1:], *cut[1:]))


class Doorway:
    """Start it once on a loop; `attempt` as often as you like."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._peer = credentials_of(7)
        self._listener = _Listener()
        self._complaints = _Complaints()

    async def start(self) -> None:
        logging.getLogger().addHandler(self._complaints)
        asyncio.get_running_loop().set_exception_handler(lambda loop, what: self._complaints.said.append(repr(what)))
        self._node = PeerTransport(
            credentials_of(3), "127.0.0.1", 0, (), FileBlobs(self._folder), random.Random(1), "0.0.fuzz"
        )
        await self._node.start(self._listener)
        self._network = _Network(self._peer)
        session = self._node._dialer._session
        await session.connector.close()  # type: ignore[union-attr]
        session._connector = self._network
        self._tasks = len(asyncio.all_tasks())

    async def stop(self) -> None:
        await self._node.stop()
        logging.getLogger().removeHandler(self._complaints)

    def hello(self, link: bytes = bytes([1] * 8)) -> bytes:
        """As a member says it."""
        peer = self._peer
        return encode_hello(Hello(peer.identity.node_id, peer.hive_id, *PROTOCOL_VERSIONS, "fuzz", bytes(8), link))

    async def attempt(self, given: Input) -> int:
        """Let it arrive on a new connection of a member, one part after the other, and end the connection.

        Returns:
            how many messages were heard.

        Raises:
            AssertionError: something was left behind, or went wrong inside.
        """
        self._complaints.said.clear()
        self._node._conduct = Conduct()  # who was kept out for the input before could not come in
        before = self._listener.heard
        connection = await self._dial() if given.dialled else self._accept()
        if given.upgraded:
            await connection.feed(_switched(connection.said) if given.dialled else UPGRADE.encode())
        if given.greeted:
            hello = self.hello(_nonce(connection.said)) if given.dialled else self.hello()
            await connection.feed(frame(BINARY, hello, masked=not given.dialled))
        for part in given.parts:
            await connection.feed(frame(BINARY, part, masked=not given.dialled) if given.framed else part)
        await _turns()
        connection.close()
        await _turns()
        async with asyncio.timeout(LAST_SECONDS):
            while len(asyncio.all_tasks()) > self._tasks:
                if self._network.connection is not None:  # a request that was not answered is sent once more
                    self._network.connection.close()
                await asyncio.sleep(0.001)
        assert not self._node._links.live, "a link outlived its connection"
        assert connection.written < WRITTEN, f"{connection.written} bytes were answered"
        assert not self._complaints.said, self._complaints.said
        return self._listener.heard - before

    def _accept(self) -> _Connection:
        server = self._node._runner.server
        assert server is not None
        connection = _Connection(protocol := server(), self._peer)
        protocol.connection_made(connection)
        return connection

    async def _dial(self) -> _Connection:
        self._network.connection = None
        peer = self._peer.identity.node_id
        self._node._dials.spawn(self._node._dial(peer, "127.0.0.1:9", keep=True, stalled=lambda: None), "fuzz: dial")
        while (connection := self._network.connection) is None or b"\r\n\r\n" not in connection.said:
            await asyncio.sleep(0)
        return connection


async def _turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def _switched(asked: bytes) -> bytes:
    """The answer of a node that has been asked for a websocket (RFC 6455, section 4.2.2)."""
    (key,) = re.findall(rb"Sec-WebSocket-Key: (\S+)", asked)
    accept = base64.b64encode(hashlib.sha1(key + WS_KEY).digest()).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
    ).encode()


def _nonce(said: bytes) -> bytes:
    """The name of the link in the hello that a node that dials has said after its request."""
    sent = said.partition(b"\r\n\r\n")[2]
    start = 4 if sent[1] & 127 == 126 else 2
    mask = sent[start : start + 4]
    hello = bytes(byte ^ mask[place % 4] for place, byte in enumerate(sent[start + 4 :]))
    return msgspec.msgpack.decode(hello, type=Hello).link


class Looks:
    """`everything` that is fuzzed here, on a loop of its own."""

    def __init__(self) -> None:
        self._held = tempfile.TemporaryDirectory(prefix="hivenode-fuzz-")
        self._loop = asyncio.new_event_loop()
        self._doorway = Doorway(Path(self._held.name))
        self._loop.run_until_complete(self._doorway.start())
        self.hello = self._doorway.hello()

    def attempt(self, cut: list[bytes]) -> int:
        return self._loop.run_until_complete(self._doorway.attempt(Input.read(cut)))

    def everything(self, cut: list[bytes]) -> None:
        self.attempt(cut)
        for part in cut[:4]:
            said = dict.fromkeys(("X-Hive-Clock", "X-Hive-Reason", "X-Hive-Fault"), part.decode("latin-1"))
            skew_of(said, 0.0)
            refused_by(said, 0.0)
            with contextlib.suppress(Refused):
                read_certificate(part, "0" * 32)

    def close(self) -> None:
        self._loop.run_until_complete(self._doorway.stop())
        self._loop.close()
        self._held.cleanup()


REFUSED = (
    b"HTTP/1.1 403 Forbidden\r\nX-Hive-Fault: revoked\r\nX-Hive-Reason: no\r\nX-Hive-Clock: 1.5\r\n"
    b"Content-Length: 0\r\n\r\n"
)


def seeds(payloads: list[bytes], hello: bytes) -> list[list[bytes]]:
    """Inputs to begin with, of these messages' frames: the ways of being dialled, then those of dialling."""
    framed, answered = ([frame(BINARY, payload, masked=masked) for payload in payloads] for masked in (True, False))
    empty = [b""]
    return [
        [b"\0" + UPGRADE.encode(), frame(BINARY, hello), *framed],
        [b"\1" + frame(BINARY, hello), *framed],
        [b"\2" + hello, *payloads],
        [b"\3" + (payloads or empty)[0], *payloads[1:]],
        [b"\4" + b"".join(framed)],
        [b"\5" + REFUSED],
        [b"\6" + frame(BINARY, hello, masked=False), *answered],
        [b"\7" + hello, *payloads],
        [b"\10" + (payloads or empty)[0], *payloads[1:]],
        [b"\11" + b"".join(answered)],
    ]
