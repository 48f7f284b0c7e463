"""One warm forkserver for all tests here."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from hivenode.jobs.workers import ForkWorkers


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def host() -> AsyncIterator[ForkWorkers]:
    workers = ForkWorkers()
    yield workers
    await workers.close()
