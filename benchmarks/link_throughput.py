"""What a link costs on top of a bare aiohttp websocket over TLS, and how soon a killed peer is noticed.

    python benchmarks/link_throughput.py [--seconds 3]

Two processes on loopback. Per row: echoed messages a second with 256 under way, round trip of single messages, the
same while a blob moves over a connection of its own, blob throughput, and the time from `kill -9` to `link_down` and
from `redial` to `dial_failed(refused)`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from aiohttp import web

from hivenode.net.codec import encode
from hivenode.net.conduct import Rate
from hivenode.net.link import LinkLimits
from hivenode.net.messages import Ack, Message, Ping
from hivenode.net.peers import PeerTransport, TransportLimits
from hivenode.net.transport import LinkEnd
from hivenode.spec.values import BlobRef, Role
from hivenode.store.blobs import FileBlobs
from hivenode.tasks import Signal
from hivenode.trust.authority import Authority
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity

AUTHORITY = Authority.from_seed(b"benchmark")
BLOB_BYTES = 256 * 1024 * 1024
WINDOW = 256


def credentials(number: int) -> Credentials:
    identity = Identity.from_seed(bytes([number]))
    return Credentials(
        identity=identity,
        hive_id=AUTHORITY.hive_id,
        authority_pem=AUTHORITY.certificate_pem,
        authority_key=AUTHORITY.public_key,
        certificate_pem=AUTHORITY.certify(identity.public_key, now=datetime.now(UTC)),
        grant=AUTHORITY.grant(identity.public_key, str(number), tuple(Role), serial=1),
        authority=None,
    )


def node(number: int, blobs: FileBlobs) -> PeerTransport:
    """Without the bound on floods, which is far below what a link can carry."""
    limits = TransportLimits(link=LinkLimits(rates={object: Rate(1e9, 1e9)}))
    return PeerTransport(credentials(number), "127.0.0.1", 0, (), blobs, random.Random(number), "bench", limits=limits)


class Ends:
    """A handler that answers pings, and keeps what else it hears."""

    def __init__(self) -> None:
        self.transport: PeerTransport | None = None
        self.answers = 0
        self.events: list[tuple[str, float, object]] = []
        self.changed = Signal()

    def link_up(self, peer: str, address: str) -> None:
        self._note("up", None)

    def link_down(self, peer: str, why: LinkEnd) -> None:
        self._note("down", why)

    def dial_failed(self, peer: str, address: str, why: LinkEnd, detail: str) -> None:
        self._note("failed", why)

    def received(self, peer: str, message: Message) -> None:
        if isinstance(message, Ping) and self.transport is not None:
            self.transport.send(peer, Ack(sequence=message.sequence))
        else:
            self.answers += 1
            self.changed.notify()

    def _note(self, kind: str, what: object) -> None:
        self.events.append((kind, time.perf_counter(), what))
        self.changed.notify()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self.changed.wait()


async def serve_node(directory: Path) -> None:
    ends = Ends()
    blobs = FileBlobs(directory)
    transport = ends.transport = node(2, blobs)
    ref = await blobs.put_bytes(os.urandom(BLOB_BYTES))
    (address,) = await transport.start(ends)
    print(transport.id, address, ref.digest, flush=True)
    await asyncio.Event().wait()


async def serve_bare() -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        async for received in socket:
            await socket.send_bytes(received.data)
        return socket

    app = web.Application()
    app.router.add_get("/", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=credentials(2).server_context()).start()
    print(f"127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


@asynccontextmanager
async def child(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[str]]]:
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process, (await process.stdout.readline()).decode().split()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def round_trips(once: Callable[[], Awaitable[None]], seconds: float) -> str:
    times = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        await once()
        times.append((time.perf_counter() - started) * 1e3)
    times.sort()
    return f"p50 {statistics.median(times):.2f} ms, p99 {times[int(len(times) * 0.99)]:.2f} ms ({len(times)})"


async def bare(seconds: float) -> None:
    context = credentials(1).client_context()
    frame = encode(Ping(sequence=1))
    async with child("--serve-bare") as (_, words), aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"https://{words[0]}/", ssl=context)

        async def once() -> None:
            await socket.send_bytes(frame)
            await socket.receive()

        print(f"bare websocket  round trip                 {await round_trips(once, seconds)}")
        count, end, started = 0, time.perf_counter() + seconds, time.perf_counter()
        for _ in range(WINDOW):
            await socket.send_bytes(frame)
        while time.perf_counter() < end:
            await socket.receive()
            await socket.send_bytes(frame)
            count += 1
        print(f"bare websocket  messages echoed a second   {count / (time.perf_counter() - started):,.0f}")
        await socket.close()


async def link(seconds: float, directory: Path) -> None:
    async with child("--serve-node", str(directory / "server")) as (process, (peer, address, digest)):
        ends = Ends()
        blobs = FileBlobs(directory / "client")
        transport = node(1, blobs)
        await transport.start(ends)
        transport.want(peer, (address,))
        await ends.until(lambda: transport.links)

        async def once() -> None:
            before = ends.answers
            transport.send(peer, Ping(sequence=1))
            await ends.until(lambda: ends.answers > before)

        print(f"hivenode link   round trip                 {await round_trips(once, seconds)}")
        count, before, end, started = 0, ends.answers, time.perf_counter() + seconds, time.perf_counter()
        while time.perf_counter() < end:
            while count - (ends.answers - before) < WINDOW and transport.send(peer, Ping(sequence=count)):
                count += 1
            await ends.changed.wait()
        rate = (ends.answers - before) / (time.perf_counter() - started)
        print(f"hivenode link   messages echoed a second   {rate:,.0f}")
        await ends.until(lambda: ends.answers - before >= count)

        fetching = asyncio.create_task(transport.fetch(peer, BlobRef(digest, BLOB_BYTES), blobs))
        started = time.perf_counter()
        times = []
        while not fetching.done():
            at = time.perf_counter()
            await once()
            times.append((time.perf_counter() - at) * 1e3)
            await asyncio.sleep(0.005)
        await fetching
        took = time.perf_counter() - started
        times.sort()
        print(f"hivenode link   round trip during a blob   p50 {statistics.median(times):.2f} ms, "
              f"p99 {times[int(len(times) * 0.99)]:.2f} ms ({len(times)})")  # fmt: skip
        print(f"hivenode bulk   {BLOB_BYTES >> 20} MiB, hashed and synced   {BLOB_BYTES / took / 1e6:,.0f} MB/s")

        at = time.perf_counter()
        process.send_signal(signal.SIGKILL)
        await ends.until(lambda: any(kind == "down" for kind, _, _ in ends.events))
        down = next((when, why) for kind, when, why in ends.events if kind == "down")
        print(f"kill -9         to link_down({down[1]})        {(down[0] - at) * 1e3:.1f} ms")
        await process.wait()
        seen = len(ends.events)
        at = time.perf_counter()
        transport.redial(peer)
        await ends.until(lambda: any(kind == "failed" for kind, _, _ in ends.events[seen:]))
        failed = next((when, why) for kind, when, why in ends.events[seen:] if kind == "failed")
        print(f"redial          to dial_failed({failed[1]})    {(failed[0] - at) * 1e3:.1f} ms")
        await transport.stop()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--serve-node", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve-bare", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve_bare:
        await serve_bare()
    elif asked.serve_node:
        await serve_node(asked.serve_node)
    else:
        await bare(asked.seconds)
        with tempfile.TemporaryDirectory() as directory:
            await link(asked.seconds, Path(directory))


if __name__ == "__main__":
    asyncio.run(main())
