"""The transport's twin in memory and virtual time: real messages, real bounds, real pairing and redialling; only the
sockets are not real. `simulated_network` and `simulated_wires` say what is modelled below."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from hivenode.errors import NotFound, Unavailable
from hivenode.logs import get_logger
from hivenode.net.codec import ProtocolError, decode, encode
from hivenode.net.dialing import DialError
from hivenode.net.link import PROTOCOL_VERSIONS, Hello, encode_hello
from hivenode.net.messages import Keep, Message
from hivenode.net.pairing import Pairing, Verdict
from hivenode.net.pool import PoolLimits
from hivenode.net.reaching import Reaching
from hivenode.net.redial import DialLimits
from hivenode.net.simulated_network import Quality, SimulatedNetwork, Trace
from hivenode.net.simulated_wires import ConnectionEnded, End
from hivenode.net.transport import LinkEnd, TransportHandler, Use
from hivenode.spec.values import BlobRef
from hivenode.store.ports import BlobStore
from hivenode.tasks import TaskGroup

__all__ = ["FetchLimits", "Quality", "SimulatedNetwork", "SimulatedTransport", "Trace"]

log = get_logger("simulated")

_HELLO = msgspec.msgpack.Decoder(Hello)


@dataclass(frozen=True)
class FetchLimits:
    """Bounds of blob transfers."""

    chunk_bytes: int = 512 * 1024
    stall_seconds: float = 30.0
    tries: int = 5
    """In a row without a byte of progress."""
    retry_seconds: float = 0.5
    """Wait after a broken transfer, doubled for each one in a row."""


@dataclass(eq=False)
class _Link:
    peer: str
    address: str
    nonce: bytes
    peer_addresses: tuple[str, ...]
    end: End
    use: Use


class SimulatedTransport:
    """`Transport` over a `SimulatedNetwork`. One instance is one life of a process: it is started once.

    Args:
        host: the host it runs on.
        node, hive: what it proves to its peers.
        blobs: what it serves to them.
        rng: jitter of the backoff, and the names of links.
        build: version named to peers.
        max_links: live links at most; further ones are declined.
    """

    def __init__(
        self,
        network: SimulatedNetwork,
        host: str,
        node: str,
        hive: str,
        blobs: BlobStore,
        rng: random.Random,
        *,
        build: str = "simulated",
        limits: DialLimits | None = None,
        pool: PoolLimits | None = None,
        max_links: int = 256,
        fetching: FetchLimits | None = None,
    ) -> None:
        self.node = node
        self.hive = hive
        self.blobs = blobs
        self._network = network
        self._host = host
        self._rng = rng
        self._build = build
        self._limits = limits or DialLimits()
        self._max_links = max_links
        self._fetching = fetching or FetchLimits()
        self._instance = rng.randbytes(8)
        self._tasks = TaskGroup(self._task_failed)
        self._pairing = Pairing(node)
        self._live: dict[str, _Link] = {}
        self._uses: dict[str, Use] = {}
        self._pending: dict[str, asyncio.Task[bool]] = {}
        self._running = False
        self._addresses: tuple[str, ...] = ()
        self._reaching = Reaching(
            node,
            self._limits,
            pool or PoolLimits(),
            rng,
            self._tasks,
            links=self._live,
            uses=self._uses,
            dial=self._dial,
            send=self.send,
            drop=self.drop,
            tell=self._tell,
        )

    # --- Transport ----------------------------------------------------------------------------------------------

    @property
    def links(self) -> Sequence[str]:
        return sorted(peer for peer, use in self._uses.items() if use.announced)

    def reaches(self, peer: str) -> bool:
        return self._reaching.reaches(peer)

    async def start(self, handler: TransportHandler) -> tuple[str, ...]:
        """Raises Conflict when something listens on the host already."""
        self.context = contextvars.copy_context()
        self._handler = handler
        self._addresses = (self._network.listen(self._host, self),)
        self._running = True
        self._reaching.start()
        return self._addresses

    async def stop(self) -> None:
        if not self._running:
            return
        self._running = False
        self._reaching.stop()
        self._network.unlisten(self._host, self)
        for link in list(self._live.values()):
            self._down(link, LinkEnd.local)
        await self._tasks.close()

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
        if peer in self._live:
            self._down(self._live[peer], why)

    def send(self, peer: str, message: Message) -> bool:
        """As the real one does, it refuses a message that does not fit into a frame, and says so in the log."""
        link = self._live.get(peer)
        if link is None:
            return self._reaching.say(peer, message)
        link.use.at = self._network.now
        try:
            return link.end.send(encode(message), type(message).__name__)
        except ProtocolError as error:
            log.error("a message cannot be sent", peer=peer, reason=str(error))
            return False

    async def fetch(self, peer: str, ref: BlobRef, into: BlobStore) -> None:
        pause, tries = self._fetching.retry_seconds, 0
        while True:
            before = into.partial_size(ref.digest)
            try:
                await into.receive(ref, self._stream(peer, ref, into))
            except Unavailable:
                tries = 0 if into.partial_size(ref.digest) > before else tries + 1
                if tries >= self._fetching.tries or not self._running:
                    raise
                await asyncio.sleep(pause * 2.0**tries)
            else:
                self._network.note(f"{self._host} fetched {ref.digest[:12]} of {ref.size} B")
                return

    # --- dialling -----------------------------------------------------------------------------------------------

    async def _dial(self, expected: str, address: str, *, keep: bool, stalled: Callable[[], bytes | None]) -> bool:
        end: End | None = None
        linked = False
        failure: DialError | None = None
        try:
            async with asyncio.timeout(self._limits.attempt_seconds):
                end, peer = await self._network.connect(self._host, self, address)
                if expected and peer != expected:
                    raise DialError(LinkEnd.identity, f"node {peer} answered instead of {expected}")
                if not expected:
                    self._reaching.answered(address, peer)
                if peer == self.node:
                    return False
                linked = await self._introduce(end, peer, address, keep=keep, stalled=stalled)
        except TimeoutError:
            failure = DialError(LinkEnd.unreachable, "no answer in time")
        except ConnectionEnded as error:
            if error.why is not LinkEnd.closed:  # closed: declined in favour of the peer's own dial
                failure = DialError(error.why, "connection broken before the hello")
        except ProtocolError as error:
            failure = DialError(LinkEnd.protocol, str(error))
        except DialError as error:
            failure = error
        finally:
            if end is not None and not linked:
                end.close()
        if failure is not None and self._running:
            self._network.note(f"{self._host} dial {address} failed: {failure.why.value}")
            asyncio.get_running_loop().call_soon(
                self._handler.dial_failed, expected, address, failure.why, str(failure), context=self.context
            )
        return True

    async def _introduce(
        self, end: End, peer: str, address: str, *, keep: bool, stalled: Callable[[], bytes | None]
    ) -> bool:
        """Exchange hellos on a connection we opened. False if the peer is being linked on another one."""
        nonce = self._rng.randbytes(8)
        ended = self._pairing.begin(peer, nonce, stalled())
        if ended is None:
            return False
        task = asyncio.current_task()
        assert task is not None
        self._pending[peer] = task
        accepted = False
        try:
            end.send(encode_hello(self._hello(nonce, ended, keep=keep)), "hello")
            theirs = _read_hello(await end.first(), peer)
            if theirs.link != nonce:
                raise ProtocolError("the answer is to another hello")
            accepted = True
        finally:
            del self._pending[peer]
            if not accepted:
                self._pairing.failed(peer, nonce)
        if peer in self._live:
            self._down(self._live[peer], LinkEnd.reset)
        self._up(end, peer, address, theirs, dialled=True, said=keep)
        return True

    def accepted(self, end: End, peer: str, address: str) -> None:
        """The network's call: a peer has connected."""
        if self._running:
            self._tasks.spawn(self._welcome(end, peer, address), f"welcome {peer}")
        else:
            end.close(LinkEnd.reset)

    async def _welcome(self, end: End, peer: str, address: str) -> None:
        linked = False
        try:
            async with asyncio.timeout(self._limits.attempt_seconds):
                theirs = _read_hello(await end.first(), peer)
            if peer not in self._live and len(self._live) >= self._max_links and not self._reaching.pool.make_room():
                end.close(LinkEnd.reset)
                return
            verdict = self._pairing.heard(peer, theirs)
            if verdict is Verdict.decline or not self._running:
                return
            if verdict is Verdict.replace:
                self._down(self._live[peer], LinkEnd.reset)
            if peer in self._pending:
                self._pending[peer].cancel()
            keep = self._reaching.wants(peer)
            end.send(encode_hello(self._hello(theirs.link, (), keep=keep)), "hello")
            self._up(end, peer, address, theirs, dialled=False, said=keep)
            linked = True
        except (TimeoutError, ConnectionEnded, ProtocolError) as error:
            log.debug("a dial to us came to nothing", peer=peer, address=address, reason=repr(error))
        finally:
            if not linked:
                end.close()

    # --- links --------------------------------------------------------------------------------------------------

    def _hello(self, link: bytes, ended: tuple[bytes, ...], *, keep: bool) -> Hello:
        return Hello(
            node=self.node,
            hive=self.hive,
            oldest=PROTOCOL_VERSIONS[0],
            newest=PROTOCOL_VERSIONS[1],
            build=self._build,
            instance=self._instance,
            link=link,
            ended=ended,
            addresses=self._addresses,
            keep=keep,
        )

    def _up(self, end: End, peer: str, address: str, theirs: Hello, *, dialled: bool, said: bool) -> None:
        now = self._network.now
        use = self._uses[peer] = Use(dialled, theirs.keep, held=False, announced=False, since=now, at=now, heard=now)
        link = self._live[peer] = _Link(peer, address, theirs.link, theirs.addresses, end, use)
        self._pairing.up(peer, theirs.link, theirs.instance)
        self._network.note(f"{self._host} up {address}")
        self._reaching.up(peer, address, said)
        end.attach(lambda frame: self._take(link, frame), lambda why: self._down(link, why))

    def _tell(self, peer: str, up: bool, soon: bool) -> None:
        if up:
            call = partial(self._handler.link_up, peer, self._live[peer].address)
        else:
            call = partial(self._handler.link_down, peer, LinkEnd.idle)
        if soon:
            asyncio.get_running_loop().call_soon(call, context=self.context)
        else:
            call()

    def _take(self, link: _Link, frame: bytes) -> None:
        try:
            message = decode(frame)
        except ProtocolError as error:
            log.warning("link ended: the peer broke the protocol", peer=link.peer, reason=str(error))
            self._down(link, LinkEnd.protocol)
            return
        link.use.at = link.use.heard = self._network.now
        if isinstance(message, Keep):
            self._reaching.pool.heard(link.peer, message)
            return
        self._handler.received(link.peer, message)

    def _down(self, link: _Link, why: LinkEnd) -> None:
        link.end.close(LinkEnd.idle if why is LinkEnd.idle else LinkEnd.closed)
        if self._live.get(link.peer) is not link:
            return
        del self._live[link.peer], self._uses[link.peer]
        self._pairing.down(link.peer, link.nonce)
        self._network.note(f"{self._host} down {link.address} {why.value}")
        self._reaching.down(link.peer)
        if link.use.announced or why not in (LinkEnd.idle, LinkEnd.local):
            asyncio.get_running_loop().call_soon(self._handler.link_down, link.peer, why, context=self.context)

    # --- bulk ---------------------------------------------------------------------------------------------------

    async def _stream(self, peer: str, ref: BlobRef, into: BlobStore) -> AsyncIterator[bytes]:
        """A blob from where the last attempt broke off, in chunks, each taking its time."""
        here = self._network.host(self._host)
        there = self._network.listening(peer)
        if there is None or there.listener is None:
            raise Unavailable(f"Node {peer} does not listen anywhere.", fix="Start it.")
        serving, sent = there.listener, into.partial_size(ref.digest)
        try:
            async with asyncio.timeout(self._limits.attempt_seconds):
                for _ in range(3):
                    await self._network.hop(here, there)
                    await self._network.hop(there, here)
        except TimeoutError:
            raise Unavailable(f"Node {peer} cannot be reached.", fix="Check the network.") from None
        if not serving.blobs.has(ref.digest):
            raise NotFound(f"Node {peer} does not have blob {ref.digest[:12]}.", fix="Ask another node.")
        content = await serving.blobs.read(ref.digest, limit=ref.size)
        while sent < ref.size:
            chunk = content[sent : sent + self._fetching.chunk_bytes]
            try:
                async with asyncio.timeout(self._fetching.stall_seconds):
                    await self._network.hop(there, here, len(chunk))
            except TimeoutError:
                raise Unavailable(f"The transfer from {peer} has stalled.", fix="Check the network.") from None
            if there.listener is not serving:
                raise Unavailable(f"The transfer from {peer} broke off.", fix="Start it again.")
            sent += len(chunk)
            yield chunk

    def _task_failed(self, name: str, error: BaseException) -> None:
        asyncio.get_running_loop().call_exception_handler({"message": f"{name} failed", "exception": error})


def _read_hello(frame: bytes, peer: str) -> Hello:
    try:
        hello = _HELLO.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed hello: {error}") from error
    if hello.node != peer:
        raise ProtocolError(f"the hello is of node {hello.node}, the certificate of {peer}")
    return hello
