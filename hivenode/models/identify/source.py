"""Bounded reading of files nobody vouches for: bytes are counted, and a reader can't take more than its share."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from hivenode.errors import Corrupted, Exhausted, InvalidInput, NotFound

HEADER_BUDGET = 64 << 20
"""Bytes one identification may read in all. Vocabularies and long headers fit; weights do not, and are not wanted."""
LARGEST_READ = 32 << 20


class Source:
    """One regular file, open for reading at any offset.

    Raises (on opening):
        NotFound: it does not exist.
        InvalidInput: it is no regular file, or may not be read.
    """

    def __init__(self, path: Path, *, budget: int = HEADER_BUDGET, name: str = "") -> None:
        self.path = path
        self.name = name or path.name
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"There is no file {path}.", fix="Check the path.") from None
        except PermissionError:
            raise InvalidInput(f"{path} may not be read by this user.", fix=f"Allow it: chmod u+r {path}") from None
        except OSError as error:
            raise InvalidInput(f"{path} cannot be opened: {error.strerror}.", fix="Give a readable file.") from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise InvalidInput(f"{path} is not a regular file.", fix="Give a model file or a directory that holds one.")
        self.size = status.st_size
        self.bytes_read = 0
        self.kept: dict[str, object] = {}
        """What one look at the file has parsed and the next may use: the archive's directory."""
        self._budget = budget

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises:
            Corrupted: the file ends before that, or the numbers make no sense.
            Exhausted: more than one identification may read.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Corrupted(
                f"{self.name} is cut short or lies about its sizes: "
                f"{length} bytes are wanted at {offset}, it has {self.size}.",
                fix="Fetch the file again.",
            )
        if length > LARGEST_READ or self.bytes_read + length > self._budget:
            raise Exhausted(
                f"{self.name} wants more read than its headers may take ({self._budget >> 20} MiB).",
                fix="The file is damaged or made to waste memory; fetch it from where it was made.",
            )
        parts: list[bytes] = []
        left = length
        while left:
            try:
                part = os.pread(self._descriptor, left, offset + length - left)
            except OSError as error:
                raise Corrupted(f"{self.name} cannot be read: {error.strerror}.", fix="Check the disk.") from error
            if not part:
                raise Corrupted(f"{self.name} became shorter while it was read.", fix="Wait until it is written.")
            parts.append(part)
            left -= len(part)
        self.bytes_read += length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def head(self, length: int = 4096) -> bytes:
        """The first bytes, as many as there are up to `length`."""
        return self.read(0, min(length, self.size))

    def tail(self, length: int) -> bytes:
        """The last bytes, as many as there are up to `length`."""
        taken = min(length, self.size)
        return self.read(self.size - taken, taken)

    def some(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only where the file ends."""
        return self.read(offset, max(0, min(length, self.size - offset)))

    def part(self, start: int, size: int) -> Part:
        """A range of this file as a file of its own, nothing read yet.

        Raises:
            Corrupted: it does not lie within the file.
        """
        return Part(self, start, size)


class Part:
    """A range of bytes of a source: an entry kept uncompressed in an archive, a pickle after another."""

    def __init__(self, source: Source, start: int, size: int) -> None:
        if start < 0 or size < 0 or start + size > source.size:
            raise Corrupted(
                f"{source.name} is cut short or lies about its sizes: it has {source.size} bytes, "
                f"of which {size} are wanted at {start}.",
                fix="Fetch the file again.",
            )
        self.source = source
        self.start = start
        self.size = size

    def some(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only where the part ends."""
        return self.source.read(self.start + offset, max(0, min(length, self.size - offset)))


class Readable(Protocol):
    """What can be read from anywhere: a source, a part of one, or what a decompressor yields."""

    def some(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only where the data ends."""
        ...


class Held:
    """Bytes already in memory, as something to read from."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def some(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]
