"""LevelDB tables, as TensorFlow's checkpoint indexes are: sorted keys and values in blocks.

Source: https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

from __future__ import annotations

from collections.abc import Iterator

from hivenode.errors import Exhausted, InvalidInput
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.report import LONGEST_NAME

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48
LARGEST_BLOCK = 16 << 20
MOST_ENTRIES = 1_000_000
LARGEST_TOTAL = 48 << 20


class Table:
    """The entries of a table.

    Raises (while read):
        Corrupted: blocks outside the file, keys that share more than there is.
        Exhausted: larger than any index.
        InvalidInput: packed blocks, which TensorFlow does not write.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self._total = 0
        self._entries = 0

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value, in the order of the keys."""
        window = self.window
        if window.size < FOOTER:
            raise window.broken("it is too short for a table")
        footer = window.read(window.size - FOOTER, FOOTER)
        if footer[-8:] != MAGIC:
            raise window.broken("it has no table's footer; it is cut short")
        _, at = self._handle(footer, 0)
        index, _ = self._handle(footer, at)
        last = b""
        for _, raw in list(self._block(*index)):
            handle, _ = self._handle(raw, 0)
            for key, value in self._block(*handle):
                if key < last:
                    raise window.broken("its keys are in no order")
                last = key
                yield key, value

    def _handle(self, raw: bytes, at: int) -> tuple[tuple[int, int], int]:
        offset, at = self._varint(raw, at)
        size, at = self._varint(raw, at)
        return (offset, size), at

    def _varint(self, raw: bytes, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(raw):
                break
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise self.window.broken("it has a number that does not end")

    def _block(self, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        """The entries of one block, whose keys share beginnings."""
        self._total += size
        if size > LARGEST_BLOCK or self._total > LARGEST_TOTAL:
            raise Exhausted(f"{self.window.name} has blocks larger than any index.", fix="It is damaged; refuse it.")
        raw = self.window.read(offset, size + 5)
        if raw[size]:
            raise InvalidInput(
                f"{self.window.name} is packed, which TensorFlow's checkpoints are not.", fix="Save it with TensorFlow."
            )
        restarts = int.from_bytes(raw[size - 4 : size], "little") if size >= 4 else -1
        end = size - 4 - 4 * restarts
        if restarts < 0 or end < 0:
            raise self.window.broken(f"the block at byte {offset} has no sound end")
        at, key = 0, b""
        while at < end:
            shared, at = self._varint(raw, at)
            own, at = self._varint(raw, at)
            length, at = self._varint(raw, at)
            self._entries += 1
            if shared > len(key) or at + own + length > end:
                raise self.window.broken(f"an entry of the block at byte {offset} does not fit")
            if self._entries > MOST_ENTRIES or shared + own > LONGEST_NAME:
                raise Exhausted(f"{self.window.name} has too many or too long keys.", fix="Refuse it; no model has.")
            key = key[:shared] + raw[at : at + own]
            at += own
            yield key, raw[at : at + length]
            at += length
