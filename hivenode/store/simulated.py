"""Storage in memory that behaves like a disk: a write takes time, survives once it has been acknowledged, and may or
may not survive when its process dies before that."""

from __future__ import annotations

import asyncio
import hashlib
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from hivenode.errors import Corrupted, Exhausted, NotFound, Unavailable
from hivenode.spec.values import BlobRef
from hivenode.store.ports import AsyncBytes, Record


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    """One acknowledged call: records appended, a cell set, or records sealed."""

    records: tuple[Record, ...] = ()
    cell: str = ""
    value: bytes = b""
    snapshot: bytes = b""
    floors: dict[str, int] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Batch).decode


class SimulatedDisk:
    """What outlives a process. Hand the same disk to each life of a node, and call `crash` at the end of one that
    did not stop in good order.

    Args:
        sync_seconds: range of the time an fsync takes.
        torn: a crash may leave the first part of the write that was under way, for the next start to find.

    Attributes:
        full: set it, and nothing more can be written.
        damaged: what the next journal to be opened has to report.
        files: what workers have written, by name; not synced by anybody.
    """

    def __init__(
        self, rng: random.Random, *, sync_seconds: tuple[float, float] = (0.0005, 0.003), torn: bool = False
    ) -> None:
        self._rng = rng
        self._sync_seconds = sync_seconds
        self._torn = torn
        self._log: list[bytes] = []
        self._pending: list[bytes] = []
        self.damaged: dict[str, int] = {}
        self.full = False
        self.blobs: dict[str, bytes] = {}
        self.partial: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}

    def crash(self) -> None:
        """The process or the power is gone. Of the writes under way, the first few may have made it."""
        survivors = self._rng.randint(0, len(self._pending))
        self._log += self._pending[:survivors]
        lost = self._pending[survivors:]
        if self._torn and lost:
            self._log.append(lost[0][: self._rng.randrange(len(lost[0]))])
        self._pending.clear()
        for digest, data in self.partial.items():
            self.partial[digest] = data[: self._rng.randint(0, len(data))]
        self.files.clear()

    def damage(self, author: str, first: int) -> None:
        """Bits have turned over: the author's records from `first` on are found unreadable at the next start."""
        kept = [
            msgspec.structs.replace(
                batch, records=tuple(r for r in batch.records if r.author != author or r.number < first)
            )
            for batch in self.load()
        ]
        self._log = [_frame(batch) for batch in kept]
        self.damaged[author] = first

    def backup(self) -> tuple[bytes, ...]:
        """The journal as it is now."""
        return tuple(self._log)

    def restore(self, backup: Sequence[bytes]) -> None:
        """Put an earlier journal in place of this one, as a person does with the folder of a node that is down."""
        self._log = list(backup)

    @property
    def journal_bytes(self) -> int:
        return sum(map(len, self._log))

    def compact(self, batches: Sequence[_Batch]) -> None:
        """Write what the log says in fewer words; nothing is under way, and it takes no time."""
        self._log = [_frame(batch) for batch in batches]

    def load(self) -> list[_Batch]:
        """All that is whole, up to the first damage; the rest is cut off."""
        found: list[_Batch] = []
        for frame in self._log:
            if len(frame) < 4 or zlib.crc32(frame[4:]) != int.from_bytes(frame[:4], "big"):
                del self._log[len(found) :]
                break
            found.append(_decode(frame[4:]))
        return found

    async def write(self, batch: _Batch) -> None:
        """Durable on return. Raises Exhausted."""
        self.check_room()
        frame = _frame(batch)
        self._pending.append(frame)
        await self.sync()
        self._pending.remove(frame)
        self._log.append(frame)

    async def sync(self) -> None:
        """The time of one fsync."""
        await asyncio.sleep(self._rng.uniform(*self._sync_seconds))

    def check_room(self) -> None:
        if self.full:
            raise Exhausted("The disk is full.", fix="Make room.")


