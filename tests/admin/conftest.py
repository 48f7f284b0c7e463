from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from hivenode.admin.api import AdminServer
from tests.admin.memory import MemoryNode

TOKEN = "correct-horse-battery-staple"
Ask = Callable[..., Any]


@pytest.fixture
def node() -> MemoryNode:
    return MemoryNode()


@pytest.fixture
async def url(node: MemoryNode) -> AsyncIterator[str]:
    server = AdminServer(node, TOKEN, "127.0.0.1", 0, keep_alive_seconds=0.05)
    yield await server.start()
    await server.stop()


@pytest.fixture
async def session(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Knows the token and the address."""
    async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        yield session


@pytest.fixture
async def stranger(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Knows only the address."""
    async with aiohttp.ClientSession(url) as session:
        yield session
