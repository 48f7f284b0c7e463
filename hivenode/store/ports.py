"""What the rest of the node asks of storage. Disk in `journal` and `blobs`; memory in `simulated`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from hivenode.spec.values import BlobRef


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One opaque journal entry: the encoded event `number` (from 1, no gaps) of `author`'s feed."""

    author: str
    number: int
    data: bytes


class Journal(Protocol):
    """Append-only records plus named cells. Whatever an awaited call wrote survives power loss."""

    def records(self) -> Iterator[Record]:
        """All records, by author then number. Called once, at start, before the loop serves anything."""
        ...

    def snapshot(self) -> bytes | None:
        """What `seal` was last given. Called once, at start."""
        ...

    @property
    def size(self) -> int:
        """Bytes on disk."""
        ...

    def cell(self, name: str) -> bytes | None:
        """A cell as last written (cached in memory, never waits)."""
        ...

    @property
    def damaged(self) -> Mapping[str, int]:
        """Authors whose last records were found damaged and cut off at open, with the first number lost."""
        ...

    async def append(self, records: Sequence[Record]) -> None:
        """Durable on return, all or nothing. Raises Exhausted when the disk is full, Corrupted on a gap or fork."""
        ...

    async def seal(self, snapshot: bytes, floors: Mapping[str, int]) -> None:
        """Keep a snapshot in place of the records up to these numbers (by author): both or neither, durable on return.
        The next record of such an author follows its floor, or what is held beyond it. Raises Exhausted; Corrupted
        if a floor lies below an earlier one."""
        ...

    async def set_cell(self, name: str, value: bytes) -> None:
        """Durable on return (votes, fences, the boot counter)."""
        ...

    async def close(self) -> None: ...


class BlobStore(Protocol):
    """Immutable files named by SHA-256. Hashing and file work never run on the event loop."""

    def has(self, digest: str) -> bool: ...

    def path(self, digest: str) -> Path | None:
        """The file of a blob that is held, else None. In simulation a name that only the simulated workers can read."""
        ...

    def digests(self) -> Iterable[BlobRef]: ...

    async def put_file(self, path: Path, *, move: bool = False) -> BlobRef:
        """Take a file in (hash, fsync, rename). Raises Exhausted, NotFound."""
        ...

    async def put_bytes(self, data: bytes) -> BlobRef: ...

    async def receive(self, ref: BlobRef, chunks: AsyncBytes) -> None:
        """Write an incoming stream, checking length and digest; a partial file is kept for resuming.
        Raises Corrupted if the bytes are not those of `ref`."""
        ...

    def partial_size(self, digest: str) -> int:
        """Bytes already received of a blob whose transfer broke off."""
        ...

    async def read(self, digest: str, *, limit: int) -> bytes:
        """Whole content, for small blobs. Raises NotFound, Exhausted above `limit`."""
        ...

    async def verify(self, digest: str) -> bool:
        """Whether a blob is held and its bytes are what they should be; a damaged one is removed. Raises Corrupted
        then: it was held, and is not any more."""
        ...

    async def delete(self, digest: str) -> None: ...


class AsyncBytes(Protocol):
    """An asynchronous stream of byte chunks."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
