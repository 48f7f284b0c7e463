"""The wire format of protocol buffers, walked without a schema and without touching what is skipped.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

from hivenode.errors import Exhausted
from hivenode.models.identify.formats.windows import Window

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MOST_FIELDS = 3_000_000
LONGEST_TEXT = 1 << 16
MOST_PACKED = 1 << 16

Field = tuple[int, int, int, int]
"""(field number, wire type, value, length): for BYTES the value is the offset of the payload and the length is its own;
for numbers the value is the number, unsigned, and the length is 0."""


class Wire:
    """Messages within one file; all walks together visit at most `MOST_FIELDS` fields."""

    def __init__(self, window: Window, *, most_fields: int = MOST_FIELDS) -> None:
        self.window = window
        self._left = most_fields

    def fields(self, start: int, length: int) -> Iterator[Field]:
        """The fields of the message at `start`, in their order. Payloads are neither read nor checked.

        Raises:
            Corrupted: a varint of more than ten bytes, an unknown wire type, a field past the message's end.
            Exhausted: more fields than a model has.
        """
        window = self.window
        position, end = start, start + length
        if end > window.size:
            raise window.broken(
                f"a message of {length} bytes starts at {start}, beyond which it has {window.size - start}"
            )
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise Exhausted(
                    f"{window.name} has more fields than any model.",
                    fix="It is damaged or made to waste time; refuse it.",
                )
            if position < window.base or position + 20 > window.limit:
                window.near(position, 20)
            buffer, at = window.buffer, position - window.base
            key = buffer[at]
            at += 1
            if key > 0x7F:
                key, at = self._varint(buffer, at - 1)
            kind, number = key & 7, key >> 3
            if number == 0:
                raise window.broken(f"a field at byte {position} has number 0")
            if kind in (BYTES, VARINT):
                if at >= len(buffer):
                    raise window.broken(f"it ends within a field at byte {position}")
                value = buffer[at]
                at += 1
                if value > 0x7F:
                    value, at = self._varint(buffer, at - 1)
                after = window.base + at
                if kind == BYTES:
                    if after + value > end:
                        raise window.broken(
                            f"a field at byte {position} claims {value} bytes, its message has {end - after}"
                        )
                    position = after + value
                    yield number, BYTES, after, value
                    continue
                position = after
                if position > end:
                    raise window.broken(f"a field at byte {end} runs past its message")
                yield number, VARINT, value, 0
            elif kind in (FIXED32, FIXED64):
                width = 4 if kind == FIXED32 else 8
                position = window.base + at + width
                if position > end:
                    raise window.broken(f"a field at byte {position} runs past its message")
                yield number, kind, int.from_bytes(buffer[at : at + width], "little"), 0
            else:
                raise window.broken(f"a field at byte {position} is of wire type {kind}, which is none")

    def _varint(self, buffer: bytes, at: int) -> tuple[int, int]:
        value = shift = 0
        for place in range(at, at + 10):
            if place >= len(buffer):
                raise self.window.broken("it ends within a number")
            byte = buffer[place]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, place + 1
            shift += 7
        raise self.window.broken(f"a number at byte {self.window.base + at} is longer than 64 bits")

    def text(self, start: int, length: int, *, longest: int = LONGEST_TEXT) -> str:
        """The string at `start`; bytes that are no UTF-8 are shown as such.

        Raises:
            Exhausted: longer than a name may be.
        """
        if length > longest:
            raise Exhausted(
                f"{self.window.name} has a name of {length} bytes at {start}.",
                fix="It is damaged or made to waste memory.",
            )
        return self.window.read(start, length).decode("utf-8", "backslashreplace")

    def numbers(self, field: Field) -> list[int]:
        """The signed numbers of one occurrence of a repeated varint field, packed or not.

        Raises:
            Exhausted: more than a shape or a list of axes has.
        """
        _, kind, value, length = field
        if kind != BYTES:
            return [signed(value)]
        if length > MOST_PACKED:
            raise Exhausted(
                f"{self.window.name} has a list of {length} bytes at {value}.",
                fix="It is damaged or made to waste memory.",
            )
        buffer = self.window.read(value, length)
        found: list[int] = []
        at = 0
        while at < len(buffer):
            number, at = self._varint(buffer, at)
            found.append(signed(number))
        return found


def signed(value: int) -> int:
    """A varint of type int32 or int64: two's complement in 64 bits."""
    return value - (1 << 64) if value >> 63 else value
