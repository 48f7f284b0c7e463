"""The event stream of a node: what happens, told to whoever listens now. Bounded: a slow reader loses the oldest."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from hivenode.spec.status import Notice

BACKLOG = 1000


class Notices:
    """Hands each notice to every subscription."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._readers: dict[_Reader, None] = {}

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        if self._readers:
            notice = Notice(kind=kind, at=self._wall(), data=data)
            for reader in self._readers:
                reader.put(notice)

    async def subscribe(self) -> AsyncIterator[Notice]:
        reader = _Reader()
        self._readers[reader] = None
        try:
            while True:
                yield await reader.get()
        finally:
            del self._readers[reader]


class _Reader:
    def __init__(self) -> None:
        self._items: deque[Notice] = deque(maxlen=BACKLOG)
        self._some = asyncio.Event()

    def put(self, notice: Notice) -> None:
        self._items.append(notice)
        self._some.set()

    async def get(self) -> Notice:
        while not self._items:
            self._some.clear()
            await self._some.wait()
        return self._items.popleft()
