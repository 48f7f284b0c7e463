"""The real transport: one verified websocket per pair of nodes, kept up for as long as it is wanted."""

from __future__ import annotations

import asyncio
import random
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from hivenode.errors import Refused, Unavailable
from hivenode.logs import get_logger
from hivenode.net.addresses import is_loopback, join_address, split_address
from hivenode.net.bulk import BULK_PATH, BulkClient, BulkLimits, BulkServer
from hivenode.net.codec import ProtocolError
from hivenode.net.conduct import Conduct
from hivenode.net.dialing import LINK_PATH, REASON_HEADER, Dialer, DialError, explain
from hivenode.net.discovery import choose_addresses, interfaces
from hivenode.net.door import PAPER, Door, appeal
from hivenode.net.http_log import sparing_logger
from hivenode.net.link import (
    CLOSE_DUPLICATE,
    CLOSE_GOODBYE,
    CLOSE_PROTOCOL,
    CLOSE_VERSION,
    MAX_WEBSOCKET_MESSAGE,
    PROTOCOL_VERSIONS,
    Link,
    LinkClosed,
    LinkLimits,
    Socket,
    close_socket,
)
from hivenode.net.links import Links
from hivenode.net.listener import Listener, ListenLimits, bind
from hivenode.net.messages import PROTOCOL, Certificate, Message
from hivenode.net.pool import PoolLimits
from hivenode.net.probing import BUILD_HEADER, PROTOCOLS_HEADER, Probe, probe
from hivenode.net.reaching import Reaching
from hivenode.net.redial import DialLimits
from hivenode.net.transport import LinkEnd, Refusal, Refusing, TransportHandler
from hivenode.spec.values import BlobRef
from hivenode.store.ports import BlobStore
from hivenode.tasks import TaskGroup
from hivenode.trust.certificates import read_signed
from hivenode.trust.credentials import Credentials

log = get_logger("peers")

MAX_BODY = 8 * 1024
TLS_READ_BYTES = 64 * 1024
"""asyncio gives each TLS connection a buffer to read into, and zeroes all of it: with its 256 KiB, 200 links take
50 MB."""
WATCH_SECONDS = 5.0
"""Longest wait between two looks at which links have outlived their certificates."""


@dataclass(frozen=True)
class TransportLimits:
    """Every bound of the transport; see the parts."""

    link: LinkLimits = field(default_factory=LinkLimits)
    listen: ListenLimits = field(default_factory=ListenLimits)
    bulk: BulkLimits = field(default_factory=BulkLimits)
    dial: DialLimits = field(default_factory=DialLimits)
    pool: PoolLimits = field(default_factory=PoolLimits)
    links: int = 256
    """Links at most; further ones are declined."""
    stop_seconds: float = 3.0
    """For the goodbyes to all peers."""


