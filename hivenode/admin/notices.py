"""The event stream of a node: what happens, told to whoever listens now, and to who comes back after a break. Bounded:
of what a reader was too slow for, or away for too long, it is told that it is missing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from hivenode.spec.status import MISSED, Notice

BACKLOG = 1000


class Notices:
    """Numbers all notices, and keeps the newest from the first subscription on.

    Args:
        wall: seconds since 1970.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._life = f"{int(wall() * 1000):x}"
        """Sets the numbers of this run apart from those of the one before."""
        self._told = 0
        self._kept: deque[Notice] = deque(maxlen=BACKLOG)
        """The last of those that were told."""
        self._followed = False
        self._readers: dict[asyncio.Event, None] = {}

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        self._told += 1
        if self._followed:
            self._kept.append(Notice(kind, self._wall(), data, f"{self._life}-{self._told}"))
            for some in self._readers:
                some.set()

    async def subscribe(self, after: str = "") -> AsyncIterator[Notice]:
        """What is told from now on.

        Args:
            after: id of the last notice that the reader has seen: what was told since then comes first, or word of
                what is missing.
        """
        self._followed = True
        read = self._told if not after else self._read(after)
        some = asyncio.Event()
        self._readers[some] = None
        try:
            while True:
                oldest = self._told - len(self._kept)
                if read is None or read < oldest:
                    missed, read = {"count": 0 if read is None else oldest - read}, oldest
                    yield Notice(MISSED, self._wall(), missed, f"{self._life}-{read}")
                elif read < self._told:
                    read += 1
                    yield self._kept[read - 1 - oldest]
                else:
                    some.clear()
                    await some.wait()
        finally:
            del self._readers[some]

    def _read(self, after: str) -> int | None:
        """How many of ours a reader has read; None if the id is not one of ours."""
        life, _, number = after.partition("-")
        if life != self._life or not number.isdecimal() or len(number) > 18 or int(number) > self._told:
            return None
        return int(number)
