"""Sounding lines that carried nothing large yet: one peer at a time, rarely, and only while the node does not work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from hivenode.errors import Conflict, HiveError
from hivenode.logs import get_logger
from hivenode.net.widths import Widths

PAUSE_SECONDS = 5.0
"""Between two soundings."""
RETRY_SECONDS = 600.0
"""After one that came to nothing, of the same peer."""

log = get_logger("sounding")


class Sounder:
    """
    Args:
        links: peers with a link now.
        sound: measures the line to a peer, bytes/s; raises HiveError if that cannot be.
        busy: whether this node works; what it measured then would say less, and disturb.
        wall: seconds since 1970.
        keep: writes down what is known, for the next start.
        rng: draws among peers of which equally little is known, so that nodes that start together do not all ask one.
    """

    def __init__(
        self,
        widths: Widths,
        *,
        links: Callable[[], Sequence[str]],
        sound: Callable[[str], Awaitable[float]],
        busy: Callable[[], bool],
        wall: Callable[[], float],
        keep: Callable[[], Awaitable[None]],
        rng: random.Random,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._widths = widths
        self._links = links
        self._sound = sound
        self._busy = busy
        self._wall = wall
        self._keep = keep
        self._rng = rng
        self._pause_seconds = pause_seconds
        self._later: dict[str, tuple[float, float]] = {}
        """Peers not to be sounded now: since when, and for how many seconds."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._pause_seconds)
            if not self._busy() and (peer := self._next()):
                await self._once(peer)
            await self._keep()

    def _next(self) -> str:
        """Whom to sound now, those first of whom least is known; "" for nobody."""
        now = self._wall()
        self._later = {peer: (at, wait) for peer, (at, wait) in self._later.items() if 0 <= now - at < wait}
        lacking = {peer: self._widths.lacking(peer, now) for peer in self._links() if peer not in self._later}
        most = max(lacking.values(), default=0)
        return self._rng.choice([peer for peer, due in lacking.items() if due == most]) if most else ""

    async def _once(self, peer: str) -> None:
        try:
            bandwidth = await self._sound(peer)
        except Conflict:  # it is another's turn there; a peer that always says so does not keep this node from others
            self._later[peer] = (self._wall(), 1.5 * self._pause_seconds)
        except HiveError as error:
            log.debug("a line could not be sounded", peer=peer, reason=error.sentence)
            self._later[peer] = (self._wall(), RETRY_SECONDS)
        else:
            self._widths.note(peer, bandwidth, self._wall(), sounded=True)