def _frame(batch: _Batch) -> bytes:
    body = _encode(batch)
    return zlib.crc32(body).to_bytes(4, "big") + body


class SimulatedJournal:
    """`Journal` on a simulated disk, as its last life left it."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self._disk = disk
        self._lock = asyncio.Lock()
        self._feeds: dict[str, list[Record]] = {}
        self._floors: dict[str, int] = {}
        self._snapshot: bytes | None = None
        self._cells: dict[str, bytes] = {}
        for batch in disk.load():
            self._take(batch)
        self._damaged, disk.damaged = disk.damaged, {}

    def records(self) -> Iterator[Record]:
        for author in sorted(self._feeds):
            yield from self._feeds[author]

    def snapshot(self) -> bytes | None:
        return self._snapshot

    @property
    def size(self) -> int:
        return self._disk.journal_bytes

    def cell(self, name: str) -> bytes | None:
        return self._cells.get(name)

    @property
    def damaged(self) -> Mapping[str, int]:
        return self._damaged

    async def append(self, records: Sequence[Record]) -> None:
        async with self._lock:
            fresh = self._fresh(records)
            if fresh:
                await self._write(_Batch(records=tuple(fresh)))

    async def set_cell(self, name: str, value: bytes) -> None:
        async with self._lock:
            await self._write(_Batch(cell=name, value=value))

    async def seal(self, snapshot: bytes, floors: Mapping[str, int]) -> None:
        async with self._lock:
            for author, floor in floors.items():
                if floor < self._floors.get(author, 0):
                    raise Corrupted(f"The floor of {author} would sink to {floor}.", fix="Restart the daemon.")
            await self._write(_Batch(snapshot=snapshot, floors=dict(floors)))
            self._disk.compact(self._whole())

    def _whole(self) -> list[_Batch]:
        """All that is here, in as few batches as say it."""
        cells = [_Batch(cell=name, value=value) for name, value in self._cells.items()]
        return [_Batch(snapshot=self._snapshot or b"", floors=self._floors), _Batch(tuple(self.records())), *cells]

    async def close(self) -> None:
        async with self._lock:
            pass

    async def _write(self, batch: _Batch) -> None:
        # Cancelled or not: what is on its way to the disk gets there.
        writing = asyncio.ensure_future(self._disk.write(batch))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            raise
        finally:
            if writing.done() and not writing.cancelled() and writing.exception() is None:
                self._take(batch)

    def _take(self, batch: _Batch) -> None:
        if batch.snapshot:
            self._snapshot, self._floors = batch.snapshot, {**self._floors, **batch.floors}
            for author, floor in batch.floors.items():
                self._feeds[author] = [record for record in self._feeds.get(author, []) if record.number > floor]
        for record in batch.records:
            self._feeds.setdefault(record.author, []).append(record)
        if batch.cell:
            self._cells[batch.cell] = batch.value

    def _fresh(self, records: Sequence[Record]) -> list[Record]:
        fresh: list[Record] = []
        heads: dict[str, int] = {}
        for record in records:
            held, floor = self._feeds.get(record.author, []), self._floors.get(record.author, 0)
            head = heads.get(record.author, floor + len(held))
            if record.number == head + 1:
                fresh.append(record)
                heads[record.author] = record.number
            elif not 1 <= record.number <= head:
                raise Corrupted(
                    f"Record {record.number} of {record.author} does not follow {head}.",
                    fix="Send the records between them first.",
                )
            elif record.number <= floor:
                continue
            elif [*held, *(r for r in fresh if r.author == record.author)][record.number - floor - 1] != record:
                raise Corrupted(
                    f"Another record {record.number} of {record.author} is there already.",
                    fix="Give that node a new home.",
                )
        return fresh


class SimulatedBlobs:
    """`BlobStore` on a simulated disk. Files are names in `SimulatedDisk.files`."""

    PREFIX = "/blobs/"

    def __init__(self, disk: SimulatedDisk) -> None:
        self._disk = disk
        self._receiving: dict[str, asyncio.Event] = {}

    def has(self, digest: str) -> bool:
        return digest in self._disk.blobs

    def path(self, digest: str) -> Path | None:
        """A name for `open_file`."""
        return Path(self.PREFIX + digest) if digest in self._disk.blobs else None

    def digests(self) -> Iterable[BlobRef]:
        return [BlobRef(digest, len(self._disk.blobs[digest])) for digest in sorted(self._disk.blobs)]

    async def put_file(self, path: Path, *, move: bool = False) -> BlobRef:
        data = open_file(self._disk, str(path))
        ref = await self.put_bytes(data)
        if move:
            self._disk.files.pop(str(path), None)
        return ref

    async def put_bytes(self, data: bytes) -> BlobRef:
        self._disk.check_room()
        await self._disk.sync()
        digest = hashlib.sha256(data).hexdigest()
        self._disk.blobs[digest] = data
        return BlobRef(digest, len(data))

    async def receive(self, ref: BlobRef, chunks: AsyncBytes) -> None:
        if self.has(ref.digest):
            return
        if (other := self._receiving.get(ref.digest)) is not None:
            await other.wait()
            if not self.has(ref.digest):
                raise Unavailable(f"The transfer of blob {ref.digest[:12]} broke off.", fix="Fetch the rest.")
            return
        ended = self._receiving[ref.digest] = asyncio.Event()
        try:
            await self._pour(ref, chunks)
        finally:
            del self._receiving[ref.digest]
            ended.set()

    def partial_size(self, digest: str) -> int:
        return len(self._disk.partial.get(digest, b""))

    async def read(self, digest: str, *, limit: int) -> bytes:
        data = self._disk.blobs.get(digest)
        if data is None:
            raise NotFound(f"Blob {digest[:12]} is not held here.", fix="Fetch it from a node that holds it.")
        if len(data) > limit:
            raise Exhausted(f"Blob {digest[:12]} has {len(data)} bytes, more than {limit}.", fix="Use its file.")
        return data

    async def verify(self, digest: str) -> bool:
        data = self._disk.blobs.get(digest)
        if data is not None and hashlib.sha256(data).hexdigest() != digest:
            del self._disk.blobs[digest]
            raise Corrupted(f"Blob {digest[:12]} has changed on disk and was removed.", fix="Check the disk.")
        return data is not None

    async def delete(self, digest: str) -> None:
        self._disk.partial.pop(digest, None)
        if self._disk.blobs.pop(digest, None) is not None:
            await self._disk.sync()

    async def _pour(self, ref: BlobRef, chunks: AsyncBytes) -> None:
        partial = self._disk.partial
        partial.setdefault(ref.digest, b"")
        async for chunk in chunks:
            self._disk.check_room()
            partial[ref.digest] += chunk
            if len(partial[ref.digest]) > ref.size:
                del partial[ref.digest]
                raise Corrupted(f"More than {ref.size} bytes of blob {ref.digest[:12]} came in.", fix="Fetch it again.")
        if len(partial[ref.digest]) < ref.size:
            raise Unavailable(f"Blob {ref.digest[:12]} ended too early.", fix="Fetch the rest.")
        await self._disk.sync()
        data = partial.pop(ref.digest)
        if hashlib.sha256(data).hexdigest() != ref.digest:
            raise Corrupted(f"The bytes received are not those of blob {ref.digest[:12]}.", fix="Fetch it elsewhere.")
        self._disk.blobs[ref.digest] = data


def open_file(disk: SimulatedDisk, name: str) -> bytes:
    """What a process on this machine reads from a file: a worker's own, or a blob's. Raises NotFound."""
    prefix = SimulatedBlobs.PREFIX
    data = disk.blobs.get(name.removeprefix(prefix)) if name.startswith(prefix) else disk.files.get(name)
    if data is None:
        raise NotFound(f"There is no file {name}.", fix="Check the path.")
    return data
