"""Sounding lines that carried nothing large yet: one peer at a time, rarely, and only while the node does not work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hivenode.errors import HiveError
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
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._widths = widths
        self._links = links
        self._sound = sound
        self._busy = busy
        self._wall = wall
        self._keep = keep
        self._pause_seconds = pause_seconds
        self._failed: dict[str, float] = {}

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
        self._failed = {peer: at for peer, at in self._failed.items() if 0 <= now - at < RETRY_SECONDS}
        lacking = {peer: self._widths.lacking(peer, now) for peer in self._links() if peer not in self._failed}
        peer = max(lacking, key=lambda each: lacking[each], default="")
        return peer if lacking.get(peer) else ""

    async def _once(self, peer: str) -> None:
        try:
            bandwidth = await self._sound(peer)
        except HiveError as error:
            log.debug("a line could not be sounded", peer=peer, reason=error.sentence)
            self._failed[peer] = self._wall()
        else:
            self._widths.note(peer, bandwidth, self._wall(), sounded=True)
