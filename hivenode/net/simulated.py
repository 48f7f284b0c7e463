"""The transport's twin in memory and virtual time: real messages, real bounds, real pairing and redialling; only the
sockets are not real. `simulated_wires` says what the network below models."""

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
from hivenode.net.pool import Pool, PoolLimits
from hivenode.net.redial import DialLimits, Wanted, keep_seed
from hivenode.net.simulated_wires import ConnectionEnded, End, Quality, SimulatedNetwork, Trace
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
        self._wanted: dict[str, tuple[Wanted, asyncio.Task[None] | None]] = {}
        self._refreshing: dict[str, asyncio.Task[None]] = {}
        self._seeds: dict[str, str] = {}
        self._lonely = asyncio.Event()
        self._lonely.set()
        self._running = False
        self._addresses: tuple[str, ...] = ()
        self._pool = Pool(
            pool or PoolLimits(),
            use_of=lambda: self._uses,
            wanted=lambda peer: peer in self._wanted,
            dial=lambda peer, address: self._attempt(peer, address, keep=False),
            send=self.send,
            close=lambda peer: self.drop(peer, LinkEnd.idle),
            tell=self._tell,
            spawn=self._tasks.spawn,
        )

    # --- Transport ----------------------------------------------------------------------------------------------

    @property
    def links(self) -> Sequence[str]:
        return sorted(peer for peer, use in self._uses.items() if use.announced)

    def reaches(self, peer: str) -> bool:
        return peer in self._live or (peer not in self._wanted and self._pool.knows(peer))

    async def start(self, handler: TransportHandler) -> tuple[str, ...]:
        """Raises Conflict when something listens on the host already."""
        self.context = contextvars.copy_context()
        self._handler = handler
        self._addresses = (self._network.listen(self._host, self),)
        self._running = True
        for peer, (wanted, _) in list(self._wanted.items()):
            self._wanted[peer] = (wanted, self._tasks.spawn(wanted.run(), f"dial {peer}"))
        for address in self._seeds:
            self._tasks.spawn(self._keep_seed(address), f"seed {address}")
        return self._addresses

    async def stop(self) -> None:
        if not self._running:
            return
        self._running = False
        self._pool.stop()
        self._network.unlisten(self._host, self)
        for link in list(self._live.values()):
            self._down(link, LinkEnd.local)
        await self._tasks.close()

    def want(self, peer: str, addresses: Sequence[str]) -> None:
        if peer == self.node:
            return
        if peer in self._wanted:
            self._wanted[peer][0].move(tuple(addresses))
            return

        async def dial(address: str) -> None:
            await self._attempt(peer, address, keep=True)

        wanted = Wanted(
            tuple(addresses), dial=dial, linked=lambda: peer in self._live, limits=self._limits, rng=self._rng
        )
        task = self._tasks.spawn(wanted.run(), f"dial {peer}") if self._running else None
        self._wanted[peer] = (wanted, task)
        self._pool.kept(peer)
        self._pool.want(peer)

    def know(self, peer: str, addresses: Sequence[str]) -> None:
        if peer != self.node:
            self._release(peer)
            self._pool.know(peer, tuple(addresses))

    def redial(self, peer: str) -> None:
        if peer in self._live:
            self._refresh(peer)
        elif peer in self._wanted:
            self._wanted[peer][0].hurry()
        elif self._running:
            self._pool.send(peer, None)

    def forget(self, peer: str) -> None:
        self._release(peer)
        self._pool.forget(peer)

    def _release(self, peer: str) -> None:
        """Keep a link to this peer no longer."""
        if peer not in self._wanted:
            return
        _, task = self._wanted.pop(peer)
        if task is not None:
            task.cancel()
        self._pool.want(peer)

    def seed(self, addresses: Sequence[str]) -> None:
        for address in addresses:
            if address not in self._seeds:
                self._seeds[address] = ""
                if self._running:
                    self._tasks.spawn(self._keep_seed(address), f"seed {address}")

    def drop(self, peer: str, why: LinkEnd) -> None:
        if peer in self._live:
            self._down(self._live[peer], why)

    def send(self, peer: str, message: Message) -> bool:
        """As the real one does, it refuses a message that does not fit into a frame, and says so in the log."""
        link = self._live.get(peer)
        if link is None:
            return self._running and peer not in self._wanted and self._pool.send(peer, message)
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

    async def _keep_seed(self, address: str) -> None:
        await keep_seed(
            lambda: self._attempt("", address, keep=True),
            lonely=self._lonely,
            reached=lambda: self._met(self._seeds.get(address, "")),
            limits=self._limits,
            rng=self._rng,
        )

    def _met(self, peer: str) -> bool:
        """Whether whoever answered at a seed need not be dialled there again: it is linked, or we are among others and
        know where it is."""
        return peer in self._live or (not self._lonely.is_set() and (peer in self._wanted or self._pool.knows(peer)))

    def _refresh(self, peer: str) -> None:
        """Dial afresh a peer whose link may be stalled."""
        link, now = self._live[peer], self._network.now
        if not self._running or peer in self._refreshing or now - link.use.since < self._limits.young_seconds:
            return

        def stalled() -> bytes | None:
            return link.nonce if link.use.heard <= now and self._live.get(peer) is link else None

        async def dial() -> None:
            try:
                known = self._wanted[peer][0].addresses if peer in self._wanted else self._pool.addresses(peer)
                for address in known:
                    if stalled() is not None:
                        await self._attempt(peer, address, keep=peer in self._wanted, stalled=stalled)
            finally:
                del self._refreshing[peer]

        self._refreshing[peer] = self._tasks.spawn(dial(), f"dial {peer} afresh")

    async def _attempt(
        self, expected: str, address: str, *, keep: bool, stalled: Callable[[], bytes | None] = lambda: None
    ) -> bool:
        """One dial. It has a task of its own so that it can give way to the peer's. False if it led to ourselves."""
        dial = self._dial(expected, address, keep=keep, stalled=stalled)
        task = self._tasks.spawn(dial, f"dial {expected or 'seed'} at {address}")
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        return task.cancelled() or task.exception() is not None or task.result()

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
                    self._seeds[address] = peer
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
            if peer not in self._live and len(self._live) >= self._max_links and not self._pool.make_room():
                end.close(LinkEnd.reset)
                return
            verdict = self._pairing.heard(peer, theirs)
            if verdict is Verdict.decline or not self._running:
                return
            if verdict is Verdict.replace:
                self._down(self._live[peer], LinkEnd.reset)
            if peer in self._pending:
                self._pending[peer].cancel()
            keep = peer in self._wanted
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
        link = self._live[peer] = _Link(peer, address, theirs.link, end, use)
        self._pairing.up(peer, theirs.link, theirs.instance)
        self._lonely.clear()
        if peer in self._wanted:
            self._wanted[peer][0].link_up(now, address)
        self._network.note(f"{self._host} up {address}")
        self._pool.up(peer, said=said)
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
            self._pool.heard(link.peer, message)
            return
        self._handler.received(link.peer, message)

    def _down(self, link: _Link, why: LinkEnd) -> None:
        link.end.close(LinkEnd.idle if why is LinkEnd.idle else LinkEnd.closed)
        if self._live.get(link.peer) is not link:
            return
        del self._live[link.peer], self._uses[link.peer]
        self._pairing.down(link.peer, link.nonce)
        if not self._live:
            self._lonely.set()
        loop = asyncio.get_running_loop()
        if link.peer in self._wanted:
            self._wanted[link.peer][0].link_down(loop.time())
        self._network.note(f"{self._host} down {link.address} {why.value}")
        if link.use.announced or why not in (LinkEnd.idle, LinkEnd.local):
            loop.call_soon(self._handler.link_down, link.peer, why, context=self.context)
        self._pool.down()

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
