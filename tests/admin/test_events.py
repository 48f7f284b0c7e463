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


async def told(session: aiohttp.ClientSession, after: str, count: int) -> list[tuple[str, str]]:
    """Kind, and what is told of it, of the next few that a reader gets who has seen all up to `after`."""
    async with session.get("/v1/events", headers={"Last-Event-ID": after}) as stream:
        found = [await next_event(stream) for _ in range(count)]
    return [(one["kind"], one["data"].get("node", one["data"].get("count"))) for one in found]


async def test_a_reader_that_comes_back_goes_on_where_it_was(session: aiohttp.ClientSession, node: MemoryNode) -> None:
    async with session.get("/v1/events") as stream:
        node.bus.tell("coordinator", {"node": "a"})
        seen = (await next_event(stream))["id"]
    for name in "bcd":
        node.bus.tell("coordinator", {"node": name})
    assert await told(session, seen, 3) == [("coordinator", name) for name in "bcd"]
    async with session.get("/v1/events?kind=job", headers={"Last-Event-ID": seen}) as stream:
        node.job_list["j-abcdefghjk"] = summary()
        node.change("j-abcdefghjk", step=11)
        assert (await next_event(stream))["kind"] == "job", "what it did not ask for is left out of that too"


async def test_what_is_kept_no_more_is_named(
    session: aiohttp.ClientSession, node: MemoryNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with session.get("/v1/events") as stream:
        node.bus.tell("coordinator", {"node": "first"})
        seen = (await next_event(stream))["id"]
    for number in range(1007):
        node.bus.tell("coordinator", {"node": str(number)})
    assert await told(session, seen, 2) == [("missed", 7), ("coordinator", "7")]


@pytest.mark.parametrize("after", ["0-3", "of another run", "-", "{life}-99999", "{life}-" + "9" * 60])
async def test_who_names_what_this_daemon_never_told_is_told_so(
    session: aiohttp.ClientSession, node: MemoryNode, after: str
) -> None:
    async with session.get("/v1/events") as stream:
        node.bus.tell("coordinator", {"node": "first"})
        life = (await next_event(stream))["id"].partition("-")[0]
    assert await told(session, after.format(life=life), 2) == [("missed", 0), ("coordinator", "first")]


async def test_a_reader_that_does_not_read_costs_a_bounded_amount_and_learns_what_it_missed(
    session: aiohttp.ClientSession, node: MemoryNode
) -> None:
    async with session.get("/v1/events") as stream:
        for number in range(60_000):  # more than sockets and buffers hold
            node.bus.tell("coordinator", {"node": str(number), "text": "x" * 500})
            if number % 100 == 0:
                await asyncio.sleep(0)
        missed, numbers = 0, []
        while not numbers or numbers[-1] != 59_999:
            one = await next_event(stream)
            if one["kind"] == "missed":
                missed += one["data"]["count"]
            else:
                numbers.append(int(one["data"]["node"]))
    assert missed > 0
    assert len(numbers) + missed == 60_000
    assert numbers == sorted(set(numbers))
