"""Blobs on disk: `ab/abcdef...` under one directory, each named by its SHA-256; incoming ones are in `partial/`.

A file appears under its name only whole, synced and checked, so its being there is the proof that it is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hivenode.errors import Corrupted, Exhausted, HiveError, InvalidInput, NotFound, Unavailable
from hivenode.spec.values import BlobRef
from hivenode.store.ports import AsyncBytes

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES = 1 << 20
WRITE_BYTES = 1 << 20
"""Incoming chunks are put together to about this size before a thread is asked to write them."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PARTIAL = "partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


class FileBlobs:
    """`store.ports.BlobStore` on a directory. Used from one event loop, by one process at a time.

    Args:
        directory: made when needed. It is scanned (not hashed) here, once.
        threads: most file operations that run at one time.
        partial_bytes: over this much of broken-off transfers, the oldest are dropped at start.
    """

    def __init__(self, directory: Path, *, threads: int = 4, partial_bytes: int = 16 << 30) -> None:
        self._directory = directory
        self._partial = directory / _PARTIAL
        self._slots = asyncio.Semaphore(threads)
        self._receiving: dict[str, asyncio.Event] = {}
        with _disk(directory):
            self._partial.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sizes = dict(sorted(_scan(directory)))
            self._tidy_partial(partial_bytes)

    def has(self, digest: str) -> bool:
        return digest in self._sizes

    def path(self, digest: str) -> Path | None:
        return self._place(digest) if digest in self._sizes else None

    def digests(self) -> Iterable[BlobRef]:
        """All that is held, by digest."""
        return [BlobRef(digest, self._sizes[digest]) for digest in sorted(self._sizes)]

    async def put_file(self, path: Path, *, move: bool = False) -> BlobRef:
        """Take a file in.

        Args:
            move: the file may be used up (a rename, where it is on the same disk).

        Raises:
            NotFound: there is no such file.
            Exhausted: the disk is full; nothing is left behind and `path` is as it was.
        """
        ref = await self._thread(self._take, path, move)
        self._sizes[ref.digest] = ref.size
        return ref

    async def put_bytes(self, data: bytes) -> BlobRef:
        """Take bytes in. Raises Exhausted."""
        ref = await self._thread(self._store, data)
        self._sizes[ref.digest] = ref.size
        return ref

    async def receive(self, ref: BlobRef, chunks: AsyncBytes) -> None:
        """Write an incoming stream that begins at offset `partial_size(ref.digest)`. What arrived is kept when the
        stream or the disk fails, for the next try. If the same blob is being received already, this waits for that
        transfer and takes nothing from `chunks`.

        Raises:
            Corrupted: more bytes than the blob has, or not its bytes (then nothing is kept).
            Unavailable: the stream ended too early, or the transfer waited for broke off.
            Exhausted: the disk is full.
        """
        _check(ref.digest)
        if ref.digest in self._sizes:
            return
        if (other := self._receiving.get(ref.digest)) is not None:
            await other.wait()
            if ref.digest not in self._sizes:
                raise Unavailable(f"The transfer of blob {ref.digest[:12]} broke off.", fix="Fetch the rest.")
            return
        ended = self._receiving[ref.digest] = asyncio.Event()
        try:
            incoming = _Incoming(self._partial / ref.digest, ref)
            try:
                await self._thread(incoming.open)
                await self._pour(incoming, chunks)
                await self._thread(self._finish, incoming)
            finally:
                incoming.close()
            self._sizes[ref.digest] = ref.size
        finally:
            del self._receiving[ref.digest]
            ended.set()

    def partial_size(self, digest: str) -> int:
        if not _DIGEST.fullmatch(digest):
            return 0
        try:
            return (self._partial / digest).stat().st_size
        except FileNotFoundError:
            return 0

    async def read(self, digest: str, *, limit: int) -> bytes:
        """The whole content.

        Raises:
            NotFound: it is not held.
            Exhausted: it is larger than `limit` bytes.
            Corrupted: the file is no longer what it was; it is not held any more.
        """
        size = self._sizes.get(digest)
        if size is None:
            raise _not_held(digest)
        if size > limit:
            raise Exhausted(
                f"Blob {digest[:12]} has {size} bytes, more than the {limit} that are read at once.",
                fix="Use its file instead.",
            )
        try:
            return await self._thread(self._load, digest)
        except (NotFound, Corrupted):
            self._sizes.pop(digest, None)
            raise

    async def verify(self, digest: str) -> bool:
        """Whether it is held, by its bytes. Raises Corrupted when they have changed or are gone: it is not held any
        more."""
        if digest not in self._sizes:
            return False
        try:
            await self._thread(self._check_bytes, digest)
        except Corrupted:
            self._sizes.pop(digest, None)
            raise
        return True

    async def delete(self, digest: str) -> None:
        """Remove a blob and what has arrived of it. It need not be there."""
        _check(digest)
        self._sizes.pop(digest, None)
        await self._thread(self._remove, digest)

    # --- in threads ---------------------------------------------------------------------------------------------

    async def _thread(self, work: Callable[..., T], *args: object) -> T:
        """Run in a thread, and do not return before it has ended: when cancelled, files are not left in its hands."""
        async with self._slots:
            job = asyncio.ensure_future(asyncio.to_thread(self._guarded, work, *args))
            try:
                return await asyncio.shield(job)
            except asyncio.CancelledError:
                while not job.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait([job])
                if not job.cancelled():
                    job.exception()  # looked at: the cancellation is what counts
                raise

    def _guarded(self, work: Callable[..., T], *args: object) -> T:
        with _disk(self._directory):
            return work(*args)

    async def _pour(self, incoming: _Incoming, chunks: AsyncBytes) -> None:
        waiting: list[bytes] = []
        size = 0
        try:
            async for chunk in chunks:
                waiting.append(bytes(chunk))
                size += len(chunk)
                if size >= WRITE_BYTES:
                    batch, waiting, size = waiting, [], 0
                    await self._thread(incoming.write, batch)
        finally:
            if waiting:
                await self._thread(incoming.write, waiting)

    def _take(self, path: Path, move: bool) -> BlobRef:
        if not path.is_file():
            raise NotFound(f"There is no file {path}.", fix="Check the path.")
        if move and not path.is_symlink() and path.stat().st_dev == self._partial.stat().st_dev:
            ref = _hash_file(path)
            if not self._place(ref.digest).exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                path.chmod(0o600)
                self._settle(path, ref.digest)
            path.unlink(missing_ok=True)
            return ref
        with path.open("rb") as source:
            ref = self._copy(lambda: source.read(CHUNK_BYTES))
        if move:
            path.unlink(missing_ok=True)
        return ref

    def _store(self, data: bytes) -> BlobRef:
        view = iter((data, b""))
        return self._copy(lambda: next(view))

    def _copy(self, read: Callable[[], bytes]) -> BlobRef:
        scratch = self._partial / f"put-{secrets.token_hex(8)}"
        seen, size = hashlib.sha256(), 0
        try:
            with scratch.open("xb") as out:
                while chunk := read():
                    seen.update(chunk)
                    size += len(chunk)
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            digest = seen.hexdigest()
            if not self._place(digest).exists():
                self._settle(scratch, digest)
        finally:
            scratch.unlink(missing_ok=True)
        return BlobRef(digest, size)

    def _finish(self, incoming: _Incoming) -> None:
        ref, path = incoming.ref, incoming.path
        if incoming.size < ref.size:
            raise Unavailable(
                f"Blob {ref.digest[:12]} ended after {incoming.size} of {ref.size} bytes.", fix="Fetch the rest."
            )
        incoming.sync()
        if incoming.digest != ref.digest:
            path.unlink(missing_ok=True)
            raise Corrupted(
                f"The bytes received are not those of blob {ref.digest[:12]}.", fix="Fetch it from another node."
            )
        self._settle(path, ref.digest)

    def _settle(self, path: Path, digest: str) -> None:
        """Give a synced file its name, durably."""
        place = self._place(digest)
        if not place.parent.exists():
            place.parent.mkdir(mode=0o700, exist_ok=True)
            _sync(self._directory)
        path.replace(place)
        _sync(place.parent)

    def _load(self, digest: str) -> bytes:
        try:
            data = self._place(digest).read_bytes()
        except FileNotFoundError:
            raise _not_held(digest) from None
        if hashlib.sha256(data).hexdigest() != digest:
            self._remove(digest)
            raise _changed(digest, self._directory)
        return data

    def _check_bytes(self, digest: str) -> None:
        try:
            whole = _hash_file(self._place(digest)).digest == digest
        except OSError as error:
            raise Corrupted(
                f"Blob {digest[:12]} in {self._directory} cannot be read: {error.strerror}.",
                fix="Check the disk; another node that holds it can give it again.",
            ) from error
        if not whole:
            self._remove(digest)
            raise _changed(digest, self._directory)

    def _remove(self, digest: str) -> None:
        self._place(digest).unlink(missing_ok=True)
        (self._partial / digest).unlink(missing_ok=True)

    def _place(self, digest: str) -> Path:
        return self._directory / digest[:2] / digest

    def _tidy_partial(self, keep_bytes: int) -> None:
        """Drop what a killed `put` left, and the oldest broken-off transfers when they are too much."""
        kept: list[tuple[float, int, Path]] = []
        for path in self._partial.iterdir():
            stat = path.stat()
            if _DIGEST.fullmatch(path.name) and path.name not in self._sizes:
                kept.append((stat.st_mtime, stat.st_size, path))
            else:
                path.unlink()
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= keep_bytes:
                break
            path.unlink()
            total -= size


