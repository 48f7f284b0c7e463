"""Real transports on loopback, and a handler that remembers what it was told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hivenode.net.link import LinkLimits
from hivenode.net.messages import Message
from hivenode.net.peers import PeerTransport, TransportLimits
from hivenode.net.redial import DialLimits
from hivenode.net.transport import LinkEnd
from hivenode.spec.values import Role
from hivenode.store.blobs import FileBlobs
from hivenode.tasks import Signal
from hivenode.trust.authority import Authority
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity

AUTHORITY = Authority.from_seed(b"tests")
STRANGERS = Authority.from_seed(b"somebody else")
PATIENCE = 20.0
"""Seconds until a test that waits for something gives up."""
FAST = TransportLimits(
    link=LinkLimits(goodbye_seconds=0.5),
    dial=DialLimits(backoff_seconds=0.02, backoff_cap_seconds=0.2, attempt_seconds=5.0),
)


def credentials_of(number: int, authority: Authority = AUTHORITY, now: datetime | None = None) -> Credentials:
    identity = Identity.from_seed(f"node {number}".encode())
    return Credentials(
        identity=identity,
        hive_id=authority.hive_id,
        authority_pem=authority.certificate_pem,
        authority_key=authority.public_key,
        certificate_pem=authority.certify(identity.public_key, now=now or datetime.now(UTC)),
        grant=authority.grant(identity.public_key, f"n{number}", tuple(Role), serial=1),
        authority=None,
    )


class Recorder:
    """A transport handler: what happened, in order."""

    def __init__(self) -> None:
        self.happened: list[tuple[Any, ...]] = []
        self._changed = Signal()

    def link_up(self, peer: str, address: str) -> None:
        self._note("up", peer)

    def link_down(self, peer: str, why: LinkEnd) -> None:
        self._note("down", peer, why)

    def dial_failed(self, peer: str, address: str, why: LinkEnd, detail: str) -> None:
        self._note("failed", peer, address, why, detail)

    def received(self, peer: str, message: Message) -> None:
        self._note("message", peer, message)

    def _note(self, *what: Any) -> None:
        self.happened.append(what)
        self._changed.notify()

    def all(self, kind: str) -> list[tuple[Any, ...]]:
        return [what[1:] for what in self.happened if what[0] == kind]

    @property
    def messages(self) -> list[Message]:
        return [message for _, message in self.all("message")]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that happened makes the condition true."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await self._changed.wait()

    async def one(self, kind: str, count: int = 1) -> tuple[Any, ...]:
        """The `count`-th of a kind, waited for."""
        await self.until(lambda: len(self.all(kind)) >= count)
        return self.all(kind)[count - 1]


class Node:
    """A transport that is up, with its store and its handler."""

    def __init__(self, transport: PeerTransport, blobs: FileBlobs, handler: Recorder, host: str) -> None:
        self.transport = transport
        self.blobs = blobs
        self.handler = handler
        self.id = transport.id
        self.host = host

    @property
    def address(self) -> str:
        return f"{self.host}:{self.transport.port}"

    def want(self, other: Node) -> None:
        self.transport.want(other.id, (other.address,))


@asynccontextmanager
async def node(
    number: int,
    directory: Path,
    *,
    authority: Authority = AUTHORITY,
    credentials: Credentials | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: TransportLimits = FAST,
    **options: Any,
) -> AsyncIterator[Node]:
    blobs = FileBlobs(directory / f"blobs-{number}-{host}")
    handler = Recorder()
    transport = PeerTransport(
        credentials or credentials_of(number, authority),
        host,
        port,
        (),
        blobs,
        random.Random(number),
        "0.0.test",
        limits=limits,
        **options,
    )
    await transport.start(handler)
    try:
        yield Node(transport, blobs, handler, host)
    finally:
        await transport.stop()


def with_limits(**parts: Any) -> TransportLimits:
    return replace(FAST, **parts)


async def linked(a: Node, b: Node) -> None:
    """Link two nodes and wait until both know it."""
    a.want(b)
    await a.handler.until(lambda: b.id in a.transport.links)
    await b.handler.until(lambda: a.id in b.transport.links)


def pair_by_id(a: Node, b: Node) -> tuple[Node, Node]:
    """The node with the smaller id first."""
    return (a, b) if a.id < b.id else (b, a)
