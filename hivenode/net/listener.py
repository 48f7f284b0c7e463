"""Accepting connections, with bounds that hold before anybody has proved who they are.

Sockets are accepted here rather than by the web server, because a bound on TLS handshakes must count connections on
which the web server has not heard anything yet.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from aiohttp import web

from hivenode.errors import Conflict, InvalidInput, Refused
from hivenode.logs import get_logger
from hivenode.net.dialing import X509_FOREIGN, certificate_trouble, shown_by
from hivenode.net.transport import Refusal, Refusing
from hivenode.tasks import TaskGroup

log = get_logger("listener")

BACKLOG = 256
_SOUGHT: ContextVar[list[str]] = ContextVar("sought")
"""Whom the client of the handshake under way expects here."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that ends a connection at once."""


@dataclass(frozen=True)
class ListenLimits:
    """Bounds of the port."""

    unauthenticated: int = 40
    """Connections of which no certificate has been seen yet. Each costs 100 KB, most of it asyncio's TLS buffer."""
    unauthenticated_per_address: int = 8
    authenticated: int = 512
    authenticated_per_peer: int = 16
    handshake_seconds: float = 5.0
    """For the TLS handshake, then again for the first request's headers."""
    anonymous_seconds: float = 20.0
    """Lifetime of a connection without a certificate (joining)."""


class Gate:
    """Counts connections per key, and in all."""

    def __init__(self, total: int, per_key: int) -> None:
        self._total = total
        self._per_key = per_key
        self._counts: Counter[str] = Counter()

    def enter(self, key: str) -> bool:
        """Count one more; False, and nothing counted, if that is too many."""
        if self._counts.total() >= self._total or self._counts[key] >= self._per_key:
            return False
        self._counts[key] += 1
        return True

    def leave(self, key: str) -> None:
        self._counts[key] -= 1
        if self._counts[key] <= 0:
            del self._counts[key]

    def __len__(self) -> int:
        return self._counts.total()


class Watched(asyncio.Protocol):
    """The web server's protocol, plus word of the connection's end."""

    def __init__(self, inner: asyncio.Protocol, lost: Callable[[], None]) -> None:
        self._inner = inner
        self._lost = lost
        self.data_received = inner.data_received  # type: ignore[method-assign]
        self.eof_received = inner.eof_received  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)
        self._lost()


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of `host`; "" is all of IPv4 and IPv6. Port 0 takes a free one.

    Raises:
        Conflict: the port is taken.
        InvalidInput: the host is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise InvalidInput(
            f"{host!r} is not an address to listen on: {error.strerror}.",
            fix="Set network.listen to one of this machine's.",
        ) from error
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                sockets.append(_listening(family, kind, protocol, (address[0], port, *address[2:]), dual=host == "::"))
            except OSError as error:
                # A system without IPv6 still names the address.
                absent = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                if host or family != socket.AF_INET6 or not absent:
                    raise
            else:
                port = int(sockets[0].getsockname()[1])
    except OSError as error:
        for opened in sockets:
            opened.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"Port {port} is taken by another program.",
                fix=f"Stop it (ss -ltnp 'sport = :{port}' names it), or set network.port to a free one.",
            ) from error
        if error.errno == errno.EACCES:
            raise Conflict(
                f"Port {port} is not for ordinary users.", fix="Set network.port to one above 1023."
            ) from error
        raise InvalidInput(
            f"This machine cannot listen on {host!r}: {error.strerror}.",
            fix="Set network.listen to one of its addresses.",
        ) from error
    return sockets


def _listening(family: int, kind: int, protocol: int, address: tuple[str | int, ...], *, dual: bool) -> socket.socket:
    """Args: dual: on IPv6, whether it takes IPv4 connections too."""
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


