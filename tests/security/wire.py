"""Connections made by hand: TLS, then whatever bytes an attacker likes, websocket frames among them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import struct
from typing import Any

import msgspec

from hivenode.net.codec import decode, encode
from hivenode.net.link import Hello, encode_hello
from hivenode.net.messages import PROTOCOL, Message
from hivenode.trust.credentials import Credentials

PATIENCE = 30.0
"""Seconds until a test that waits for something gives up."""
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
UPGRADE = (
    "GET /link HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
)


def frame(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, masked: bool = True,
          declared: int | None = None) -> bytes:  # fmt: skip
    """One websocket frame (RFC 6455, section 5.2).

    Args:
        rsv: the three reserved bits.
        declared: length to claim instead of the payload's own.
    """
    length = len(payload) if declared is None else declared
    head = bytes([fin << 7 | rsv << 4 | opcode])
    mask_bit = masked << 7
    if length < 126:
        head += bytes([mask_bit | length])
    elif length < 1 << 16:
        head += bytes([mask_bit | 126]) + struct.pack("!H", length)
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", length)
    return head + (bytes(4) if masked else b"") + payload  # masked with zeros: the payload as it is


class Wire:
    """A connection to a node's port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, address: str, context: ssl.SSLContext | None, *, source: str = "") -> Wire:
        """Args: context: None for no TLS. source: address to come from."""
        host, _, port = address.rpartition(":")
        local = (source, 0) if source else None
        async with asyncio.timeout(PATIENCE):
            return cls(*await asyncio.open_connection(host, int(port), ssl=context, local_addr=local, limit=1 << 20))

    @classmethod
    async def upgraded(cls, address: str, credentials: Credentials) -> Wire:
        """A websocket of a member, before any hello. Raises AssertionError with the answer if it is refused."""
        wire = await cls.open(address, credentials.client_context())
        wire.writer.write(UPGRADE.encode())
        async with asyncio.timeout(PATIENCE):
            answer = await wire.reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101"), answer
        return wire

    @classmethod
    async def linked(cls, address: str, credentials: Credentials, **hello: Any) -> Wire:
        """A link of a member that has said hello (with some fields changed) and been answered."""
        wire = await cls.upgraded(address, credentials)
        wire.hello(credentials, **hello)
        opcode, payload = await wire.frame()
        assert opcode == BINARY, (opcode, payload)
        return wire

    def hello(self, credentials: Credentials, **changes: Any) -> None:
        proper = Hello(
            node=credentials.identity.node_id,
            hive=credentials.hive_id,
            oldest=1,
            newest=1,
            build="hostile",
            instance=os.urandom(8),
            link=os.urandom(8),
        )
        self.raw(frame(BINARY, encode_hello(msgspec.structs.replace(proper, **changes))))

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    def say(self, message: Message) -> None:
        self.raw(frame(BINARY, encode(message)))

    async def flushed(self) -> bool:
        """Whether all that was written could be handed over; False if the other side ended the connection."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.writer.drain()
        except (ConnectionError, ssl.SSLError):
            return False
        except TimeoutError:
            return True  # it does not read: that is its right
        return True

    async def frame(self) -> tuple[int, bytes]:
        """The next frame from the other side; (CLOSE, b"") when the connection ended instead."""
        try:
            async with asyncio.timeout(PATIENCE):
                first, second = await self.reader.readexactly(2)
                length = second & 127
                if length == 126:
                    (length,) = struct.unpack("!H", await self.reader.readexactly(2))
                elif length == 127:
                    (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
                return first & 15, await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return CLOSE, b""

    async def message(self) -> Message | None:
        """The next message, pings answered; None at the end."""
        while True:
            opcode, payload = await self.frame()
            if opcode == BINARY:
                return decode(payload)
            if opcode == PING:
                self.raw(frame(PONG, payload))
            if opcode == CLOSE:
                return None

    async def ended(self) -> tuple[int, str]:
        """Read until the other side has ended the link: close code and reason, 0 and "" without a goodbye."""
        said = (0, "")
        async with asyncio.timeout(PATIENCE):
            while True:
                opcode, payload = await self.frame()
                if opcode == CLOSE:
                    if payload:
                        said = (struct.unpack("!H", payload[:2])[0], payload[2:].decode())
                    return said

    async def gone(self) -> None:
        """Read until the connection is over."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while await self.reader.read(1 << 16):
                    pass

    async def close(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
