"""The links of one node: how two nodes that have just connected come to have exactly one, and the table of them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from functools import partial

from aiohttp import web

from hivenode.logs import get_logger
from hivenode.net.codec import ProtocolError, encode
from hivenode.net.dialing import DialError
from hivenode.net.link import (
    CLOSE_DUPLICATE,
    CLOSE_VERSION,
    PROTOCOL_VERSIONS,
    Hello,
    Link,
    LinkLimits,
    Socket,
    encode_hello,
    incompatible,
    receive_hello,
    require_hello_of,
)
from hivenode.net.messages import PRIORITY, Certificate, Keep, Message
from hivenode.net.pairing import Pairing, Verdict
from hivenode.net.transport import LinkEnd, TransportHandler, Use

log = get_logger("links")


class Links:
    """Live links by peer, and the introductions that lead to them.

    Args:
        me: this node's id.
        build: its version, named to peers.
        wanted: whether we want a link to this peer kept up.
        on_up: called with peer and address of each new link and whether our hello asked for it to be kept.
        on_down: called with the peer of each link that ended, before the handler hears of it.
        on_keep: called with what a peer says of keeping its link.
        on_certificate: called with a link and the new certificate that its peer shows; raises ProtocolError.
    """

    def __init__(
        self,
        me: str,
        hive: str,
        build: str,
        limits: LinkLimits,
        *,
        wanted: Callable[[str], bool],
        on_up: Callable[[str, str, bool], None],
        on_down: Callable[[str], None],
        on_keep: Callable[[str, Keep], None],
        on_certificate: Callable[[Link, bytes], None],
    ) -> None:
        self._me = me
        self._hive = hive
        self._build = build
        self._limits = limits
        self._wanted = wanted
        self._on_up = on_up
        self._on_down = on_down
        self._on_keep = on_keep
        self._on_certificate = on_certificate
        self._instance = secrets.token_bytes(8)
        self._pairing = Pairing(me)
        self._pending: dict[str, asyncio.Task[object]] = {}
        self._encoded: tuple[Message, bytes] | None = None
        self.handler: TransportHandler | None = None
        self.on_offence: Callable[[str, str, str], None] = lambda peer, address, what: None
        """Called with peer, address and deed when a link has ended because the peer broke the protocol."""
        self.addresses: tuple[str, ...] = ()
        """What our hello says of where we can be dialled."""
        self.live: dict[str, Link] = {}
        self.uses: dict[str, Use] = {}
        """What each live link is for."""

    @property
    def announced(self) -> list[str]:
        """Those that the handler was told of, sorted."""
        return sorted(peer for peer, use in self.uses.items() if use.announced)

    def tell(self, peer: str, up: bool, soon: bool) -> None:
        """Tell the handler that a live link is kept from here on, or is not any more."""
        if self.handler is None:
            return
        if up:
            call = partial(self.handler.link_up, peer, self.live[peer].address)
        else:
            call = partial(self.handler.link_down, peer, LinkEnd.idle)
        if soon:
            asyncio.get_running_loop().call_soon(call)
        else:
            call()

    def send(self, peer: str, message: Message) -> bool:
        """Queue for a linked peer; False without a link, or when its queue is full."""
        link = self.live.get(peer)
        if link is None:
            return False
        if self._encoded is None or self._encoded[0] is not message:
            # Gossip is one object sent to many peers in a row: encode it once.
            try:
                self._encoded = (message, encode(message))
            except ProtocolError as error:
                log.error("a message cannot be sent", peer=peer, reason=str(error))
                return False
        return link.send(PRIORITY[type(message)], self._encoded[1])

    async def introduce(
        self, socket: Socket, peer: str, address: str, *, keep: bool, stalled: Callable[[], bytes | None]
    ) -> Link | None:
        """Exchange hellos on a connection we opened; the caller runs the link. None if the peer is being linked on
        another connection already.

        Args:
            keep: ask for a link that is kept up.
            stalled: the live link whose place this one takes; None if there is none.

        Raises:
            ProtocolError: the answer is not what it should be.
            LinkClosed: declined.
            DialError: the two builds cannot talk.
        """
        nonce = secrets.token_bytes(8)
        ended = self._pairing.begin(peer, nonce, stalled())
        if ended is None:
            return None
        task = asyncio.current_task()
        assert task is not None
        self._pending[peer] = task
        accepted = False
        try:
            ours = self._hello(nonce, ended, keep=keep)
            await socket.send_bytes(encode_hello(ours))
            theirs = await receive_hello(socket)
            require_hello_of(theirs, peer, self._hive)
            if theirs.link != nonce:
                raise ProtocolError("the answer is to another hello")
            if reason := incompatible(ours, theirs):
                log.error("incompatible node", peer=peer, address=address, reason=reason)
                raise DialError(LinkEnd.protocol, reason)
            accepted = True
        finally:
            del self._pending[peer]
            if not accepted:
                self._pairing.failed(peer, nonce)
        if peer in self.live:
            self.live[peer].end(LinkEnd.reset, "it was stalled, and a fresh one takes its place")
        return self._up(socket, peer, address, theirs, dialled=True, said=keep)

    async def welcome(self, socket: web.WebSocketResponse, peer: str, address: str) -> Link | tuple[int, str]:
        """Hear the hello of a peer that dialled us, decide, and answer: the link, for the caller to run, or close code
        and reason.

        Raises:
            ProtocolError, LinkClosed: as from `receive_hello`.
        """
        theirs = await receive_hello(socket)
        require_hello_of(theirs, peer, self._hive)
        ours = self._hello(theirs.link, (), keep=self._wanted(peer))
        if reason := incompatible(ours, theirs):
            log.error("incompatible node", peer=peer, address=address, reason=reason)
            await socket.send_bytes(encode_hello(ours))
            return CLOSE_VERSION, reason
        verdict = self._pairing.heard(peer, theirs)
        if verdict is Verdict.decline:
            return CLOSE_DUPLICATE, "there is a link, or about to be one"
        if verdict is Verdict.replace:
            self.live[peer].end(LinkEnd.reset, "the peer has lost it and dialled anew")
        if peer in self._pending:
            self._pending[peer].cancel()
        link = self._up(socket, peer, address, theirs, dialled=False, said=ours.keep)
        try:
            await socket.send_bytes(encode_hello(ours))
        except ConnectionError as error:
            link.end(LinkEnd.reset, repr(error))
        except BaseException:
            link.end(LinkEnd.reset, "the answer to the hello could not be sent")
            raise
        return link

    async def close(self, seconds: float) -> None:
        """Flush, say goodbye to everyone, and wait at most so long for it."""
        links = list(self.live.values())
        for link in links:
            link.end(LinkEnd.local, "stopping")
        try:
            async with asyncio.timeout(seconds):
                for link in links:
                    await link.done.wait()
        except TimeoutError:
            log.info("some peers did not take their goodbye")

    def _hello(self, link: bytes, ended: tuple[bytes, ...], *, keep: bool) -> Hello:
        oldest, newest = PROTOCOL_VERSIONS
        return Hello(
            node=self._me,
            hive=self._hive,
            oldest=oldest,
            newest=newest,
            build=self._build,
            instance=self._instance,
            link=link,
            ended=ended,
            addresses=self.addresses[:8],
            keep=keep,
        )

    def _up(self, socket: Socket, peer: str, address: str, theirs: Hello, *, dialled: bool, said: bool) -> Link:
        now = asyncio.get_running_loop().time()
        use = Use(dialled, theirs.keep, held=False, announced=False, since=now, at=now, heard=now)
        link = Link(
            socket,
            peer=peer,
            address=address,
            theirs=theirs,
            use=use,
            limits=self._limits,
            on_message=self._received,
            on_end=self._down,
        )
        self._pairing.up(peer, link.nonce, link.instance)
        self.live[peer] = link
        self.uses[peer] = use
        self._on_up(peer, address, said)
        return link

    def _received(self, link: Link, message: Message) -> None:
        link.use.at = link.use.heard = asyncio.get_running_loop().time()
        if isinstance(message, Keep):
            self._on_keep(link.peer, message)
            return
        if isinstance(message, Certificate):
            self._on_certificate(link, message.der)
            return
        if self.handler is None:
            return
        try:
            self.handler.received(link.peer, message)
        except Exception:
            log.exception("a message could not be handled", peer=link.peer, type=type(message).__name__)

    def _down(self, link: Link, why: LinkEnd, reason: str) -> None:
        log.debug("link ended", peer=link.peer, address=link.address, why=why.value, reason=reason)
        del self.live[link.peer], self.uses[link.peer]
        self._pairing.down(link.peer, link.nonce)
        self._on_down(link.peer)
        if why is LinkEnd.protocol:
            self.on_offence(link.peer, link.address, reason)
        if self.handler is not None and (link.use.announced or why not in (LinkEnd.idle, LinkEnd.local)):
            asyncio.get_running_loop().call_soon(self.handler.link_down, link.peer, why)
