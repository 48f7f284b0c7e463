"""What a stranger's nonsense leaves in the log."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.net.nodes import node
from tests.security.hostile import anonymous


async def test_nonsense_is_counted_and_leaves_no_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with node(1, tmp_path) as a:
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", a.transport.port, ssl=anonymous())
            writer.write(b"GET / HTTP/1.1\r\nnonsense\r\n\r\n")
            assert b" 400 " in await reader.read(100)
            writer.close()
    told = [record for record in caplog.records if record.getMessage() == "a request that is no HTTP"]
    assert 1 <= len(told) <= 6, "at 1, 2, 4, 8 and so on"
    assert not [record for record in caplog.records if record.exc_info]