class Listener:
    """Feeds accepted and TLS-wrapped connections to a web server.

    Args:
        server: makes one protocol per connection.
        context: the TLS context for new connections.
        me, hive_id: ids of this node and of its hive.
        tasks: owns the accepting.
        wall: seconds since 1970.
        on_refused: told of everybody who was turned away for what they showed.
    """

    def __init__(
        self,
        server: web.Server,
        context: Callable[[], ssl.SSLContext],
        me: str,
        hive_id: str,
        limits: ListenLimits,
        tasks: TaskGroup,
        wall: Callable[[], float],
        on_refused: Callable[[Refusal], None],
    ) -> None:
        self._wall = wall
        self._on_refused = on_refused
        self._server = server
        self._context = context
        self._me = me
        self._hive = hive_id
        self._limits = limits
        self._tasks = tasks
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._anonymous = Gate(limits.unauthenticated, limits.unauthenticated_per_address)
        self._known = Gate(limits.authenticated, limits.authenticated_per_peer)
        self.refused = 0
        """Connections turned away because a bound was reached."""

    def start(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self._accepting = [self._tasks.spawn(self._accept(one), "listener: accept") for one in sockets]

    async def close(self) -> None:
        """Stop listening. Connections that are there stay."""
        # In this order: the loop must have let go of a socket before its number can be used again.
        for accepting in self._accepting:
            accepting.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listening in self._sockets:
            listening.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.error("no connection can be accepted now", reason=error.strerror)
                await asyncio.sleep(1.0)
                continue
            host = str(address[0])
            if not self._anonymous.enter(host):
                self._turn_away(host)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                connection.close()
                continue
            self._tasks.spawn(self._handshake(connection, host), f"listener: handshake with {host}")

    async def _handshake(self, connection: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        lost = asyncio.Event()
        sought: list[str] = []
        _SOUGHT.set(sought)
        context = self._context()
        context.sni_callback = _note_sought
        try:
            try:
                transport, _ = await loop.connect_accepted_socket(
                    lambda: Watched(self._server(), lost.set),
                    connection,
                    ssl=context,
                    ssl_handshake_timeout=self._limits.handshake_seconds,
                    ssl_shutdown_timeout=1.0,
                )
            except ssl.SSLError as error:
                log.warning("connection refused during TLS", address=host, reason=certificate_trouble(error))
                if refusal := _refusal(error, host):
                    self._on_refused(refusal)
                self._not_us(host, sought)
                return
            except (OSError, TimeoutError) as error:
                log.info("a connection ended during the handshake", address=host, reason=str(error))
                self._not_us(host, sought)
                return
            secured = transport.get_extra_info("ssl_object")
            if secured.getpeercert(True) is None:
                await self._stay_anonymous(transport, lost)
                return
        finally:
            self._anonymous.leave(host)
        await self._admit(transport, secured, host, lost)

    def _not_us(self, host: str, sought: list[str]) -> None:
        """A dialler that looked for somebody else found us out and broke off: its alert does not always arrive."""
        for name in sought:
            if len(name) == len(self._hive) and name not in (self._hive, self._me):
                self._on_refused(Refusal("", host, Refusing.hive, f"it looks for hive or node {name} here"))

    async def _stay_anonymous(self, transport: asyncio.BaseTransport, lost: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._limits.anonymous_seconds):
                await lost.wait()
        except TimeoutError:
            _abort(transport)

    async def _admit(
        self, transport: asyncio.BaseTransport, secured: ssl.SSLObject, host: str, lost: asyncio.Event
    ) -> None:
        try:
            paper = shown_by(secured, self._hive)
        except Refused as error:
            log.warning("connection refused", address=host, reason=error.sentence)
            self._on_refused(Refusal("", host, Refusing.identity, error.sentence))
            _abort(transport)
            return
        if not self._known.enter(paper.node):
            self._turn_away(paper.node)
            _abort(transport)
            return
        try:
            if paper.trouble(self._wall()):
                # It is told so, and may ask for a new certificate; that does not take long.
                await self._stay_anonymous(transport, lost)
            else:
                await lost.wait()
        finally:
            self._known.leave(paper.node)

    def _turn_away(self, who: str) -> None:
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:  # at 1, 2, 4, 8 ...: a flood must not fill the log
            log.warning("too many connections", source=who, turned_away=self.refused)


def _note_sought(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
    sought = _SOUGHT.get(None)
    if name and sought is not None and not sought:
        sought.append(name[:64])


def _refusal(error: ssl.SSLError, host: str) -> Refusal | None:
    """What a failed handshake says about who came, if it was a node at all."""
    if isinstance(error, ssl.SSLCertVerificationError):
        foreign = error.verify_code in X509_FOREIGN
        detail = "its certificate is of another hive" if foreign else certificate_trouble(error)
        return Refusal("", host, Refusing.hive if foreign else Refusing.identity, detail)
    return None


def _abort(transport: asyncio.BaseTransport) -> None:
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()
