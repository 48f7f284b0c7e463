"""FlatBuffers without a schema: tables, vectors and strings by position, every offset checked.

Source: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

from hivenode.errors import Exhausted
from hivenode.models.identify.formats.windows import Window

MOST_STEPS = 5_000_000
LONGEST_TEXT = 1 << 16


class Buffer:
    """A flat buffer; all looks into it together are bounded."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self._left = MOST_STEPS

    def root(self) -> Table:
        return Table(self, self.number(0, 4))

    def number(self, at: int, width: int, *, signed: bool = False) -> int:
        """The number of `width` bytes at `at`.

        Raises:
            Corrupted: outside the buffer.
            Exhausted: looked at too often.
        """
        self._left -= 1
        if self._left < 0:
            raise Exhausted(f"{self.window.name} leads in circles.", fix="It is damaged or made to waste time.")
        return int.from_bytes(self.window.read(at, width), "little", signed=signed)


class Table:
    """A table: its fields are found over its vtable, absent ones have their defaults."""

    __slots__ = ("_fields", "at", "buffer")

    def __init__(self, buffer: Buffer, at: int) -> None:
        self.buffer = buffer
        self.at = at
        vtable = at - buffer.number(at, 4, signed=True)
        size = buffer.number(vtable, 2)
        if size < 4 or size % 2:
            raise buffer.window.broken(f"the table at byte {at} has no sound vtable")
        raw = buffer.window.read(vtable + 4, size - 4)
        self._fields = [int.from_bytes(raw[place : place + 2], "little") for place in range(0, len(raw), 2)]

    def _place(self, field: int) -> int:
        offset = self._fields[field] if field < len(self._fields) else 0
        return self.at + offset if offset else -1

    def number(self, field: int, width: int, *, default: int = 0, signed: bool = False) -> int:
        """A number kept in the table itself."""
        place = self._place(field)
        return default if place < 0 else self.buffer.number(place, width, signed=signed)

    def vector(self, field: int, width: int) -> tuple[int, int]:
        """Where the elements of a vector begin, and how many there are; (0, 0) if it is absent.

        Raises:
            Corrupted: it ends beyond the buffer.
        """
        place = self._place(field)
        if place < 0:
            return 0, 0
        at = place + self.buffer.number(place, 4)
        length = self.buffer.number(at, 4)
        if at + 4 + length * width > self.buffer.window.size:
            raise self.buffer.window.broken(f"a vector of {length} elements at byte {at} ends beyond the end")
        return at + 4, length

    def numbers(self, field: int, width: int, *, signed: bool = True, most: int = 100_000) -> list[int]:
        """The elements of a vector of numbers.

        Raises:
            Exhausted: more than `most`.
        """
        at, length = self.vector(field, width)
        if length > most:
            raise Exhausted(
                f"{self.buffer.window.name} has a list of {length} numbers.", fix="It is damaged; refuse it."
            )
        raw = self.buffer.window.read(at, length * width) if length else b""
        return [
            int.from_bytes(raw[place : place + width], "little", signed=signed) for place in range(0, len(raw), width)
        ]

    def tables(self, field: int) -> list[Table]:
        """The elements of a vector of tables."""
        at, length = self.vector(field, 4)
        places = range(at, at + 4 * length, 4)
        return [Table(self.buffer, place + self.buffer.number(place, 4)) for place in places]

    def table(self, field: int) -> Table | None:
        place = self._place(field)
        return None if place < 0 else Table(self.buffer, place + self.buffer.number(place, 4))

    def text(self, field: int) -> str:
        """A string; "" if it is absent."""
        at, length = self.vector(field, 1)
        if length > LONGEST_TEXT:
            raise Exhausted(f"{self.buffer.window.name} has a text of {length} bytes.", fix="It is damaged; refuse it.")
        return self.buffer.window.read(at, length).decode("utf-8", "backslashreplace") if length else ""
