"""Blobs from node to node, on connections of their own so that no heartbeat waits behind them.

`GET /bulk/{digest}` with `Range: bytes=N-` for resuming. File reads run in threads and overlap with sending. The
receiver's store checks length and digest; nothing here is trusted. What the lines carry is measured on the way; `GET
/sound` answers with `SOUND_BYTES` zeros, for a line that carried nothing yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from hivenode.errors import Conflict, Corrupted, InvalidInput, NotFound, Unavailable
from hivenode.logs import get_logger
from hivenode.net.dialing import Dialer, DialError, explain
from hivenode.net.listener import Gate
from hivenode.net.widths import LEAST_BYTES, Meter
from hivenode.spec.values import BlobRef
from hivenode.store.ports import BlobStore

log = get_logger("bulk")

BULK_PATH = "/bulk/"
SOUND_PATH = "/sound"
SOUND_BYTES = 384 * 1024
SOUND_SKIPPED = 128 * 1024
"""Of those, not measured: see `widths.SLOW_START_BYTES`."""
SOUND_SECONDS = 10.0
_ZEROS = bytes(64 * 1024)
DIGEST = re.compile(r"[0-9a-f]{64}")
RANGE = re.compile(r"bytes=(\d{1,16})-")


@dataclass(frozen=True)
class BulkLimits:
    """Bounds of blob transfers."""

    chunk_bytes: int = 512 * 1024
    outgoing: int = 8
    """Blobs served at once."""
    outgoing_per_peer: int = 4
    incoming: int = 4
    """Blobs fetched at once."""
    stall_seconds: float = 30.0
    """A transfer that moves nothing for this long is broken off."""
    tries: int = 5
    """In a row without a byte of progress."""
    busy_tries: int = 30
    """Times a busy server is asked again."""
    retry_seconds: float = 0.5
    """Wait after a broken transfer, doubled for each one in a row."""
    read_threads: int = 2


class BulkServer:
    """Serves this node's blobs to authenticated peers."""

    def __init__(self, blobs: BlobStore, limits: BulkLimits) -> None:
        self._blobs = blobs
        self._limits = limits
        self._gate = Gate(limits.outgoing, limits.outgoing_per_peer)
        self._sounding = Gate(1, 1)
        self._threads = ThreadPoolExecutor(limits.read_threads, thread_name_prefix="bulk-read")

    async def serve(self, request: web.Request, peer: str) -> web.StreamResponse:
        digest = request.match_info["digest"]
        path = self._blobs.path(digest) if DIGEST.fullmatch(digest) else None
        if path is None:
            raise web.HTTPNotFound(text="no such blob here")
        if not self._gate.enter(peer):
            raise web.HTTPTooManyRequests(headers={"Retry-After": "1"}, text="too many transfers")
        try:
            return await self._stream(request, path)
        finally:
            self._gate.leave(peer)

    async def sound(self, request: web.Request, peer: str) -> web.StreamResponse:
        """A little, so that the peer learns what the line carries. One at a time for all: two would share the line."""
        if not self._sounding.enter(peer):
            raise web.HTTPTooManyRequests(headers={"Retry-After": "1"}, text="another line is being sounded")
        response = web.StreamResponse()
        response.content_type = "application/octet-stream"
        response.content_length = SOUND_BYTES
        try:
            async with asyncio.timeout(SOUND_SECONDS):
                await response.prepare(request)
                for _ in range(SOUND_BYTES // len(_ZEROS)):
                    await response.write(_ZEROS)
                await response.write_eof()
            return response
        except TimeoutError:
            _break_off(request)
            return response
        finally:
            self._sounding.leave(peer)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _stream(self, request: web.Request, path: Path) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        try:
            file, size = await loop.run_in_executor(self._threads, _open, path)
        except FileNotFoundError as error:
            raise web.HTTPNotFound(text="no such blob here") from error
        ahead: asyncio.Future[bytes] | None = None
        try:
            start, partial = _start(request, size)
            response = web.StreamResponse(status=206 if partial else 200)
            response.content_type = "application/octet-stream"
            response.content_length = size - start
            if partial:
                response.headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            await response.prepare(request)
            ahead = loop.run_in_executor(self._threads, _read, file, start, self._limits.chunk_bytes)
            while chunk := await ahead:
                start += len(chunk)
                ahead = loop.run_in_executor(self._threads, _read, file, start, self._limits.chunk_bytes)
                async with asyncio.timeout(self._limits.stall_seconds):
                    await response.write(chunk)
            await response.write_eof()
            return response
        except TimeoutError:
            _break_off(request)
            return response
        finally:
            if ahead is None or ahead.done():
                file.close()
            else:
                # The file must not be closed, and its number used again, under a thread that still reads it.
                ahead.add_done_callback(lambda _: file.close())


class BulkClient:
    """Fetches blobs from peers.

    Args:
        dialer: opens verified connections.
        addresses: where a peer may be reached, best first.
        rng: for the waits between tries.
        on_moved: told what was measured of each transfer that is large enough: the peer, and bytes/s.
    """

    def __init__(
        self,
        dialer: Dialer,
        addresses: Callable[[str], Sequence[str]],
        limits: BulkLimits,
        rng: random.Random,
        on_moved: Callable[[str, float], None] = lambda peer, bandwidth: None,
    ) -> None:
        self._dialer = dialer
        self._addresses = addresses
        self._limits = limits
        self._rng = rng
        self._on_moved = on_moved
        self._meters: dict[str, tuple[Meter, int]] = {}
        """What measures the transfers under way from each peer, and how many they are."""
        self._slots = asyncio.Semaphore(limits.incoming)
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def fetch(self, peer: str, ref: BlobRef, into: BlobStore) -> None:
        """Bring a blob over. Two fetches of the same blob wait for one another.

        Raises:
            NotFound: the peer lacks it.
            Unavailable: the peer cannot be reached, or the connection broke time and again.
            Corrupted: the bytes are not those of the digest.
            Exhausted: no room for it.
        """
        async with self._only(ref.digest), self._slots:
            if into.has(ref.digest):
                return
            resumed = into.partial_size(ref.digest) > 0
            try:
                await self._fetch(peer, ref, into)
            except Corrupted:
                if not resumed:
                    raise
                # What an earlier transfer left may have been at fault: once more from the start.
                log.warning("a resumed blob was corrupt, fetching all of it", digest=ref.digest, peer=peer)
                await into.delete(ref.digest)
                await self._fetch(peer, ref, into)

    async def sound(self, peer: str) -> float:
        """Measure the line to a peer with a little that is fetched for that. Returns bytes/s.

        Raises:
            Conflict: another line is being sounded there.
            Unavailable: it cannot be reached, or does not know how.
        """
        trouble = "no address of it is known"
        for address in self._addresses(peer):
            meter = Meter(SOUND_SKIPPED)
            try:
                async with (
                    asyncio.timeout(SOUND_SECONDS),
                    self._dialer.get(address, SOUND_PATH, peer, {}) as response,
                ):
                    if response.status == 429:
                        raise Conflict(f"{peer} has another line sounded just now.", fix="It is tried again by itself.")
                    if response.status != 200 or response.content_length != SOUND_BYTES:
                        raise _Broken(f"the other side answered with HTTP status {response.status}")
                    async for _ in _Body(response, self._limits.chunk_bytes, meter):
                        pass
            except (aiohttp.ClientError, OSError, TimeoutError, DialError, InvalidInput) as error:
                trouble = str(explain(error))
            except _Broken as error:
                trouble = str(error)
                break
            else:
                if meter.bandwidth:
                    return meter.bandwidth
                trouble = "it came all at once"
                break
        raise Unavailable(f"The line to {peer} could not be measured: {trouble}.", fix="It is tried again by itself.")

    async def _fetch(self, peer: str, ref: BlobRef, into: BlobStore) -> None:
        failures = busy = 0
        while True:
            before = into.partial_size(ref.digest)
            try:
                await self._once(peer, ref, into, before)
                return
            except _Busy as error:
                busy += 1
                if busy > self._limits.busy_tries:
                    raise Unavailable(f"{peer} is busy with other transfers.", fix="Try again later.") from error
                await asyncio.sleep(error.seconds * self._rng.uniform(0.5, 1.0))
            except _Broken as error:
                failures = 1 if into.partial_size(ref.digest) > before else failures + 1
                log.info("a transfer broke off", digest=ref.digest, peer=peer, reason=str(error), tries=failures)
                if failures >= self._limits.tries:
                    raise Unavailable(
                        f"Blob {ref.digest[:12]} could not be fetched from {peer}: {error}.",
                        fix="See whether that node is reachable: hivenode doctor.",
                    ) from error
                await asyncio.sleep(self._limits.retry_seconds * 2 ** (failures - 1) * self._rng.uniform(0.5, 1.0))

    async def _once(self, peer: str, ref: BlobRef, into: BlobStore, start: int) -> None:
        """One try over all addresses; the first that answers counts."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        trouble = "no address of it is known"
        for address in self._addresses(peer):
            opened = False
            try:
                async with self._dialer.get(address, BULK_PATH + ref.digest, peer, headers) as response:
                    opened = True
                    self._check(response, peer, ref, start)
                    with self._measured(peer) as meter:
                        await into.receive(ref, _Body(response, self._limits.chunk_bytes, meter))
                    return
            except (aiohttp.ClientError, OSError, DialError, InvalidInput) as error:
                trouble = str(explain(error))
                if opened:
                    break
        raise _Broken(trouble)

    @staticmethod
    def _check(response: aiohttp.ClientResponse, peer: str, ref: BlobRef, start: int) -> None:
        if response.status == 404:
            raise NotFound(f"Node {peer} does not hold blob {ref.digest[:12]}.", fix="Fetch it from another holder.")
        if response.status == 429:
            wait = response.headers.get("Retry-After", "1")
            raise _Busy(min(5.0, float(wait)) if wait.isdigit() else 1.0)
        if response.status == 416:
            raise Corrupted(
                f"More of {ref.digest[:12]} is here than node {peer} has.", fix="Fetch it from another holder."
            )
        if response.status != (206 if start else 200):
            raise _Broken(f"the other side answered with HTTP status {response.status}")
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _Broken("the other side did not resume where it was asked to")
        if response.content_length != ref.size - start:
            raise Corrupted(
                f"Node {peer} offers {response.content_length} bytes of {ref.digest[:12]}, not {ref.size - start}.",
                fix="Fetch it from another holder; this one's copy is damaged.",
            )

    @contextlib.contextmanager
    def _measured(self, peer: str) -> Iterator[Meter]:
        """What measures a transfer, with those that are under way from the same peer: they share the line."""
        meter, users = self._meters.get(peer) or (Meter(), 0)
        self._meters[peer] = (meter, users + 1)
        try:
            yield meter
        finally:
            _, users = self._meters[peer]
            if users > 1:
                self._meters[peer] = (meter, users - 1)
            else:
                del self._meters[peer]
                if meter.counted >= LEAST_BYTES:
                    self._on_moved(peer, meter.bandwidth)

    @contextlib.asynccontextmanager
    async def _only(self, digest: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(digest, (asyncio.Lock(), 0))
        self._locks[digest] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks[digest]
            if users > 1:
                self._locks[digest] = (lock, users - 1)
            else:
                del self._locks[digest]


class _Busy(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__(f"busy, again in {seconds} s")
        self.seconds = seconds


class _Broken(Exception):
    """The connection could not be opened or broke; what arrived is kept."""


class _Body:
    """A response's body in large pieces: the store makes a thread switch of each. What arrived before the connection
    broke is handed over before the error is."""

    def __init__(self, response: aiohttp.ClientResponse, chunk_bytes: int, meter: Meter) -> None:
        self._content = response.content
        self._chunk_bytes = chunk_bytes
        self._meter = meter
        self._clock = asyncio.get_running_loop().time
        self._error: aiohttp.ClientError | None = None

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if self._error is not None:
            raise self._error
        pieces: list[bytes] = []
        size = 0
        try:
            while size < self._chunk_bytes and (piece := await self._content.readany()):
                pieces.append(piece)
                size += len(piece)
                self._meter.add(len(piece), self._clock())
        except aiohttp.ClientError as error:
            if not pieces:
                raise
            self._error = error
        if not pieces:
            raise StopAsyncIteration
        return b"".join(pieces)


def _break_off(request: web.Request) -> None:
    """The peer takes no more of what is sent to it; that it does not have all it sees by the connection."""
    if request.transport is not None:
        request.transport.abort()


def _start(request: web.Request, size: int) -> tuple[int, bool]:
    """Offset to send from, and whether the request named one. Raises HTTPRequestRangeNotSatisfiable."""
    header = request.headers.get("Range")
    if header is None:
        return 0, False
    match = RANGE.fullmatch(header)
    if match is None or int(match[1]) > size:
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"})
    return int(match[1]), True


def _open(path: Path) -> tuple[io.FileIO, int]:
    file = io.FileIO(path)
    return file, file.seek(0, io.SEEK_END)


def _read(file: io.FileIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)
