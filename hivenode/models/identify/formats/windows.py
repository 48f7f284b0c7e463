"""Many small reads at growing offsets, over something that is read in ranges."""

from __future__ import annotations

from hivenode.errors import Corrupted
from hivenode.models.identify.source import Readable

SMALLEST_READ = 512
"""After a jump: a header that stands between two tensors is seldom longer."""
SMALLEST_GAP = 64
"""What is left out between two reads that still follow each other: the rest of a short text."""
LARGEST_CHUNK = 256 << 10
"""Where reads follow each other, so that a long run of small fields costs few system calls."""


class Window:
    """A view of `size` bytes with one buffer that follows the reader: small after a jump, growing while reads adjoin.

    Attributes:
        buffer: bytes held now.
        base: offset of its first byte.
        limit: offset after its last byte.
    """

    def __init__(self, readable: Readable, size: int, name: str) -> None:
        self.readable = readable
        self.size = size
        self.name = name
        self.buffer = b""
        self.base = 0
        self.limit = 0
        self._chunk = SMALLEST_READ

    def near(self, offset: int, length: int) -> None:
        """Make the buffer hold `length` bytes from `offset`, fewer only where the view ends."""
        stop = min(offset + length, self.size)
        if self.base <= offset and stop <= self.limit:
            return
        adjoins = self.base <= offset <= self.limit + SMALLEST_GAP and self.limit > 0
        self._chunk = min(self._chunk * 2, LARGEST_CHUNK) if adjoins else SMALLEST_READ
        wanted = min(max(self._chunk, length), max(self.size - offset, 0))
        self.buffer = self.readable.some(offset, wanted)
        self.base = offset
        self.limit = offset + len(self.buffer)
        if self.limit < stop:
            raise self.broken(f"it ends at byte {self.limit}")

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises:
            Corrupted: the view ends before that.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise self.broken(f"{length} bytes are wanted at {offset}, it has {self.size}")
        self.near(offset, length)
        start = offset - self.base
        return self.buffer[start : start + length]

    def number(self, offset: int, width: int, *, order: str = "little") -> int:
        """The unsigned number of `width` bytes at `offset`."""
        return int.from_bytes(self.read(offset, width), "big" if order == "big" else "little")

    def broken(self, what: str) -> Corrupted:
        """The error for a file whose own numbers do not fit together."""
        return Corrupted(f"{self.name} is damaged: {what}.", fix="Fetch the file again from where it was made.")


PAGE = 4096
MOST_PAGES = 512


class Paged(Window):
    """A view whose reader jumps to and fro between the same few places: the last pages read are kept."""

    def __init__(self, readable: Readable, size: int, name: str) -> None:
        super().__init__(readable, size, name)
        self._pages: dict[int, bytes] = {}

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise self.broken(f"{length} bytes are wanted at {offset}, it has {self.size}")
        first, start = divmod(offset, PAGE)
        if length > 4 * PAGE:
            return self._whole(offset, length)
        data = self._page(first)
        while start + length > len(data):
            first += 1
            data += self._page(first)
        return data[start : start + length]

    def _page(self, number: int) -> bytes:
        found = self._pages.get(number)
        if found is None:
            if len(self._pages) >= MOST_PAGES:
                del self._pages[next(iter(self._pages))]
            found = self._whole(number * PAGE, min(PAGE, self.size - number * PAGE))
            self._pages[number] = found
        return found

    def _whole(self, offset: int, length: int) -> bytes:
        data = self.readable.some(offset, length)
        if len(data) != length:
            raise self.broken(f"it ends at byte {offset + len(data)}")
        return data
