"""Other users of the machine can reach the endpoint: they may not shut its owner out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import aiohttp
import pytest

from hivenode.admin import answers
from hivenode.admin.api import AdminServer
from hivenode.admin.doorstep import Bounds
from tests.admin.conftest import TOKEN
from tests.admin.memory import MemoryNode

OWNER = {"Authorization": "Bearer t"}


async def connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came until the other side closed the connection."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.fixture
async def brisk() -> AsyncIterator[str]:
    """An endpoint with little patience for headers, and room for few."""
    server = AdminServer(MemoryNode(), "t", keep_alive_seconds=0.05, bounds=Bounds(head_seconds=0.2, strangers=4))
    yield await server.start()
    await server.stop()


async def test_headers_that_do_not_come_end_the_connection(brisk: str) -> None:
    silent, _ = await connected(brisk)
    reader, writer = await connected(brisk)
    writer.write(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n")

    async def dribble() -> None:
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.01)  # as slow as it likes

    dribbling = asyncio.create_task(dribble())
    assert await ended(silent) == b""
    assert await ended(reader) == b""
    writer.close()
    await asyncio.gather(dribbling, return_exceptions=True)


async def test_a_connection_that_was_answered_is_not_kept_for_ever(brisk: str) -> None:
    reader, writer = await connected(brisk)
    writer.write(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200 OK" in await ended(reader)


async def test_a_body_that_does_not_come_is_refused(brisk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BODY_SECONDS", 0.1)
    reader, writer = await connected(brisk)
    writer.write(
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\nContent-Length: 9\r\n"
        b'Connection: close\r\n\r\n{"spec"'
    )
    async with asyncio.timeout(10):
        assert b"408" in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def test_long_headers_and_many_are_refused(brisk: str) -> None:
    for head in (b"X: " + b"x" * 5000 + b"\r\n", b"X: x\r\n" * 100):
        reader, writer = await connected(brisk)
        writer.write(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n")
        assert b"400 Bad Request" in await ended(reader)


async def test_strangers_shut_nobody_out_and_end_no_stream() -> None:
    node = MemoryNode()
    server = AdminServer(node, "t", keep_alive_seconds=0.05, bounds=Bounds(strangers=4))
    url = await server.start()
    async with aiohttp.ClientSession(url, headers=OWNER) as session, session.get("/v1/events") as stream:
        async with session.post("/v1/plan", json={"spec": {"name": "digits"}}) as kept:
            assert kept.status == 200
        strangers = [await connected(url) for _ in range(20)]
        async with session.get("/v1/status") as response:  # on the connection of before
            assert response.status == 200
        async with aiohttp.ClientSession(url, headers=OWNER) as another, another.get("/v1/jobs") as response:
            assert response.status == 200
        for reader, _ in strangers[:16]:
            assert await ended(reader) == b""
        node.lose("cedar")
        async with asyncio.timeout(10):
            while not (await stream.content.readline()).startswith(b"data:"):
                pass
        assert not strangers[-1][0].at_eof()
        for _, writer in strangers:
            writer.close()
    await server.stop()


async def test_who_stands_there_without_reading_makes_room_too() -> None:
    server = AdminServer(MemoryNode(), "t", bounds=Bounds(strangers=2))
    url = await server.start()
    _, writer = await connected(url)
    writer.write(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20_000)  # the answers fill every buffer
    others = [await connected(url) for _ in range(2)]

    async def write_on() -> None:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with asyncio.timeout(10):
        with pytest.raises(ConnectionError):
            await write_on()
    for _, other in others:
        other.close()
    await server.stop()


async def test_who_hangs_up_half_way_is_no_defect(node: MemoryNode, url: str, caplog: pytest.LogCaptureFixture) -> None:
    owner = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    _, deaf = await connected(url)
    deaf.write(f"GET /v1/events HTTP/1.1\r\n{owner}\r\n".encode())
    _, half = await connected(url)
    half.write(f"POST /v1/jobs HTTP/1.1\r\n{owner}Content-Length: 9\r\n\r\n{{".encode())
    async with asyncio.timeout(10):
        while not node.bus._readers:
            await asyncio.sleep(0.005)
        for _ in range(300):  # until the node waits for somebody to read
            for number in range(100):
                node.bus.tell("coordinator", {"node": str(number), "text": "x" * 500})
            await asyncio.sleep(0)
        for writer in (deaf, half):
            writer.transport.abort()
        while node.bus._readers:
            await asyncio.sleep(0.005)
    async with aiohttp.ClientSession(url) as session, session.get("/v1/status") as response:
        assert response.status == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
