"""The event stream, read as a client reads it."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from hivenode.admin import events
from hivenode.admin.api import AdminServer
from tests.admin.memory import MemoryNode, summary


async def next_event(stream: aiohttp.ClientResponse) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            line = await stream.content.readline()
            assert line, "the stream ended"
            if line.startswith(b"data:"):
                return json.loads(line[5:])


async def test_what_happens_is_told(session: aiohttp.ClientSession, node: MemoryNode) -> None:
    async with session.get("/v1/events") as stream:
        assert stream.content_type == "text/event-stream"
        node.job_list["j-abcdefghjk"] = summary()
        node.change("j-abcdefghjk", step=11)
        node.lose("cedar")
        first, second = await next_event(stream), await next_event(stream)
    assert (first["kind"], first["data"]["step"]) == ("job", 11)
    assert (second["kind"], second["data"]["name"], second["data"]["state"]) == ("member", "cedar", "dead")


async def test_it_can_be_narrowed(session: aiohttp.ClientSession, node: MemoryNode) -> None:
    async with session.get("/v1/events?kind=progress&kind=member&job=j-1") as stream:
        node.progress("j-2", "ash", 1)
        node.progress("j-1", "ash", 2)
        node.bus.tell("coordinator", {"node": ""})
        node.lose("birch")
        got = [await next_event(stream), await next_event(stream)]
    assert [(item["kind"], item["data"].get("step")) for item in got] == [("progress", 2), ("member", None)]


async def test_a_silent_stream_is_kept_alive(session: aiohttp.ClientSession) -> None:
    async with session.get("/v1/events") as stream, asyncio.timeout(10):
        while b"keep-alive" not in await stream.content.readline():
            pass


async def test_readers_are_bounded_and_leave_nothing(
    session: aiohttp.ClientSession, node: MemoryNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_READERS", 2)
    streams = [await session.get("/v1/events") for _ in range(2)]
    response = await session.get("/v1/events")
    assert response.status == 507
    for stream in streams:
        stream.close()
    async with asyncio.timeout(10):
        while node.bus._readers:  # the keep-alive finds that nobody reads
            await asyncio.sleep(0.01)
    async with session.get("/v1/events") as stream:
        assert stream.status == 200


async def test_the_endpoint_stops_while_somebody_listens(node: MemoryNode) -> None:
    server = AdminServer(node, "t")
    url = await server.start()
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer t"}) as session:
        async with session.get(url + "/v1/events") as stream, asyncio.timeout(10):
            await server.stop()
            with suppress(aiohttp.ClientPayloadError):
                while await stream.content.readline():
                    pass
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(url + "/v1/status")