class _Incoming:
    """The partial file of one blob, and the hash of what is in it. One thread at a time."""

    def __init__(self, path: Path, ref: BlobRef) -> None:
        self.path = path
        self.ref = ref
        self.size = 0
        self._hash: _Hash = hashlib.sha256()
        self._file: FileIO | None = None

    def open(self) -> None:
        """Open for appending, and hash what is there."""
        file = self._file = FileIO(self.path, "a+")
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            self._hash.update(chunk)
            self.size += len(chunk)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, chunks: list[bytes]) -> None:
        assert self._file is not None
        data = b"".join(chunks)
        if self.size + len(data) > self.ref.size:
            self.path.unlink(missing_ok=True)
            raise Corrupted(
                f"More than the {self.ref.size} bytes of blob {self.ref.digest[:12]} came in.",
                fix="Fetch it from another node.",
            )
        view = memoryview(data)
        while view:
            done = self._file.write(view)
            self._hash.update(view[:done])
            self.size += done
            view = view[done:]

    def sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@contextlib.contextmanager
def _disk(directory: Path) -> Iterator[None]:
    """Say what the disk says in words a person can use."""
    try:
        yield
    except HiveError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise Exhausted(f"The disk that holds {directory} is full.", fix="Free some space there.") from error
        raise InvalidInput(
            f"The blobs in {directory} cannot be reached: {error.strerror} ({error.filename}).",
            fix="Check the directory, its owner and the disk.",
        ) from error


def _scan(directory: Path) -> Iterator[tuple[str, int]]:
    for shelf in os.scandir(directory):
        if len(shelf.name) == 2 and shelf.is_dir(follow_symlinks=False):
            for entry in os.scandir(shelf.path):
                if _DIGEST.fullmatch(entry.name) and entry.name[:2] == shelf.name and entry.is_file():
                    yield entry.name, entry.stat().st_size


def _hash_file(path: Path) -> BlobRef:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return BlobRef(digest, file.tell())


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check(digest: str) -> None:
    """A digest becomes a file name: nothing else may."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput(
            f"{digest[:80]!r} is not a SHA-256 digest.", fix="Give 64 lower-case hexadecimal characters."
        )


def _changed(digest: str, directory: Path) -> Corrupted:
    return Corrupted(
        f"Blob {digest[:12]} in {directory} has changed on disk and was removed.",
        fix="Check the disk; another node that holds it can give it again.",
    )


def _not_held(digest: str) -> NotFound:
    return NotFound(f"Blob {digest[:12]} is not held here.", fix="Fetch it from a node that holds it.")
