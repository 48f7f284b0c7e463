"""Members that misbehave, and strangers that only take up room: they are cut off, and nobody else notices."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import msgpack
import pytest

from hivenode.net.codec import encode
from hivenode.net.conduct import Rate
from hivenode.net.link import LinkLimits
from hivenode.net.listener import ListenLimits
from hivenode.net.messages import MAX_FRAME, Ping
from hivenode.net.transport import LinkEnd
from tests.net.nodes import PATIENCE, STRANGERS, Node, credentials_of, linked, node, with_limits
from tests.security.hostile import anonymous, closed_by_the_other_side, http, raw_link

MALLORY = credentials_of(66)


async def still_fine(a: Node, b: Node) -> None:
    """Two nodes are linked as before and messages pass."""
    before = len(b.handler.all("message"))
    assert a.transport.send(b.id, Ping(sequence=1))
    await b.handler.until(lambda: (a.id, Ping(sequence=1)) in b.handler.all("message")[before:])
    assert a.handler.all("down") == [] or b.id not in [peer for peer, _ in a.handler.all("down")]
    assert len([peer for peer, *_ in a.handler.all("up") if peer == b.id]) == 1


@pytest.mark.parametrize(
    "frame",
    [
        b"\x90" * MAX_FRAME,
        b"\xdd\xff\xff\xff\xff" + b"\xdf\xff\xff\xff\xff" * 1000,
        b"\x83\xa1t\xa4ping\xa8sequence\x01\xa1x" + b"\x91" * 100_000 + b"\x01",
        random.Random(3).randbytes(1000),
        b"",
        msgpack.packb({"t": "ping", "sequence": 2**60}),
        bytes(MAX_FRAME + 1),
        bytes(4 * MAX_FRAME),
        "text instead of bytes",
    ],
    ids=["nested", "huge counts", "deep", "random", "empty", "out of range", "one too long", "far too long", "text"],
)
async def test_a_bad_frame_ends_its_senders_link_only(tmp_path: Path, frame: bytes | str) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        async with raw_link(MALLORY, a, {}) as socket:
            await a.handler.one("up", 2)
            await socket.send_bytes(encode(Ping(sequence=5)))
            await a.handler.until(lambda: (MALLORY.identity.node_id, Ping(sequence=5)) in a.handler.all("message"))
            if isinstance(frame, str):
                await socket.send_str(frame)
            else:
                await socket.send_bytes(frame)
            assert await a.handler.one("down") == (MALLORY.identity.node_id, LinkEnd.protocol)
            await closed_by_the_other_side(socket)
        assert list(a.transport.links) == [b.id]
        await still_fine(a, b)


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({"node": credentials_of(2).identity.node_id}, 1002),
        ({"hive": STRANGERS.hive_id}, 1002),
        ({"oldest": 7, "newest": 9}, 4002),
        ({"instance": b"x" * 100}, 1002),
        ({"addresses": ("a:1",) * 1000}, 1002),
    ],
    ids=["another's id", "another hive", "future version", "malformed", "too much"],
)
async def test_a_hello_that_does_not_fit_gets_no_link(tmp_path: Path, hello: dict[str, Any], code: int) -> None:
    async with node(1, tmp_path) as a, raw_link(MALLORY, a, hello) as socket:
        assert await closed_by_the_other_side(socket) == code
        assert a.handler.all("up") == []


async def test_the_two_builds_that_cannot_talk_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with node(1, tmp_path) as a, raw_link(MALLORY, a, {"oldest": 7, "newest": 9}) as socket:
        await closed_by_the_other_side(socket)
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    reasons = " ".join(str(line.get("reason", "")) for line in fields)
    assert "build hostile) speaks protocol 7-9" in reasons
    assert "build 0.0.test) 1-1" in reasons


async def test_a_member_that_never_says_hello_is_let_go(tmp_path: Path) -> None:
    limits = with_limits(listen=ListenLimits(handshake_seconds=0.2))
    async with node(1, tmp_path, limits=limits) as a, raw_link(MALLORY, a, None) as socket:
        await closed_by_the_other_side(socket)
        assert a.handler.all("up") == []


async def test_a_flood_is_read_no_faster_than_allowed(tmp_path: Path) -> None:
    rate, burst = 200.0, 100.0
    limits = with_limits(link=LinkLimits(rates={object: Rate(rate, burst)}, goodbye_seconds=0.2))
    async with node(1, tmp_path, limits=limits) as a, node(2, tmp_path) as b:
        await linked(a, b)
        async with raw_link(MALLORY, a, {}) as socket:
            await a.handler.one("up", 2)
            loop = asyncio.get_running_loop()
            started = loop.time()
            frame = encode(Ping(sequence=5))
            for _ in range(300):
                await socket.send_bytes(frame)
            for _ in range(5):
                await still_fine(a, b)
                await still_fine(b, a)
            await a.handler.until(lambda: len(a.handler.all("message")) > burst + 20)
            flood = [1 for peer, _ in a.handler.all("message") if peer == MALLORY.identity.node_id]
            assert len(flood) <= burst + rate * (loop.time() - started) + 1


async def test_half_open_connections_are_bounded_and_others_get_through(tmp_path: Path) -> None:
    limits = with_limits(listen=ListenLimits(unauthenticated=10, unauthenticated_per_address=4, handshake_seconds=60.0))
    async with node(1, tmp_path, host="127.0.0.1", limits=limits) as a, node(2, tmp_path) as b:
        port = a.transport.port
        silent = [await _silent(port, "127.0.0.9") for _ in range(4)]
        for _ in range(20):
            assert await _turned_away(port, "127.0.0.9")
        # Another address still gets in.
        b.want(a)
        await b.handler.one("up")
        more = [await _silent(port, "127.0.0.10") for _ in range(4)]
        more += [await _silent(port, "127.0.0.11") for _ in range(2)]
        assert await _turned_away(port, "127.0.0.12")
        await still_fine(b, a)
        # Places are free again when the silent ones go.
        for writer in silent:
            writer.close()
        async with http(anonymous()) as session:
            await _until_answered(session, a)
        for writer in more:
            writer.close()


async def test_connections_that_say_nothing_or_dribble_are_closed(tmp_path: Path) -> None:
    limits = with_limits(listen=ListenLimits(handshake_seconds=0.3, anonymous_seconds=0.6))
    async with node(1, tmp_path, limits=limits) as a:
        reader, writer = await asyncio.open_connection("127.0.0.1", a.transport.port)
        assert await _ended(reader)
        writer.close()
        # With TLS, and a request that never ends.
        for context in (anonymous(), MALLORY.client_context()):
            reader, writer = await asyncio.open_connection("127.0.0.1", a.transport.port, ssl=context)
            dribbling = asyncio.create_task(_dribble(writer))
            assert await _ended(reader)
            dribbling.cancel()
            writer.close()
        # A stranger that keeps the connection busy is out of time after a while as well.
        reader, writer = await asyncio.open_connection("127.0.0.1", a.transport.port, ssl=anonymous())
        asking = asyncio.create_task(_ask(writer))
        assert await _ended(reader)
        asking.cancel()
        writer.close()


async def test_one_member_cannot_take_all_the_connections(tmp_path: Path) -> None:
    limits = with_limits(listen=ListenLimits(authenticated_per_peer=3, handshake_seconds=60.0))
    async with node(1, tmp_path, limits=limits) as a, node(2, tmp_path) as b:
        context = MALLORY.client_context()
        kept = [await asyncio.open_connection("127.0.0.1", a.transport.port, ssl=context) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", a.transport.port, ssl=context)
        assert await _ended(reader)
        await linked(b, a)
        for _, open_writer in [*kept, (reader, writer)]:
            open_writer.close()


async def _silent(port: int, source: str) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    return writer


async def _turned_away(port: int, source: str) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        return await _ended(reader)
    finally:
        writer.close()


async def _ended(reader: asyncio.StreamReader) -> bool:
    """Whether the other side ends the connection (waits for it)."""
    async with asyncio.timeout(PATIENCE):
        try:
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass
    return True


async def _dribble(writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /link HTTP/1.1\r\nHost: x\r\n")
    while True:
        writer.write(b"X")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _ask(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _until_answered(session: Any, a: Node) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                async with session.get(f"https://{a.address}/") as response:
                    assert response.status == 403
                    return
            except OSError:
                await asyncio.sleep(0.01)
