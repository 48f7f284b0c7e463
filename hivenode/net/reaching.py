"""Whom a node wants links to, whom it may dial, and the dialling: what both transports have in common."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from hivenode.logs import get_logger
from hivenode.net.messages import Message
from hivenode.net.pool import Pool, PoolLimits
from hivenode.net.redial import DialLimits, Wanted, keep_seed
from hivenode.net.transport import LinkEnd, Use
from hivenode.tasks import TaskGroup

log = get_logger("peers")

MAX_SEEDS = 256
"""As many as `network.seeds` takes."""


class Linked(Protocol):
    """A live link."""

    nonce: bytes
    use: Use
    peer_addresses: tuple[str, ...]
    """Where the peer says that it can be dialled."""


class Dial(Protocol):
    def __call__(
        self, expected: str, address: str, *, keep: bool, stalled: Callable[[], bytes | None]
    ) -> Coroutine[Any, Any, bool]:
        """One dial, which reports its own failure. False if it led to ourselves.

        Args:
            expected: the node that should answer; "" at a seed.
            keep: whether we want the link kept up.
            stalled: the nonce of the link that it is to take the place of, if any.
        """
        ...


class Reaching:
    """The part of `Transport` that decides whom to dial when.

    Args:
        links: the live ones by peer; `uses`: what each is for.
        rng: jitter of the backoff.
        dials: where dials run; ended by the caller, after `stop`.
        send, drop, tell: of the transport, see `Pool`.
    """

    def __init__(
        self,
        me: str,
        limits: DialLimits,
        pool: PoolLimits,
        rng: random.Random,
        dials: TaskGroup,
        *,
        links: Mapping[str, Linked],
        uses: Mapping[str, Use],
        dial: Dial,
        send: Callable[[str, Message], bool],
        drop: Callable[[str, LinkEnd], None],
        tell: Callable[[str, bool, bool], None],
    ) -> None:
        self._me = me
        self._limits = limits
        self._rng = rng
        self._dials = dials
        self._links = links
        self._dial = dial
        self._wanted: dict[str, tuple[Wanted, asyncio.Task[None] | None]] = {}
        self._refreshing: dict[str, asyncio.Task[None]] = {}
        """Dials that are to take the place of a link."""
        self._seeds: dict[str, str] = {}
        """Who last answered at each seed address."""
        self._lonely = asyncio.Event()
        self._lonely.set()
        self._running = False
        self.pool = Pool(
            pool,
            use_of=lambda: uses,
            wanted=self.wants,
            dial=lambda peer, address: self._attempt(peer, address, keep=False),
            send=send,
            close=lambda peer: drop(peer, LinkEnd.idle),
            tell=tell,
            spawn=dials.spawn,
        )

    def start(self) -> None:
        self._running = True
        for peer, (wanted, _) in list(self._wanted.items()):
            self._wanted[peer] = (wanted, self._dials.spawn(wanted.run(), f"dial {peer}"))
        for address in self._seeds:
            self._dials.spawn(self._keep_seed(address), f"seed {address}")

    def stop(self) -> None:
        self._running = False
        self.pool.stop()

    # --- whom -----------------------------------------------------------------------------------------------------

    def wants(self, peer: str) -> bool:
        return peer in self._wanted

    def reaches(self, peer: str) -> bool:
        return peer in self._links or (peer not in self._wanted and self.pool.knows(peer))

    def addresses(self, peer: str) -> tuple[str, ...]:
        """Where a peer may be reached, best first."""
        known = self._wanted[peer][0].addresses if peer in self._wanted else self.pool.addresses(peer)
        said = self._links[peer].peer_addresses if peer in self._links else ()
        return tuple(dict.fromkeys((*known, *said)))

    def want(self, peer: str, addresses: Sequence[str]) -> None:
        if peer == self._me:
            return
        if peer in self._wanted:
            self._wanted[peer][0].move(tuple(addresses))
            return

        async def dial(address: str) -> None:
            await self._attempt(peer, address, keep=True)

        wanted = Wanted(
            tuple(addresses), dial=dial, linked=lambda: peer in self._links, limits=self._limits, rng=self._rng
        )
        task = self._dials.spawn(wanted.run(), f"dial {peer}") if self._running else None
        self._wanted[peer] = (wanted, task)
        self.pool.kept(peer)
        self.pool.want(peer)

    def know(self, peer: str, addresses: Sequence[str]) -> None:
        if peer != self._me:
            self._release(peer)
            self.pool.know(peer, tuple(addresses))

    def forget(self, peer: str) -> None:
        self._release(peer)
        self.pool.forget(peer)

    def _release(self, peer: str) -> None:
        """Keep a link to this peer no longer."""
        if peer in self._wanted:
            _, task = self._wanted.pop(peer)
            if task is not None:
                task.cancel()
            self.pool.want(peer)

    def seed(self, addresses: Sequence[str]) -> None:
        for address in addresses:
            if address not in self._seeds and len(self._seeds) < MAX_SEEDS:
                self._seeds[address] = ""
                if self._running:
                    self._dials.spawn(self._keep_seed(address), f"seed {address}")

    def answered(self, address: str, peer: str) -> None:
        """This peer has answered at the address of a seed."""
        self._seeds[address] = peer

    # --- dialling -------------------------------------------------------------------------------------------------

    def redial(self, peer: str) -> None:
        if peer in self._links:
            self._refresh(peer)
        elif peer in self._wanted:
            self._wanted[peer][0].hurry()
        elif self._running:
            self.pool.send(peer, None)

    def say(self, peer: str, message: Message) -> bool:
        """Dial a known peer that has no link, and say this once it is there; False if it is not one."""
        return self._running and peer not in self._wanted and self.pool.send(peer, message)

    async def _keep_seed(self, address: str) -> None:
        await keep_seed(
            lambda: self._attempt("", address, keep=True),
            lonely=self._lonely,
            reached=lambda: self._met(self._seeds.get(address, "")),
            limits=self._limits,
            rng=self._rng,
        )
        log.info("a seed is this node itself", address=address)

    def _met(self, peer: str) -> bool:
        """Whether whoever answered at a seed need not be dialled there again: it is linked, or we are among others and
        know where it is."""
        return peer in self._links or (not self._lonely.is_set() and (peer in self._wanted or self.pool.knows(peer)))

    def _refresh(self, peer: str) -> None:
        """Dial afresh a peer whose link may be stalled."""
        link, now = self._links[peer], asyncio.get_running_loop().time()
        if not self._running or peer in self._refreshing or now - link.use.since < self._limits.young_seconds:
            return

        def stalled() -> bytes | None:
            return link.nonce if link.use.heard <= now and self._links.get(peer) is link else None

        async def dial() -> None:
            try:
                for address in self.addresses(peer):
                    if stalled() is not None:
                        await self._attempt(peer, address, keep=peer in self._wanted, stalled=stalled)
            finally:
                del self._refreshing[peer]

        self._refreshing[peer] = self._dials.spawn(dial(), f"dial {peer} afresh")

    async def _attempt(
        self, expected: str, address: str, *, keep: bool, stalled: Callable[[], bytes | None] = lambda: None
    ) -> bool:
        """One dial. It has a task of its own so that it can give way to the peer's. False if it led to ourselves."""
        dial = self._dial(expected, address, keep=keep, stalled=stalled)
        task = self._dials.spawn(dial, f"dial {expected or 'seed'} at {address}")
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        return task.cancelled() or task.exception() is not None or task.result()

    # --- links come and go ----------------------------------------------------------------------------------------

    def up(self, peer: str, address: str, said: bool) -> None:
        """There is a link, whoever dialled it. `said`: whether our hello asked for it to be kept."""
        self._lonely.clear()
        if peer in self._wanted:
            self._wanted[peer][0].link_up(asyncio.get_running_loop().time(), address)
        self.pool.up(peer, said=said)

    def down(self, peer: str) -> None:
        """The link to this peer has ended, and is in `links` no more."""
        if not self._links:
            self._lonely.set()
        if peer in self._wanted:
            self._wanted[peer][0].link_down(asyncio.get_running_loop().time())
        self.pool.down()
