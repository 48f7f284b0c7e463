"""Blobs from node to node."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest
from aiohttp import web

from hivenode.errors import Corrupted, NotFound, Unavailable
from hivenode.net import bulk
from hivenode.net.bulk import BulkLimits
from hivenode.net.messages import Ping
from hivenode.spec.values import BlobRef
from hivenode.store.blobs import FileBlobs
from tests.net.nodes import linked, node, with_limits
from tests.net.proxy import proxy

SIZE = 5 * 1024 * 1024 + 123
QUICK = with_limits(bulk=BulkLimits(retry_seconds=0.01))


def content(seed: int = 1, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


async def test_a_blob_arrives_whole(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        for data in (content(), b"", b"small"):
            ref = await b.blobs.put_bytes(data)
            await a.transport.fetch(b.id, ref, a.blobs)
            assert await a.blobs.read(ref.digest, limit=SIZE) == data
        # The side that was dialled knows from the hello where to fetch.
        ref = await a.blobs.put_bytes(b"the other way")
        await b.transport.fetch(a.id, ref, b.blobs)
        assert b.blobs.has(ref.digest)


async def test_the_link_goes_on_while_a_blob_moves(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        ref = await b.blobs.put_bytes(content())
        fetching = asyncio.create_task(a.transport.fetch(b.id, ref, a.blobs))
        for number in range(20):
            assert b.transport.send(a.id, Ping(sequence=number))
            await a.handler.one("message", number + 1)
        await fetching
        assert a.blobs.has(ref.digest)


async def test_a_broken_transfer_goes_on_where_it_broke(tmp_path: Path) -> None:
    async with node(1, tmp_path, limits=QUICK) as a, node(2, tmp_path) as b:
        ref = await b.blobs.put_bytes(content())
        async with proxy(b.address, cuts=[0, 2_000_000, 1_500_000]) as between:
            a.transport.want(b.id, (between.address,))
            await a.handler.one("up")
            await a.transport.fetch(b.id, ref, a.blobs)
            assert await a.blobs.read(ref.digest, limit=SIZE) == content()
            assert between.connections >= 3
            # Not sent over and over: what had arrived before each break was used.
            assert between.bytes_down < SIZE * 1.4
            await a.transport.stop()


async def test_a_connection_that_always_breaks_is_given_up(tmp_path: Path) -> None:
    async with node(1, tmp_path, limits=QUICK) as a, node(2, tmp_path) as b:
        ref = await b.blobs.put_bytes(content())
        async with proxy(b.address, cuts=[0] * 100) as between:
            a.transport.want(b.id, (between.address,))
            with pytest.raises(Unavailable, match=ref.digest[:12]):
                await a.transport.fetch(b.id, ref, a.blobs)
            await a.transport.stop()


async def test_what_the_peer_lacks_is_not_found(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        for digest in ("0" * 64, "../../../etc/passwd".ljust(64, "x")):
            with pytest.raises(NotFound, match=b.id):
                await a.transport.fetch(b.id, BlobRef(digest, 5), a.blobs)


async def test_a_peer_without_known_address_is_unavailable(tmp_path: Path) -> None:
    async with node(1, tmp_path, limits=QUICK) as a:
        with pytest.raises(Unavailable, match="no address"):
            await a.transport.fetch("z" * 32, BlobRef("0" * 64, 5), a.blobs)


async def test_changed_bytes_are_found_out(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        ref = await b.blobs.put_bytes(content())
        path = b.blobs.path(ref.digest)
        assert path is not None
        data = bytearray(path.read_bytes())
        data[SIZE // 2] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(Corrupted):
            await a.transport.fetch(b.id, ref, a.blobs)
        assert not a.blobs.has(ref.digest)
        path.write_bytes(bytes(data[:-5]))
        with pytest.raises(Corrupted):
            await a.transport.fetch(b.id, ref, a.blobs)


async def test_a_spoilt_partial_file_does_not_spoil_the_blob(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        ref = await b.blobs.put_bytes(content())
        with pytest.raises(RuntimeError):
            await a.blobs.receive(ref, _broken(b"wrong bytes" * 1000))
        assert a.blobs.partial_size(ref.digest) > 0
        await a.transport.fetch(b.id, ref, a.blobs)
        assert await a.blobs.read(ref.digest, limit=SIZE) == content()


async def test_too_much_of_a_blob_does_not_spoil_it(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        ref = await b.blobs.put_bytes(b"short")
        with pytest.raises(RuntimeError):
            await a.blobs.receive(BlobRef(ref.digest, 10_000), _broken(b"longer than that"))
        await a.transport.fetch(b.id, ref, a.blobs)
        assert await a.blobs.read(ref.digest, limit=5) == b"short"


async def test_more_transfers_than_allowed_wait_their_turn(tmp_path: Path) -> None:
    one_at_a_time = with_limits(bulk=BulkLimits(outgoing_per_peer=1))
    async with node(1, tmp_path) as a, node(2, tmp_path, limits=one_at_a_time) as b:
        await linked(a, b)
        refs = [await b.blobs.put_bytes(content(seed)) for seed in range(3)]
        await asyncio.gather(*(a.transport.fetch(b.id, ref, a.blobs) for ref in refs))
        assert all(a.blobs.has(ref.digest) for ref in refs)


async def test_two_fetches_of_one_blob_share_it(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        ref = await b.blobs.put_bytes(content())
        async with proxy(b.address) as between:
            a.transport.want(b.id, (between.address,))
            await asyncio.gather(*(a.transport.fetch(b.id, ref, a.blobs) for _ in range(3)))
            assert a.blobs.has(ref.digest)
            assert between.bytes_down < 1.4 * SIZE
            await a.transport.stop()


class _broken:
    """A stream that yields once, then fails."""

    def __init__(self, data: bytes) -> None:
        self._data = [data]

    def __aiter__(self) -> _broken:
        return self

    async def __anext__(self) -> bytes:
        if self._data:
            return self._data.pop()
        raise RuntimeError("cut")


@pytest.mark.parametrize("what", ["serve", "sound"])
async def test_a_peer_that_does_not_read_is_broken_off_without_a_word_of_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    size = 48 << 20  # more than the system takes for a connection
    monkeypatch.setattr(bulk, "SOUND_BYTES", size)
    monkeypatch.setattr(bulk, "SOUND_SECONDS", 0.2)
    blobs = FileBlobs(tmp_path)
    ref = await blobs.put_bytes(bytes(size))
    server = bulk.BulkServer(blobs, bulk.BulkLimits(stall_seconds=0.2))
    left = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await (server.serve if what == "serve" else server.sound)(request, "a")
        finally:
            left.set()

    app = web.Application()
    app.router.add_get("/{digest}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    reader, writer = await asyncio.open_connection(host, port, limit=1024)
    writer.write(f"GET /{ref.digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    async with asyncio.timeout(60.0):
        await left.wait()
        taken = 0
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 20):
                taken += len(piece)
    assert taken < size
    writer.close()
    await runner.cleanup()
    server.close()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
