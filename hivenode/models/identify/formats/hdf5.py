"""HDF5 as far as model files need it: groups, attributes, and how large datasets say they are. Data is never read.

After the HDF5 File Format Specification, version 3.0 (sections in brackets). Hard links only: a soft or external link
and a dataset whose bytes lie in other files are named in `Group.foreign` and never followed. Read are superblocks 0 to
3, object headers 1 and 2, symbol tables, link messages, dense links and attributes in fractal heaps, and texts of
fixed or variable length.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from hivenode.errors import Exhausted
from hivenode.models.identify.formats import hdf5_heaps as heaps
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.report import check_name

MAGIC = b"\x89HDF\r\n\x1a\n"
MOST_OBJECTS = 200_000
MOST_MESSAGES = 2_000_000
DEEPEST = 64
MOST_AXES = 32
LARGEST_TEXT = 32 << 20
MOST_TEXTS = 100_000
_BASES = (0, 512, 1024, 2048, 4096)
"""Where a superblock may stand; files with a user block have it later."""

Value = str | int | float | list[str] | None


@dataclass(slots=True)
class Dataset:
    """What a dataset says of itself. `offset`: of its bytes if they lie in one piece and little-endian."""

    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    offset: int | None = None
    stored: int | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(slots=True)
class Group:
    """One group: its attributes, the groups and datasets in it, and what is in it that leads elsewhere."""

    path: str
    attributes: dict[str, Value] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    foreign: list[tuple[str, str]] = field(default_factory=list)

    def walk(self) -> list[Group]:
        """This group and all below it, outer ones first."""
        found, stack = [], [self]
        while stack:
            group = stack.pop()
            found.append(group)
            stack.extend(reversed(group.groups.values()))
        return found

    def at(self, path: str) -> Group | None:
        """The group at a path below this one."""
        group: Group | None = self
        for part in path.split("/"):
            group = group.groups.get(part) if group is not None and part else group
        return group


@dataclass(slots=True)
class _Message:
    kind: int
    flags: int
    at: int
    size: int


def read(window: Window, *, attributes_below: int = DEEPEST) -> Group:
    """The tree of groups of a file.

    Args:
        attributes_below: attributes of groups deeper than this are not read.

    Raises:
        Corrupted: addresses outside the file, blocks without their mark, shapes that overflow, bytes that do not fit.
        Exhausted: more objects, deeper groups or longer texts than models have.
    """
    return _File(window, attributes_below).tree()


class _File:
    def __init__(self, window: Window, attributes_below: int) -> None:
        self.window = window
        self.attributes_below = attributes_below
        self.base = next((base for base in _BASES if base + 8 <= window.size and window.read(base, 8) == MAGIC), -1)
        if self.base < 0:
            raise window.broken("it has no HDF5 superblock")
        self.offsets = self.lengths = 8
        self._objects = self._messages = 0
        self._texts: dict[tuple[int, int], str] = {}
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        self._on_path: set[int] = set()
        self._seen: dict[int, Group | Dataset | None] = {}

    # -- numbers

    def number(self, at: int, width: int) -> int:
        return int.from_bytes(self.window.read(at, width), "little")

    def address(self, at: int) -> int:
        """The address at `at`, as an offset in the file; -1 if it is undefined."""
        value = self.number(at, self.offsets)
        return -1 if value == (1 << 8 * self.offsets) - 1 else value + self.base

    # -- superblock [II]

    def tree(self) -> Group:
        version = self.number(self.base + 8, 1)
        if version in (0, 1):
            self.offsets, self.lengths = self.window.read(self.base + 13, 2)
            self._check_widths()
            addresses = self.base + (24 if version == 0 else 28)
            self._check_end(addresses + 2 * self.offsets)
            entry = addresses + 4 * self.offsets
            root = self.address(entry + self.offsets)
        elif version in (2, 3):
            self.offsets, self.lengths = self.window.read(self.base + 9, 2)
            self._check_widths()
            self._check_end(self.base + 12 + 2 * self.offsets)
            root = self.address(self.base + 12 + 3 * self.offsets)
        else:
            raise self.window.broken(f"its superblock is of version {version}")
        found = self._object(root, "", 0)
        if not isinstance(found, Group):
            raise self.window.broken("its root is no group")
        return found

    def _check_widths(self) -> None:
        if self.offsets not in (2, 4, 8) or self.lengths not in (2, 4, 8):
            raise self.window.broken(f"its addresses are {self.offsets} bytes wide")

    def _check_end(self, at: int) -> None:
        """That the file is as long as it says; behind a user block writers disagree on what is counted."""
        end = self.address(at)
        if self.base == 0 and end > self.window.size:
            raise self.window.broken(f"it was {end} bytes long when it was written, and has {self.window.size}")

    # -- objects

    def _object(self, at: int, path: str, depth: int) -> Group | Dataset | None:
        """The group or dataset whose header is at `at`; None for a named type."""
        self._objects += 1
        if self._objects > MOST_OBJECTS or depth > DEEPEST:
            raise Exhausted(
                f"{self.window.name} has more than {MOST_OBJECTS} objects, or groups deeper than {DEEPEST}.",
                fix="It is damaged or made to waste time; fetch it from where it was made.",
            )
        check_name(path)
        if at in self._on_path:
            raise self.window.broken(f"the group {path[:120]} contains itself")
        if at in self._seen:
            return self._seen[at]
        messages = self._header(at)
        kinds = {message.kind for message in messages}
        found: Group | Dataset | None = None
        if 0x01 in kinds and 0x03 in kinds and 0x08 in kinds:
            found = self._dataset(messages, path)
        elif kinds & {0x02, 0x06, 0x0A, 0x11} or not kinds & {0x01, 0x03, 0x08}:
            self._on_path.add(at)
            found = self._group(messages, path, depth)
            self._on_path.discard(at)
        self._seen[at] = found
        return found

    def _group(self, messages: list[_Message], path: str, depth: int) -> Group:
        group = Group(path or "/")
        links: list[tuple[str, int]] = []
        for message in messages:
            if message.kind == 0x11:
                tree, heap = self.address(message.at), self.address(message.at + self.offsets)
                links.extend(heaps.symbols(self, tree, heap, group.foreign))
            elif message.kind == 0x06:
                self._link(message.at, message.size, links, group)
            elif message.kind == 0x02:
                self._dense_links(message, links, group)
            elif message.kind == 0x0C and depth <= self.attributes_below:
                self._attribute(message.at, message.size, group)
            elif message.kind == 0x15 and depth <= self.attributes_below:
                self._dense_attributes(message, group)
        for name, at in links:
            if name in group.groups or name in group.datasets:
                raise self.window.broken(f"{group.path[:120]} holds {name[:80]} twice")
            below = self._object(at, f"{path}/{name}", depth + 1)
            if isinstance(below, Group):
                group.groups[name] = below
            elif isinstance(below, Dataset):
                group.datasets[name] = below
                if below.stored is None:
                    group.foreign.append((name, "a dataset whose bytes lie in other files"))
        return group

    # -- object headers [IV.A]

    def _header(self, at: int) -> list[_Message]:
        if at < 0:
            raise self.window.broken("an object has no address")
        messages: list[_Message] = []
        if self.window.read(at, 4) == b"OHDR":
            self._header_2(at, messages)
        else:
            version, _, _, _, size = struct.unpack("<BBHII", self.window.read(at, 12))
            if version != 1:
                raise self.window.broken(f"there is no object header at byte {at}")
            self._blocks([(at + 16, size)], messages, 1, 0)
        return messages

    def _header_2(self, at: int, messages: list[_Message]) -> None:
        version, flags = self.window.read(at + 4, 2)
        if version != 2:
            raise self.window.broken(f"the object header at byte {at} is of version {version}")
        place = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        self._blocks([(place + width, self.number(place, width))], messages, 2, 6 if flags & 4 else 4)

    def _blocks(self, blocks: list[tuple[int, int]], messages: list[_Message], version: int, prefix: int) -> None:
        """The messages of a header and of its continuations."""
        seen: set[int] = set()
        prefix = prefix or 8
        while blocks:
            at, size = blocks.pop(0)
            if at in seen or at < 0 or at + size > self.window.size:
                raise self.window.broken(f"an object header goes on at byte {at}, in a circle or outside the file")
            seen.add(at)
            end = at + size
            while at + prefix <= end:
                self._messages += 1
                if self._messages > MOST_MESSAGES:
                    raise Exhausted(f"{self.window.name} has too many messages.", fix="It is damaged; refuse it.")
                if version == 1:
                    kind, length, flags = struct.unpack("<HHB", self.window.read(at, 5))
                else:
                    kind, length, flags = struct.unpack("<BHB", self.window.read(at, 4))
                at += prefix
                if at + length > end:
                    raise self.window.broken(f"a message at byte {at} is longer than its header")
                if kind == 0x10:
                    place = self.address(at)
                    size = self.number(at + self.offsets, self.lengths)
                    if version == 2:
                        if self.window.read(place, 4) != b"OCHK":
                            raise self.window.broken(f"there is no header block at byte {place}")
                        place, size = place + 4, size - 8
                    blocks.append((place, size))
                elif kind:
                    if flags & 2 and kind != 0x0C:
                        kind |= 0x1000
                    messages.append(_Message(kind, flags, at, length))
                at += length

    # -- links [IV.A.2.g, IV.A.2.c]

    def _link(self, at: int, size: int, links: list[tuple[str, int]], group: Group) -> None:
        end = at + size
        version, flags = self.window.read(at, 2)
        if version != 1:
            raise self.window.broken(f"the link at byte {at} is of version {version}")
        at += 2
        kind = 0
        if flags & 8:
            kind = self.number(at, 1)
            at += 1
        at += 8 if flags & 4 else 0
        at += 1 if flags & 16 else 0
        width = 1 << (flags & 3)
        length = self.number(at, width)
        at += width
        if at + length > end:
            raise self.window.broken(f"the name of the link at byte {at} is longer than the link")
        name = self.window.read(at, length).decode("utf-8", "backslashreplace")
        if kind == 0:
            links.append((name, self.address(at + length)))
        else:
            what = {1: "a soft link", 64: "an external link, to another file"}.get(kind, f"a link of kind {kind}")
            group.foreign.append((name, what))

    def _dense_links(self, message: _Message, links: list[tuple[str, int]], group: Group) -> None:
        flags = self.number(message.at + 1, 1)
        at = message.at + 2 + (8 if flags & 1 else 0)
        heap, index = self.address(at), self.address(at + self.offsets)
        if heap >= 0:
            for place, size in heaps.objects(self, heap, index, kind=5):
                self._link(place, size, links, group)

    # -- attributes [IV.A.2.m]

    def _dense_attributes(self, message: _Message, group: Group) -> None:
        flags = self.number(message.at + 1, 1)
        at = message.at + 2 + (2 if flags & 1 else 0)
        heap, index = self.address(at), self.address(at + self.offsets)
        if heap >= 0:
            for place, size in heaps.objects(self, heap, index, kind=8):
                self._attribute(place, size, group)

    def _attribute(self, at: int, size: int, group: Group) -> None:
        end = at + size
        version, flags, name_size, type_size, space_size = struct.unpack("<BBHHH", self.window.read(at, 8))
        if version not in (1, 2, 3) or (version > 1 and flags):
            group.foreign.append(("attribute", f"an attribute of version {version} with shared parts"))
            return
        at += 9 if version == 3 else 8
        pad = 8 if version == 1 else 1
        name = self.window.read(at, name_size).split(b"\0")[0].decode("utf-8", "backslashreplace")
        kind_at = at + -(-name_size // pad) * pad
        space_at = kind_at + -(-type_size // pad) * pad
        data = space_at + -(-space_size // pad) * pad
        if data > end:
            raise self.window.broken(f"the attribute {name[:80]} is longer than its message")
        group.attributes[name] = self._value(kind_at, self._space(space_at), data, end)

    def _value(self, kind_at: int, shape: tuple[int, ...], data: int, end: int) -> Value:
        """A text, a list of texts or a number; None for what models do not need."""
        head = self.number(kind_at, 1) & 15
        bits = self.number(kind_at + 1, 3)
        size = self.number(kind_at + 4, 4)
        elements = math.prod(shape)
        if elements > MOST_TEXTS or size * elements > end - data:
            if elements and size * elements > end - data:
                raise self.window.broken(f"an attribute at byte {data} is longer than its message")
            return None
        if head == 3:
            texts = [self._decode(self.window.read(data + size * place, size)) for place in range(elements)]
        elif head == 9 and (bits & 15 == 1 or self.number(kind_at + 8, 1) & 15 == 3):
            texts = [self._long_text(data + size * place) for place in range(elements)]
        elif head in (0, 1) and elements == 1 and size <= 8:
            raw = self.window.read(data, size)
            if head == 0:
                return int.from_bytes(raw, "big" if bits & 1 else "little", signed=bool(bits & 8))
            code = {2: "e", 4: "f", 8: "d"}.get(size)
            return float(struct.unpack((">" if bits & 1 else "<") + code, raw)[0]) if code else None
        else:
            return None
        return texts if shape else texts[0] if texts else None

    @staticmethod
    def _decode(raw: bytes) -> str:
        return raw.rstrip(b"\0").decode("utf-8", "backslashreplace")

    def _long_text(self, at: int) -> str:
        """A text of variable length, out of a global heap [III.E]."""
        length = self.number(at, 4)
        collection, index = self.address(at + 4), self.number(at + 4 + self.offsets, 4)
        if length == 0 or collection < 0:
            return ""
        key = (collection, index)
        if key in self._texts:
            return self._texts[key]
        if collection not in self._heaps:
            self._heaps[collection] = heaps.collection(self, collection)
        found = self._heaps[collection].get(index)
        if found is None or length > found[1]:
            raise self.window.broken(f"the text at byte {at} is not in its heap")
        if length > LARGEST_TEXT:
            raise Exhausted(f"{self.window.name} has a text of {length} bytes.", fix="Refuse it; no model has.")
        self._texts[key] = self._decode(self.window.read(found[0], length))
        return self._texts[key]

    # -- datasets [IV.A.2.b, .d, .h, .i]

    def _space(self, at: int) -> tuple[int, ...]:
        version, axes = self.window.read(at, 2)
        if axes > MOST_AXES or version not in (1, 2):
            raise self.window.broken(f"the shape at byte {at} makes no sense")
        if version == 2 and self.number(at + 3, 1) == 2:
            return (0,)
        at += 8 if version == 1 else 4
        shape = tuple(self.number(at + self.lengths * axis, self.lengths) for axis in range(axes))
        if math.prod(max(size, 1) for size in shape) >= 1 << 62:
            raise self.window.broken(f"the shape at byte {at} has more elements than there can be")
        return shape

    def _dtype(self, at: int) -> tuple[str, int]:
        head = self.number(at, 1) & 15
        bits, size = self.number(at + 1, 3), self.number(at + 4, 4)
        if head == 0:
            return f"{'int' if bits & 8 else 'uint'}{size * 8}", size
        if head == 1:
            mantissa = self.number(at + 8 + 7, 1) if size == 2 else 0
            return "bfloat16" if mantissa == 7 else f"float{size * 8}", size
        names = {3: "string", 4: "bits", 5: "opaque", 6: "compound", 7: "reference", 8: "bool", 9: "variable"}
        return names.get(head, f"type{head}"), size

    def _dataset(self, messages: list[_Message], path: str) -> Dataset:
        by_kind = {message.kind: message for message in messages}
        shape = self._space(by_kind[0x01].at)
        dtype, itemsize = self._dtype(by_kind[0x03].at)
        dataset = Dataset(shape, dtype, itemsize)
        if 0x07 in by_kind:
            return dataset
        layout = by_kind[0x08].at
        declared = dataset.elements * itemsize
        version, kind = self.window.read(layout, 2)
        if version in (1, 2):
            kind = self.number(layout + 2, 1)
            if kind == 1:
                dataset.offset, dataset.stored = self.address(layout + 8), declared
            elif kind in (0, 2):
                dataset.stored = declared
        elif version in (3, 4):
            if kind == 0:
                dataset.stored = self.number(layout + 2, 2)
                dataset.offset = layout + 4
            elif kind == 1:
                dataset.offset = self.address(layout + 2)
                dataset.stored = self.number(layout + 2 + self.offsets, self.lengths)
            elif kind == 2:
                dataset.stored = declared
        if kind != 2 and dataset.stored is not None and declared:
            self._check(dataset, path, declared)
        elif kind == 2 and declared > self.window.size * MOST_SHRINKING:
            raise self.window.broken(f"{path[:120]} declares {declared} bytes, more than can be packed into the file")
        if self.number(by_kind[0x03].at + 1, 1) & 1:
            dataset.offset = None  # big-endian: the bytes are not the numbers as they lie
        return dataset

    def _check(self, dataset: Dataset, path: str, declared: int) -> None:
        if dataset.offset is None or dataset.offset < 0:
            raise self.window.broken(f"{path[:120]} declares {declared} bytes and holds none")
        stored = dataset.stored or 0
        if stored < declared or dataset.offset + declared > self.window.size:
            raise self.window.broken(
                f"{path[:120]} declares {declared} bytes at {dataset.offset}, the file has {self.window.size}"
            )


MOST_SHRINKING = 1100
"""Deflate packs at most 1,032 to 1."""
