"""A file inside a file, read as if it were one: an archive in an archive, a model in a pickle."""

from __future__ import annotations

from hivenode.errors import Corrupted
from hivenode.models.identify.source import LARGEST_READ, Held, Part, Source


class Nested(Source):
    """Bytes that lie in another file, or were unpacked from it.

    Args:
        outer: where they come from; bytes read of it are counted there.
        within: the bytes themselves, or the part of `outer` they are.
        name: for errors and places.
    """

    def __init__(self, outer: Source, within: bytes | Part, name: str) -> None:
        self.path = outer.path
        self.name = name
        self.size = within.size if isinstance(within, Part) else len(within)
        self.bytes_read = 0
        self.kept = {}
        self._descriptor = -1
        self._within = within if isinstance(within, Part) else Held(within)

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size or length > LARGEST_READ:
            raise Corrupted(
                f"{self.name} is cut short or lies about its sizes: "
                f"{length} bytes are wanted at {offset}, it has {self.size}.",
                fix="Fetch the file again.",
            )
        self.bytes_read += length
        return self._within.some(offset, length)
