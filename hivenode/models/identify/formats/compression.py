"""Compressed streams, unpacked as they are read and never further: time and memory are bounded, whatever they claim."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import NoReturn, Protocol

from hivenode.errors import Corrupted, Exhausted
from hivenode.models.identify.formats.lz4 import MAGIC as LZ4_MAGIC
from hivenode.models.identify.formats.lz4 import Lz4Decompressor, Lz4Error
from hivenode.models.identify.source import Readable

MOST_UNPACKED = 1 << 30
"""Bytes one stream may be unpacked to, most of them arrays that are only passed over."""
MOST_PACKED = 512 << 20
"""Bytes of a compressed file that may be read: arrays lie between what is wanted, and cannot be jumped over."""
LZMA_MEMORY = 80 << 20
"""Level 9 needs 65 MiB to unpack; a hostile header may ask for 4 GiB."""
KEPT = 2 << 20
"""Bytes kept behind the furthest one, so that small steps back cost nothing."""
MOST_MEMBERS = 4096
PACKED_CHUNK = 64 << 10
CHUNK = 512 << 10


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Zlib:
    """zlib and gzip with the interface of the others: input not yet used waits inside."""

    def __init__(self, bits: int) -> None:
        self._machine = zlib.decompressobj(bits)

    @property
    def eof(self) -> bool:
        return self._machine.eof

    @property
    def unused_data(self) -> bytes:
        return self._machine.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._machine.decompress(self._machine.unconsumed_tail + data, max_length)


_MAKERS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": lambda: _Zlib(16 + zlib.MAX_WBITS),
    "zlib": lambda: _Zlib(zlib.MAX_WBITS),
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY),
    "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=LZMA_MEMORY),
    "lz4": Lz4Decompressor,
}
_MAGICS = (
    ("gzip", b"\x1f\x8b\x08"), ("bz2", b"BZh"), ("xz", b"\xfd7zXZ\x00"), ("lz4", LZ4_MAGIC), ("lzma", b"\x5d\x00\x00"),
)  # fmt: skip
STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", LZ4_MAGIC, b"\x5d\x00", b"\x78")
_FAILURES = (zlib.error, lzma.LZMAError, OSError, EOFError, Lz4Error, ValueError)


def compression(head: bytes) -> str | None:
    """How what begins with `head` is compressed: gzip, zlib, bz2, xz, lzma or lz4; None if it is not."""
    for kind, magic in _MAGICS:
        if head.startswith(magic):
            return kind
    if len(head) >= 2 and head[0] == 0x78 and int.from_bytes(head[:2], "big") % 31 == 0 and not head[1] & 0x20:
        return "zlib"
    return None


class Unpacked:
    """What a compressed stream unpacks to, read forwards; a long step back begins again.

    Args:
        packed: the compressed bytes.
        size: how many there are.
        kind: from `compression`.
        name: for errors.
        most: bytes that may be unpacked in all.

    Attributes:
        rest: bytes after the end of the stream, known when it has been read to its end.
    """

    def __init__(self, packed: Readable, size: int, kind: str, name: str, *, most: int = MOST_UNPACKED) -> None:
        self._packed = packed
        self._size = size
        self._kind = kind
        self._name = name
        self._left = most
        self.rest = 0
        self._restart()

    def some(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only where the stream ends.

        Raises:
            Corrupted: damaged, or cut short.
            Exhausted: it unpacks to more than it may.
        """
        if offset < self._base:
            self._restart()
        while self._base + len(self._held) < offset + length and not self._ended:
            self._more()
            surplus = min(len(self._held) - KEPT, offset - self._base)
            if surplus > CHUNK:
                del self._held[:surplus]
                self._base += surplus
        start = offset - self._base
        return bytes(self._held[start : start + length])

    def _restart(self) -> None:
        self._machine = _MAKERS[self._kind]()
        self._held = bytearray()
        self._base = 0
        """Offset of the first byte held."""
        self._at = 0
        """Offset in the packed bytes."""
        self._ended = False
        self._pending = b""
        self._members = 1

    def _more(self) -> None:
        if self._machine.eof:
            self._next_member()
            return
        data = b""
        try:
            part = self._machine.decompress(b"", CHUNK) if self._at and not self._pending else b""
            if not part and not self._machine.eof:
                data = self._pending or self._packed.some(self._at, PACKED_CHUNK)
                self._at += 0 if self._pending else len(data)
                self._pending = b""
                part = self._machine.decompress(data, CHUNK)
        except _FAILURES as error:
            self._fail(str(error)[:120])
        if not part and not data and not self._machine.eof:
            self._fail("it is cut short")
        self._left -= len(part)
        if self._left < 0:
            raise Exhausted(
                f"{self._name} unpacks to more than may be read of one file.",
                fix="It is made to waste memory, or larger than is read here: save it without compression.",
            )
        self._held += part

    def _next_member(self) -> None:
        """A gzip, bzip2, xz or lz4 file may go on with another stream; what else follows is no part of it."""
        unused = self._machine.unused_data
        following = unused or self._packed.some(self._at, 16)
        if compression(following[:16]) == self._kind and self._kind not in {"zlib", "lzma"}:
            self._members += 1
            if self._members > MOST_MEMBERS:
                self._fail(f"it consists of more than {MOST_MEMBERS} streams")
            self._pending = unused
            self._machine = _MAKERS[self._kind]()
            return
        self.rest = self._size - self._at + len(unused)
        self._ended = True

    def _fail(self, what: str) -> NoReturn:
        raise Corrupted(
            f"{self._name} cannot be unpacked ({self._kind}): {what}.", fix="Fetch it again from where it was made."
        )