class PeerTransport:
    """`Transport` over TLS.

    Args:
        credentials: key, certificate and hive.
        listen_host: address to listen on; "" is all.
        port: 0 takes a free one.
        advertise: addresses others may dial; empty takes those of the interfaces.
        blobs: what this node serves to its peers.
        rng: jitter of the backoff.
        build_version: named to peers, for messages about incompatible builds.
        routes: adds routes under /join, open to those without a certificate.
        allowed: asked for every authenticated peer; False (revoked, expelled) refuses it.
        on_offence: told of every peer that broke the protocol: its id, address, and what it did.
        wall: seconds since 1970.
        on_refused: told of everybody who came to us and was turned away.
        certify: makes a new certificate for a member that asks, or refuses (HiveError).
    """

    def __init__(
        self,
        credentials: Credentials,
        listen_host: str,
        port: int,
        advertise: Sequence[str],
        blobs: BlobStore,
        rng: random.Random,
        build_version: str,
        routes: Callable[[web.Application], None] | None = None,
        *,
        allowed: Callable[[str], bool] = lambda peer: True,
        on_offence: Callable[[str, str, str], None] = lambda peer, address, what: None,
        wall: Callable[[], float] = time.time,
        on_refused: Callable[[Refusal], None] = lambda refusal: None,
        certify: Callable[[str], Awaitable[str]] | None = None,
        limits: TransportLimits | None = None,
    ) -> None:
        self.id = credentials.identity.node_id
        self.port = port
        self._hive = credentials.hive_id
        self._build = build_version
        self._credentials = credentials
        self._listen_host = listen_host
        self._advertise = tuple(advertise)
        self._blobs = blobs
        self._rng = rng
        self._routes = routes
        self._allowed = allowed
        self._wall = wall
        self._on_refused = on_refused
        self._door = Door(
            self.id,
            self._hive,
            allowed=allowed,
            wall=wall,
            on_refused=on_refused,
            certify=certify or _certifies_nobody,
        )
        self._limits = limits or TransportLimits()
        self._tasks = TaskGroup(_task_failed)
        self._dials = TaskGroup(_task_failed)
        self._links = Links(
            self.id,
            self._hive,
            build_version,
            self._limits.link,
            wanted=lambda peer: self._reaching.wants(peer),
            on_up=lambda peer, address, said: self._reaching.up(peer, address, said),
            on_down=lambda peer: self._reaching.down(peer),
            on_keep=lambda peer, keep: self._reaching.pool.heard(peer, keep),
            on_certificate=self._vouched_anew,
        )
        self._reaching = Reaching(
            self.id,
            self._limits.dial,
            self._limits.pool,
            rng,
            self._dials,
            links=self._links.live,
            uses=self._links.uses,
            dial=self._dial,
            send=self._links.send,
            drop=self.drop,
            tell=self._links.tell,
        )
        self._links.on_offence = self._offended
        self._on_offence = on_offence
        self._conduct = Conduct()
        self._running = False

    # --- Transport ------------------------------------------------------------------------------------------------

    @property
    def links(self) -> Sequence[str]:
        return self._links.announced

    def reaches(self, peer: str) -> bool:
        return self._reaching.reaches(peer)

    async def start(self, handler: TransportHandler) -> tuple[str, ...]:
        """Raises Conflict when the port is taken, InvalidInput when the host is none of this machine's."""
        SSLProtocol.max_size = TLS_READ_BYTES
        sockets = bind(self._listen_host, self.port)
        self.port = int(sockets[0].getsockname()[1])
        self._context = self._credentials.server_context()
        self._dialer = Dialer(self._credentials, self._limits.link, self._wall)
        self._bulk_server = BulkServer(self._blobs, self._limits.bulk)
        self._bulk_client = BulkClient(self._dialer, self._reaching.addresses, self._limits.bulk, self._rng)
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=sparing_logger("hive"),
            keepalive_timeout=self._limits.listen.handshake_seconds,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self._listener = Listener(
            self._runner.server,
            lambda: self._context,
            self.id,
            self._hive,
            self._limits.listen,
            self._tasks,
            self._wall,
            self._on_refused,
        )
        addresses = self._advertise or choose_addresses(interfaces(), self._listen_host, self.port)
        reachable = self._advertise or is_loopback(self._listen_host)
        if not reachable and all(is_loopback(split_address(address)[0]) for address in addresses):
            log.warning(
                "no address that others could dial", fix="Connect the machine, or set network.advertise; then restart."
            )
        self._links.handler = self._handler = handler
        self._links.addresses = addresses
        self._listener.start(sockets)
        self._running = True
        self._tasks.spawn(self._watch_certificates(), "certificates: watch")
        self._reaching.start()
        return addresses

    async def stop(self) -> None:
        if not self._running:
            return
        self._running = False
        self._reaching.stop()
        await self._dials.close()  # first: a link that ends is dialled again
        await self._listener.close()
        await self._links.close(self._limits.stop_seconds)
        await self._tasks.close()
        await self._runner.cleanup()
        await self._dialer.close()
        self._bulk_server.close()

    def want(self, peer: str, addresses: Sequence[str]) -> None:
        self._reaching.want(peer, addresses)

    def know(self, peer: str, addresses: Sequence[str]) -> None:
        self._reaching.know(peer, addresses)

    def redial(self, peer: str) -> None:
        self._reaching.redial(peer)

    def forget(self, peer: str) -> None:
        self._reaching.forget(peer)

    def seed(self, addresses: Sequence[str]) -> None:
        self._reaching.seed(addresses)

    def drop(self, peer: str, why: LinkEnd) -> None:
        if peer in self._links.live:
            self._links.live[peer].end(why, "dropped")

    def send(self, peer: str, message: Message) -> bool:
        if peer in self._links.live:
            return self._links.send(peer, message)
        return self._reaching.say(peer, message)

    async def fetch(self, peer: str, ref: BlobRef, into: BlobStore) -> None:
        if not self._running:
            raise Unavailable("The network is not up.", fix="Wait until the node has started.")
        await self._bulk_client.fetch(peer, ref, into)

    async def probe(self, peer: str, address: str, wall: Callable[[], float]) -> Probe:
        """Find out whether and how a node, this one included, can be reached at an address. `wall`: seconds since
        1970."""
        if not self._running:
            raise Unavailable("The network is not up.", fix="Wait until the node has started.")
        return await probe(self._dialer, address, peer, wall)

    def renew(self, credentials: Credentials) -> None:
        """Show a new certificate on connections from here on, and to those who are linked: links that are up stay."""
        self._credentials = credentials
        if self._running:
            self._context = credentials.server_context()
            self._dialer.renew(credentials)
            shown = Certificate(der=credentials.certificate_der)
            for peer in self.links:
                self._links.send(peer, shown)

    async def appeal(self, peer: str, address: str) -> str:
        """Ask a node without a link for a new certificate; see `door.appeal`."""
        if not self._running:
            raise Unavailable("The network is not up.", fix="Wait until the node has started.")
        return await appeal(self._dialer, address, peer)

    # --- certificates ---------------------------------------------------------------------------------------------

    async def _watch_certificates(self) -> None:
        """No link outlives the certificate its peer has shown last."""
        while True:
            now = self._wall()
            ends = [link.good_until for link in self._links.live.values()]
            for link in [link for link in self._links.live.values() if link.good_until <= now]:
                log.warning("link ended: the peer's certificate has expired", peer=link.peer, address=link.address)
                link.end(LinkEnd.identity, "your certificate has expired")
            coming = min((end - now for end in ends if end > now), default=WATCH_SECONDS)
            await asyncio.sleep(min(WATCH_SECONDS, max(0.05, coming)))

    def _vouched_anew(self, link: Link, der: bytes) -> None:
        """A linked peer shows its new certificate: the key is the one it proved in the handshake, so nothing else has
        to be proved again."""
        try:
            paper = read_signed(der, self._hive, self._credentials.authority_pem)
            if paper.node != link.peer:
                raise Refused(f"It is for node {paper.node}.", fix="It has to show its own.")
        except Refused as error:
            raise ProtocolError(f"the new certificate shown is no good: {error.sentence}") from error
        link.good_until = max(link.good_until, paper.ends)

    # --- dialling -------------------------------------------------------------------------------------------------

    async def _dial(self, expected: str, address: str, *, keep: bool, stalled: Callable[[], bytes | None]) -> bool:
        if self._conduct.kept_out(expected, asyncio.get_running_loop().time()):
            return True
        socket: Socket | None = None
        link: Link | None = None
        failure: DialError | None = None
        code = CLOSE_GOODBYE
        try:
            async with asyncio.timeout(self._limits.dial.attempt_seconds):
                socket, paper = await self._dialer.link(address, expected)
                peer = paper.node
                if not expected:
                    self._reaching.answered(address, peer)
                if peer == self.id:
                    return False
                if not self._allowed(peer):
                    raise DialError(LinkEnd.identity, f"node {peer} is not a member any more")
                link = await self._links.introduce(socket, peer, address, keep=keep, stalled=stalled)
                if link is not None:
                    link.good_until = paper.ends
        except LinkClosed as error:
            if error.code != CLOSE_DUPLICATE:  # declined in favour of the peer's own dial: no failure
                failure = DialError(error.why, str(error))
        except ProtocolError as error:
            code = CLOSE_PROTOCOL
            failure = DialError(LinkEnd.protocol, str(error))
        except (DialError, TimeoutError, ConnectionError, aiohttp.ClientError) as error:
            failure = explain(error)
        finally:
            if link is not None:
                self._tasks.spawn(link.run(), f"link {link.peer}")
            elif socket is not None:
                await close_socket(socket, code, str(failure or ""), self._limits.link.goodbye_seconds)
        if failure is not None:
            self._failed(expected, address, failure)
        return True

    def _failed(self, expected: str, address: str, failure: DialError) -> None:
        level = log.warning if failure.why in (LinkEnd.identity, LinkEnd.protocol) else log.debug
        level("dial failed", peer=expected or "seed", address=address, why=failure.why.value, reason=str(failure))
        asyncio.get_running_loop().call_soon(self._handler.dial_failed, expected, address, failure.why, str(failure))

    # --- being dialled --------------------------------------------------------------------------------------------

    def _application(self) -> web.Application:
        async def bulk(request: web.Request) -> web.StreamResponse:
            return await self._bulk_server.serve(request, request[PAPER].node)

        app = self._door.application(MAX_BODY)
        app.router.add_get(LINK_PATH, self._accept)
        app.router.add_get(BULK_PATH + "{digest}", bulk)
        if self._routes is not None:
            self._routes(app)
        return app

    async def _accept(self, request: web.Request) -> web.StreamResponse:
        """A peer dials us."""
        peer = request[PAPER].node
        remote = request.transport.get_extra_info("peername") if request.transport else None
        address = join_address(str(remote[0]), int(remote[1])) if remote else ""
        if PROTOCOL not in request.headers.get("Sec-WebSocket-Protocol", ""):
            reason = f"This node speaks {PROTOCOL}."
            oldest, newest = PROTOCOL_VERSIONS
            raise web.HTTPUpgradeRequired(
                text=reason,
                headers={
                    REASON_HEADER: reason,
                    BUILD_HEADER: self._build,
                    PROTOCOLS_HEADER: f"{oldest}-{newest}",
                },
            )
        full = peer not in self._links.live and len(self._links.live) >= self._limits.links
        if not self._running or (full and not self._reaching.pool.make_room()):
            raise web.HTTPServiceUnavailable(headers={REASON_HEADER: "It takes no more links now."})
        if seconds := self._conduct.kept_out(peer, asyncio.get_running_loop().time()):
            reason = f"It broke the protocol and may try again in {seconds:.0f} s."
            raise web.HTTPServiceUnavailable(headers={REASON_HEADER: reason})
        socket = web.WebSocketResponse(
            protocols=(PROTOCOL,),
            max_msg_size=MAX_WEBSOCKET_MESSAGE,
            heartbeat=self._limits.link.heartbeat_seconds,
            autoping=False,
            timeout=self._limits.link.goodbye_seconds,
            autoclose=False,
            compress=False,
        )
        await socket.prepare(request)
        answer: Link | tuple[int, str] = (CLOSE_GOODBYE, "no hello")
        try:
            async with asyncio.timeout(self._limits.listen.handshake_seconds):
                answer = await self._links.welcome(socket, peer, address)
        except ProtocolError as error:
            log.warning("a peer broke the protocol", peer=peer, address=address, reason=str(error))
            self._offended(peer, address, str(error))
            answer = (CLOSE_PROTOCOL, str(error))
        except (TimeoutError, LinkClosed, ConnectionError) as error:
            log.debug("a dial to us came to nothing", peer=peer, address=address, reason=str(error))
        if isinstance(answer, Link):
            answer.good_until = request[PAPER].ends
            await answer.run()
        else:
            if answer[0] == CLOSE_VERSION:
                host = str(remote[0]) if remote else ""
                self._on_refused(Refusal(peer, host, Refusing.version, answer[1]))
            await close_socket(socket, *answer, self._limits.link.goodbye_seconds)
        return socket

    def _offended(self, peer: str, address: str, what: str) -> None:
        self._conduct.strike(peer, asyncio.get_running_loop().time())
        self._on_offence(peer, address, what)


async def _certifies_nobody(peer: str) -> str:
    raise Unavailable("This node makes no certificates.", fix="Ask a member with the admin role.")


def _task_failed(name: str, error: BaseException) -> None:
    log.error("internal error", task=name, reason=repr(error), exc_info=error)
