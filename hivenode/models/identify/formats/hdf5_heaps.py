"""The heaps and trees inside HDF5 files: symbol tables, global heaps, fractal heaps with their indexes.

After the HDF5 File Format Specification, version 3.0, chapter III.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from hivenode.errors import Exhausted
from hivenode.models.identify.formats.windows import Window

MOST_NODES = 100_000
DEEPEST_TREE = 32


class File(Protocol):
    """What is needed of the file: its numbers and addresses."""

    window: Window
    offsets: int
    lengths: int

    def number(self, at: int, width: int) -> int: ...

    def address(self, at: int) -> int: ...


def _expect(file: File, at: int, mark: bytes) -> None:
    if at < 0 or file.window.read(at, 4) != mark:
        raise file.window.broken(f"there is no {mark.decode()} at byte {at}")


def _bounded(file: File, seen: set[int], at: int) -> None:
    if at in seen:
        raise file.window.broken(f"a tree goes in a circle at byte {at}")
    seen.add(at)
    if len(seen) > MOST_NODES:
        raise Exhausted(f"{file.window.name} has a tree of too many nodes.", fix="It is damaged; fetch it again.")


def symbols(file: File, tree: int, heap: int, foreign: list[tuple[str, str]]) -> Iterator[tuple[str, int]]:
    """Names and object headers of an old-style group [III.A.1, III.B, III.C, III.D]; soft links go to `foreign`."""
    _expect(file, heap, b"HEAP")
    names = file.address(heap + 8 + 2 * file.lengths)
    size = file.number(heap + 8, file.lengths)
    seen: set[int] = set()
    stack = [tree] if tree >= 0 else []
    while stack:
        at = stack.pop()
        _bounded(file, seen, at)
        mark = file.window.read(at, 4)
        if mark == b"TREE":
            count = file.number(at + 6, 2)
            step = file.lengths + file.offsets
            first = at + 8 + 2 * file.offsets + file.lengths
            stack.extend(reversed([file.address(first + step * place) for place in range(count)]))
        elif mark == b"SNOD":
            for place in range(file.number(at + 6, 2)):
                entry = at + 8 + place * (2 * file.offsets + 24)
                offset = file.number(entry, file.offsets)
                name = _heap_text(file, names, size, offset)
                if file.number(entry + 2 * file.offsets, 4) == 2:
                    foreign.append((name, "a soft link"))
                else:
                    yield name, file.address(entry + file.offsets)
        else:
            raise file.window.broken(f"there is no node of a tree at byte {at}")


def _heap_text(file: File, names: int, size: int, offset: int) -> str:
    if names < 0 or offset >= size:
        raise file.window.broken(f"a name lies outside the heap at byte {names}")
    raw = file.window.read(names + offset, min(size - offset, 4096, file.window.size - names - offset))
    name, end, _ = raw.partition(b"\0")
    if not end:
        raise file.window.broken(f"a name in the heap at byte {names} has no end")
    return name.decode("utf-8", "backslashreplace")


def collection(file: File, at: int) -> dict[int, tuple[int, int]]:
    """The objects of a global heap collection [III.E]: index -> (offset, length)."""
    _expect(file, at, b"GCOL")
    end = at + file.number(at + 8, file.lengths)
    if end > file.window.size:
        raise file.window.broken(f"the heap at byte {at} ends beyond the end")
    found: dict[int, tuple[int, int]] = {}
    place = at + 8 + file.lengths
    while place + 8 + file.lengths <= end:
        index = file.number(place, 2)
        size = file.number(place + 8, file.lengths)
        place += 8 + file.lengths
        if index == 0:
            break
        if place + size > end or len(found) > MOST_NODES:
            raise file.window.broken(f"an object of the heap at byte {at} ends beyond it")
        found[index] = (place, size)
        place += -(-size // 8) * 8
    return found


class _Fractal:
    """A fractal heap [III.G]: where an offset in the heap's own space lies in the file."""

    def __init__(self, file: File, at: int) -> None:
        _expect(file, at, b"FRHP")
        self.file = file
        self._huge_objects: dict[int, tuple[int, int]] | None = None
        self.id_size = file.number(at + 5, 2)
        filters = file.number(at + 7, 2)
        if filters:
            raise file.window.broken(f"the heap at byte {at} is packed, which no model's is")
        flags = file.number(at + 9, 1)
        widest = file.number(at + 10, 4)
        self._huge_tree = file.address(at + 14 + file.lengths)
        at += 14 + 10 * file.lengths + 2 * file.offsets
        # Past: next huge id, trees, free space, managed space, allocated, iterator, counts and sizes.
        self.width = file.number(at, 2)
        self.first = file.number(at + 2, file.lengths)
        self.largest = file.number(at + 2 + file.lengths, file.lengths)
        at += 2 + 2 * file.lengths
        self.bits = file.number(at, 2)
        self.root = file.address(at + 4)
        self.rows = file.number(at + 4 + file.offsets, 2)
        self.checked = bool(flags & 2)
        if self.id_size < 3:
            raise file.window.broken(f"the heap at byte {at} has names of {self.id_size} bytes")
        powers = self.first > 0 and self.largest >= self.first
        if not powers or not 0 < self.width <= 1024 or self.bits > 64 or self.rows > 64:
            raise file.window.broken(f"the heap of {widest} bytes an object has sizes that make no sense")
        self.offset_size = -(-self.bits // 8)
        self.length_size = max(1, -(-min(widest, self.largest).bit_length() // 8))
        self.direct_rows = (self.largest // self.first).bit_length() - 1 + 2

    def place(self, raw: bytes) -> tuple[int, int]:
        """Offset in the file and length of the object with this id.

        Raises:
            Corrupted: it is outside the heap, or kept in a way that small objects are not.
        """
        kind = raw[0] >> 4 & 3
        if kind == 1:
            return self._huge(int.from_bytes(raw[1:], "little"))
        if kind:
            raise self.file.window.broken("a heap keeps a link or attribute in a way that no model's does")
        offset = int.from_bytes(raw[1 : 1 + self.offset_size], "little")
        length = int.from_bytes(raw[1 + self.offset_size : 1 + self.offset_size + self.length_size], "little")
        block, start, size = self._block(offset)
        if offset + length > start + size:
            raise self.file.window.broken("an object in a heap ends beyond its block")
        return block + offset - start, length

    def _huge(self, number: int) -> tuple[int, int]:
        """An object too large for blocks, by its number: the tree of such objects holds address, length, number."""
        file = self.file
        if self._huge_objects is None:
            self._huge_objects = {}
            for at in _records(file, self._huge_tree, 1, file.offsets + 2 * file.lengths):
                length = file.number(at + file.offsets, file.lengths)
                key = file.number(at + file.offsets + file.lengths, file.lengths)
                self._huge_objects[key] = (file.address(at), length)
        found = self._huge_objects.get(number)
        if found is None or found[0] < 0 or sum(found) > file.window.size:
            raise file.window.broken("a large object of a heap is nowhere")
        return found

    def _block(self, offset: int) -> tuple[int, int, int]:
        """The direct block that holds `offset`: its address, its first offset, its size."""
        if self.rows == 0:
            _expect(self.file, self.root, b"FHDB")
            return self.root, 0, self.first
        at, start, rows = self.root, 0, self.rows
        for _ in range(DEEPEST_TREE):
            _expect(self.file, at, b"FHIB")
            entries = at + 5 + self.file.offsets + self.offset_size
            child = self._child(offset - start, rows)
            if child is None:
                break
            row, column, begin, size = child
            address = self.file.address(entries + (row * self.width + column) * self.file.offsets)
            if row < self.direct_rows:
                _expect(self.file, address, b"FHDB")
                return address, start + begin, size
            at, start = address, start + begin
            rows = (size // (self.first * self.width)).bit_length()
        raise self.file.window.broken("an object lies outside its heap")

    def _child(self, offset: int, rows: int) -> tuple[int, int, int, int] | None:
        begin = 0
        for row in range(rows):
            size = self.first << max(0, row - 1)
            if offset < begin + size * self.width:
                column = (offset - begin) // size
                return row, column, begin + column * size, size
            begin += size * self.width
        return None


def objects(file: File, heap: int, index: int, *, kind: int) -> Iterator[tuple[int, int]]:
    """Offset and length of every object of a fractal heap that its index by name lists.

    Args:
        kind: 5 for links (hash, id), 8 for attributes (id, flags, order, hash).
    """
    fractal = _Fractal(file, heap)
    start = 4 if kind == 5 else 0
    for at in _records(file, index, kind, start + fractal.id_size):
        yield fractal.place(file.window.read(at + start, fractal.id_size))


def _records(file: File, index: int, kind: int, smallest: int) -> Iterator[int]:
    """Where the records of a version 2 B-tree lie [III.A.2], in no order.

    Args:
        smallest: bytes a record must have.
    """
    _expect(file, index, b"BTHD")
    if file.number(index + 5, 1) != kind:
        raise file.window.broken(f"the tree at byte {index} indexes something else")
    node_size, record = file.number(index + 6, 4), file.number(index + 10, 2)
    depth = file.number(index + 12, 2)
    root, count = file.address(index + 16), file.number(index + 16 + file.offsets, 2)
    if depth > DEEPEST_TREE or record < smallest or node_size < record + 10:
        raise file.window.broken(f"the tree at byte {index} has sizes that make no sense")
    widths = _pointer_widths(node_size, record, depth)
    seen: set[int] = set()
    stack = [(root, count, depth)] if root >= 0 else []
    while stack:
        at, records, level = stack.pop()
        _bounded(file, seen, at)
        _expect(file, at, b"BTIN" if level else b"BTLF")
        if records * record > node_size:
            raise file.window.broken(f"the node at byte {at} claims {records} records")
        for place in range(records):
            yield at + 6 + place * record
        if level:
            counted, total = widths[level]
            step = file.offsets + counted + total
            first = at + 6 + records * record
            for place in range(records + 1):
                child = file.address(first + place * step)
                stack.append((child, file.number(first + place * step + file.offsets, counted), level - 1))


def _pointer_widths(node_size: int, record: int, depth: int) -> dict[int, tuple[int, int]]:
    """By level: how wide a child's count of records and its total are in a node [III.A.2, internal nodes]."""
    most = (node_size - 10) // record
    total = most
    widths: dict[int, tuple[int, int]] = {}
    counted, whole = _bytes_for(most), 0
    for level in range(1, depth + 1):
        widths[level] = (counted, whole)
        here = (node_size - 10 - (8 + counted + whole)) // (record + 8 + counted + whole)
        total = here + (here + 1) * total
        counted, whole = _bytes_for(most), _bytes_for(total)
    return widths


def _bytes_for(value: int) -> int:
    return max(1, -(-max(value, 1).bit_length() // 8))
