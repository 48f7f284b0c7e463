"""The LZ4 frame format, decoded block by block. https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md (1.6.4)

Checksums (xxHash-32) are not verified: they guard against accidents, which the sizes and the content's reader catch.
"""

from __future__ import annotations

MAGIC = b"\x04\x22\x4d\x18"
HISTORY = 64 << 10
_BLOCK_SIZES = {4: 64 << 10, 5: 256 << 10, 6: 1 << 20, 7: 4 << 20}


class Lz4Error(ValueError):
    """The frame is damaged."""


class Lz4Decompressor:
    """One frame, with the interface of `bz2.BZ2Decompressor`: what does not fit `max_length` waits inside."""

    def __init__(self) -> None:
        self.eof = False
        self.unused_data = b""
        self.needs_input = True
        self._packed = bytearray()
        self._ready = bytearray()
        self._history = b""
        self._block_size = 0
        self._linked = False
        self._block_checksum = self._content_checksum = 0

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Up to `max_length` bytes.

        Raises:
            Lz4Error: no frame, or damaged.
        """
        self._packed += data
        if not self._block_size and not self.eof:
            self._read_header()
        while self._block_size and not self.eof and len(self._ready) < max_length and self._read_block():
            pass
        taken = bytes(self._ready[:max_length])
        del self._ready[:max_length]
        self.needs_input = not self._ready and not self.eof
        return taken

    def _read_header(self) -> None:
        packed = self._packed
        if len(packed) < 7:
            return
        if packed[:4] != MAGIC:
            raise Lz4Error("it does not begin as a frame")
        flags, sizes = packed[4], packed[5]
        if flags >> 6 != 1 or flags & 0x02 or sizes & 0x8F:
            raise Lz4Error("its descriptor is of no known version")
        if flags & 0x01:
            raise Lz4Error("it needs a dictionary that is not in it")
        length = 7 + (8 if flags & 0x08 else 0)
        if len(packed) < length:
            return
        size = _BLOCK_SIZES.get(sizes >> 4)
        if size is None:
            raise Lz4Error("its block size is none of the format's")
        self._block_size = size
        self._linked = not flags & 0x20
        self._block_checksum = 4 if flags & 0x10 else 0
        self._content_checksum = 4 if flags & 0x04 else 0
        del packed[:length]

    def _read_block(self) -> bool:
        """Unpack the next block if it is all here."""
        packed = self._packed
        if len(packed) < 4:
            return False
        length = int.from_bytes(packed[:4], "little")
        if length == 0:
            end = 4 + self._content_checksum
            if len(packed) < end:
                return False
            self.unused_data = bytes(packed[end:])
            packed.clear()
            self.eof = True
            return True
        stored, length = length >> 31, length & 0x7FFFFFFF
        if length > self._block_size:
            raise Lz4Error("a block is longer than blocks may be")
        end = 4 + length
        if len(packed) < end + self._block_checksum:
            return False
        block = bytes(packed[4:end])
        del packed[: end + self._block_checksum]
        unpacked = block if stored else unpack_block(block, self._history if self._linked else b"", self._block_size)
        if self._linked:
            self._history = (self._history + unpacked)[-HISTORY:]
        self._ready += unpacked
        return True


def unpack_block(block: bytes, history: bytes, most: int) -> bytes:
    """One LZ4 block. https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md

    Args:
        history: bytes before the block that it may point back to.
        most: bytes it may unpack to.

    Raises:
        Lz4Error: it points before its beginning, ends early, or unpacks to more.
    """
    out = bytearray(history)
    limit = len(history) + most
    at, end = 0, len(block)
    try:
        while True:
            token = block[at]
            at += 1
            literals = token >> 4
            if literals == 15:
                while (more := block[at]) == 255:
                    literals += 255
                    at += 1
                literals += more
                at += 1
            if at + literals > end or len(out) + literals > limit:
                raise Lz4Error("a block unpacks to more than it may, or ends early")
            out += block[at : at + literals]
            at += literals
            if at == end:
                return bytes(memoryview(out)[len(history) :])
            distance = block[at] | block[at + 1] << 8
            at += 2
            length = (token & 15) + 4
            if length == 19:
                while (more := block[at]) == 255:
                    length += 255
                    at += 1
                length += more
                at += 1
            start = len(out) - distance
            if not distance or start < 0 or len(out) + length > limit:
                raise Lz4Error("a block points before its beginning, or unpacks to more than it may")
            if distance >= length:
                out += out[start : start + length]
            else:
                pattern = out[start:]
                out += (pattern * (length // distance + 1))[:length]
    except IndexError:
        raise Lz4Error("a block ends early") from None
