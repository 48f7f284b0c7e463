"""Kept links and passing ones.

A link is kept while either end wants it, and each tells the other whether it does (in its hello, then by `Keep`). A
passing link is dialled because there is something to say to a node that nobody keeps a link to; it, and one that
neither end wants any more, is closed when it has been idle.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from hivenode.net.messages import Keep, Message
from hivenode.net.transport import Use

MAX_KNOWN = 16_384
"""Nodes whose addresses are remembered."""


@dataclass(frozen=True)
class PoolLimits:
    """Bounds of the passing links of one node."""

    links: int = 16
    """Dialled by us, up or under way."""
    idle_seconds: float = 20.0
    """A link that neither end wants is closed when it was not used for so long: by whoever dialled it, and by the
    other end half as long again later."""
    busy_seconds: float = 1.0
    """A passing link used within this time does not give way to another dial."""
    queued_messages: int = 32
    """For one node, until it is linked."""
    waiting: int = 64
    """Nodes that wait for a free place."""


class Pool:
    """
    Args:
        use_of: the live links, and what they are for.
        wanted: whether we want a link to this node kept up.
        dial: one attempt at an address of a node; reports its failure itself.
        send: put a message on the live link to a node.
        close: close the link to a node as idle.
        tell: tell the handler that the link to a node is up, or is down as idle; `soon` means not from here, for the
            handler may drop the link or dial again, in the middle of what the caller is doing.
        spawn: start a task.
    """

    def __init__(
        self,
        limits: PoolLimits,
        *,
        use_of: Callable[[], Mapping[str, Use]],
        wanted: Callable[[str], bool],
        dial: Callable[[str, str], Awaitable[object]],
        send: Callable[[str, Message], bool],
        close: Callable[[str], None],
        tell: Callable[[str, bool, bool], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._limits = limits
        self._use_of = use_of
        self._wanted = wanted
        self._dial = dial
        self._send = send
        self._close = close
        self._tell = tell
        self._spawn = spawn
        self._known: dict[str, tuple[str, ...]] = {}
        self._queues: dict[str, deque[Message]] = {}
        """What to say to those being dialled and those waiting for their dial, in order of arrival."""
        self._dials: dict[str, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    # --- whom we may dial -----------------------------------------------------------------------------------------

    def addresses(self, peer: str) -> tuple[str, ...]:
        return self._known.get(peer, ())

    def knows(self, peer: str) -> bool:
        return peer in self._known

    def know(self, peer: str, addresses: tuple[str, ...]) -> None:
        if peer in self._known or len(self._known) < MAX_KNOWN:
            self._known[peer] = addresses

    def kept(self, peer: str) -> None:
        """It is wanted from here on, and dialled elsewhere; what is to be said to it still will be."""
        self._known.pop(peer, None)

    def forget(self, peer: str) -> None:
        """Know it no more, and drop what was to be said to it; a live link stays until it is idle."""
        self._known.pop(peer, None)
        self._queues.pop(peer, None)
        task = self._dials.pop(peer, None)
        if task is not None:
            task.cancel()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for peer in list(self._dials):
            self.forget(peer)

    # --- dialling -------------------------------------------------------------------------------------------------

    def send(self, peer: str, message: Message | None) -> bool:
        """Dial a known node without a link, and say this (None: nothing) once it is there. False if too much waits."""
        if not self._known.get(peer):
            return False
        queue = self._queues.get(peer)
        if queue is None:
            if len(self._queues) - len(self._dials) >= self._limits.waiting:
                return False
            queue = self._queues[peer] = deque()
        if message is not None:
            if len(queue) >= self._limits.queued_messages:
                return False
            queue.append(message)
        self._pump()
        return True

    def _pump(self) -> None:
        """Dial for those who wait, as far as there is room."""
        waiting = [peer for peer in self._queues if peer not in self._dials]
        for peer in waiting:
            if not self._room():
                break
            self._dials[peer] = self._spawn(self._reach(peer), f"pool: dial {peer}")
        self._arm()

    def _room(self) -> bool:
        """Whether one more link may be dialled, if need be after closing the one unused for longest."""
        passing = [(use.at, peer) for peer, use in self._use_of().items() if use.dialled and self._unwanted(peer, use)]
        if len(passing) + len(self._dials) < self._limits.links:
            return True
        if not passing:
            return False
        at, oldest = min(passing)
        if asyncio.get_running_loop().time() - at < self._limits.busy_seconds:
            return False
        self._close(oldest)
        return True

    async def _reach(self, peer: str) -> None:
        try:
            for address in self._known.get(peer, ()):
                if peer in self._use_of():
                    break
                await self._dial(peer, address)
        finally:
            if self._dials.get(peer) is asyncio.current_task():
                del self._dials[peer]
                if peer not in self._use_of():
                    self._queues.pop(peer, None)  # whoever sent it is told of the failed dial
                asyncio.get_running_loop().call_soon(self._pump)

    # --- links come and go ----------------------------------------------------------------------------------------

    def up(self, peer: str, *, said: bool) -> None:
        """There is a link, whoever dialled it: say what was to be said.

        Args:
            said: whether our hello asked for it to be kept.
        """
        wanted = self._wanted(peer)
        if wanted and not said:  # it has come to be wanted since
            self._send(peer, Keep(True))
        self._use_of()[peer].held = said and not wanted
        self._review(peer, soon=True)
        for message in self._queues.pop(peer, ()):
            self._send(peer, message)

    def want(self, peer: str) -> None:
        """We have begun to want this peer, or do no longer."""
        if peer in self._use_of():
            self._send(peer, Keep(self._wanted(peer)))
            self._review(peer, soon=True)

    def heard(self, peer: str, keep: Keep) -> None:
        """What the other end wants, before the messages that follow."""
        self._use_of()[peer].theirs = keep.wanted
        self._review(peer, soon=False)

    def _review(self, peer: str, *, soon: bool) -> None:
        use = self._use_of()[peer]
        kept = not self._unwanted(peer, use)
        if kept is not use.announced:
            use.announced = kept
            self._tell(peer, kept, soon)
        if peer in self._use_of():  # whoever was told may have dropped it
            self._arm({peer: use})

    def down(self) -> None:
        """A link has ended: somebody may be waiting for its place."""
        if self._queues:
            asyncio.get_running_loop().call_soon(self._pump)

    def make_room(self) -> bool:
        """Close a link that we do not want, so that another may come up: the one unused for longest, of those that the
        other end does not want either if there are any. A newcomer may have nobody but us, and the others had us for a
        while. What somebody wants does not give way in the midst of its use; what nobody wants does, once it has been
        up for as long: where a crowd joins at once, whoever was let in soon knows others, and yet there is always
        something to say. False if there is none."""
        since = asyncio.get_running_loop().time() - self._limits.busy_seconds
        fair = [
            (not nobodys, use.at, peer)
            for peer, use in self._use_of().items()
            if not self._wanted(peer) and (use.since if (nobodys := self._unwanted(peer, use)) else use.at) <= since
        ]
        if not fair:
            return False
        _, _, oldest = min(fair)
        self._close(oldest)
        return True

    # --- idleness -------------------------------------------------------------------------------------------------

    def _unwanted(self, peer: str, use: Use) -> bool:
        return not use.theirs and not use.held and not self._wanted(peer)

    def _ends(self, use: Use) -> float:
        return use.at + self._limits.idle_seconds * (1.0 if use.dialled else 1.5)

    def _arm(self, uses: Mapping[str, Use] | None = None) -> None:
        """Be called back when the first of these, or of all, may be due."""
        due = [
            self._ends(use) if not use.held else use.since + self._limits.idle_seconds
            for peer, use in (self._use_of() if uses is None else uses).items()
            if use.held or self._unwanted(peer, use)
        ]
        loop = asyncio.get_running_loop()
        if len(self._queues) > len(self._dials):
            due.append(loop.time() + self._limits.busy_seconds)
        if not due or (self._timer is not None and self._timer.when() <= min(due)):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(max(min(due), loop.time()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for peer, use in list(self._use_of().items()):
            if use.held and use.since + self._limits.idle_seconds <= now:
                use.held = False
                self.want(peer)
            elif self._unwanted(peer, use) and self._ends(use) <= now:
                self._close(peer)
        self._pump()
