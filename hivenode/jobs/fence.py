"""The fence: the highest epoch that this node has obeyed. It is kept on disk; an order of a lower one is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from hivenode.errors import Refused
from hivenode.hive.election import MAX_STEP
from hivenode.logs import get_logger
from hivenode.spec.values import Epoch
from hivenode.store.ports import Journal

FENCE = "fence"

log = get_logger("jobs")


class Fence:
    """Refuses orders of outlived epochs.

    Args:
        highest: the highest epoch its own election has heard of; an order far beyond it is nobody's.
    """

    def __init__(self, node_name: str, journal: Journal, highest: Callable[[], Epoch]) -> None:
        self._node_name = node_name
        self._journal = journal
        self._highest = highest
        self._lock = asyncio.Lock()

    async def obey(self, epoch: Epoch) -> None:
        """Let an order of this epoch pass, once it is on disk that it did. Raises Refused."""
        async with self._lock:
            raw = self._journal.cell(FENCE)
            fence = msgspec.msgpack.decode(raw, type=Epoch) if raw else Epoch(0)
            known = max(fence.counter, self._highest().counter)
            if epoch.counter > known + MAX_STEP:
                raise Refused(
                    f"Node {self._node_name} knows of no election near epoch {epoch}.",
                    fix="Look at who ordered it.",
                )
            if epoch < fence:
                log.warning("an order of an outlived epoch is refused", epoch=str(epoch), obeyed=str(fence))
                raise Refused(
                    f"Node {self._node_name} has obeyed epoch {fence} and refuses an order of epoch {epoch}.",
                    fix="Nothing to do: the newer coordinator's orders stand.",
                )
            if epoch > fence:
                await self._journal.set_cell(FENCE, msgspec.msgpack.encode(epoch))
