"""Blobs that nobody names: what a crash, a broken-off attempt or a refused promise left. They are collected after an
hour in which nothing has named them, for some are named only after they are here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hivenode.logs import get_logger
from hivenode.store.ports import BlobStore

LOOK_SECONDS = 600.0
UNNAMED_SECONDS = 3600.0

log = get_logger("results")


class Leftovers:
    """
    Args:
        named: whether some fact, or somebody at work here, speaks of these bytes.
    """

    def __init__(self, blobs: BlobStore, named: Callable[[str], bool]) -> None:
        self._blobs = blobs
        self._named = named
        self._since: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.collect(asyncio.get_running_loop().time())
            await asyncio.sleep(LOOK_SECONDS)

    async def collect(self, now: float) -> int:
        """Delete what has been unnamed for long enough; how many that were. The time starts anew with each start of the
        daemon, so that what a journal has still to hear from others is safe."""
        here = {ref.digest: ref.size for ref in self._blobs.digests()}
        self._since = {digest: self._since.get(digest, now) for digest in here if not self._named(digest)}
        gone = 0
        for digest in [digest for digest, since in self._since.items() if now - since >= UNNAMED_SECONDS]:
            if self._named(digest):  # named while another was being deleted
                continue
            await self._blobs.delete(digest)
            del self._since[digest]
            gone += 1
            log.info("a blob that nobody names is deleted", blob=digest[:12], size=here[digest])
        return gone
