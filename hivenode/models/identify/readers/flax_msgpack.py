"""What flax.serialization writes: nested maps in MessagePack, arrays as extension 1 (shape, dtype, raw bytes)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from hivenode.errors import Corrupted
from hivenode.models.identify.naming.state_dicts import recognise
from hivenode.models.identify.report import Confidence, Report, Tensor, check_name, count
from hivenode.models.identify.source import Source

DEEPEST = 64
MOST_VALUES = 2_000_000
LONGEST_TEXT = 1 << 16
MOST_AXES = 64
WINDOW = 512
ARRAY, SCALAR = 1, 3
SIZES = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1, "complex64": 8, "complex128": 16, "float8_e4m3fn": 1,
    "float8_e5m2": 1, "int4": 1, "uint4": 1,
}  # fmt: skip
_LENGTHS = {
    0xC4: "B", 0xC5: ">H", 0xC6: ">I",  # bin
    0xD9: "B", 0xDA: ">H", 0xDB: ">I",  # str
    0xC7: "B", 0xC8: ">H", 0xC9: ">I",  # ext
    0xDC: ">H", 0xDD: ">I",  # array
    0xDE: ">H", 0xDF: ">I",  # map
}  # fmt: skip
_FIXED = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xCA: 4, 0xCB: 8}


class Item(NamedTuple):
    """The head of a value: what it is, and where its content begins. `size`: bytes, or entries of a map or list."""

    kind: str
    size: int
    start: int
    code: int = 0


def detects(head: bytes, source: Source) -> bool:
    """A map whose first key is text, and whose first array, if it lies in the head, is flax's."""
    if not head or not (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return False
    try:
        walk = _Walk(source)
        first = walk.item(0)
        key = walk.item(first.start)
        if key.kind != "str" or not 0 < key.size < 512:
            return False
        text = source.some(key.start, key.size).decode()
        value = walk.item(key.start + key.size)
    except (Corrupted, UnicodeDecodeError):
        return False
    return text.isprintable() and (value.kind == "map" or (value.kind == "ext" and value.code == ARRAY))


def read(source: Source) -> Report:
    report = Report(safe=True)
    walk = _Walk(source)
    tensors = walk.tensors()
    if not tensors:
        raise Corrupted(f"{source.name} is MessagePack without arrays.", fix="Give the model's own file.")
    report.know(Confidence.read, "arrays as extension 1", format="flax_msgpack", framework="flax")
    report.hold(tensors, "its maps")
    recognise(report, [Tensor(_torch_name(part.name), part.dtype, _torch_shape(part)) for part in tensors])
    return report


def _torch_name(name: str) -> str:
    """As torch would call it, for the tables of names."""
    stem, _, last = name.removeprefix("params.").rpartition(".")
    last = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(last, last)
    return f"{stem}.{last}" if stem else last


def _torch_shape(tensor: Tensor) -> tuple[int, ...]:
    """Flax keeps (inputs, outputs) and (height, width, inputs, outputs)."""
    if tensor.name.endswith("kernel") and len(tensor.shape) == 2:
        return tensor.shape[::-1]
    if tensor.name.endswith("kernel") and len(tensor.shape) == 4:
        return (tensor.shape[3], tensor.shape[2], *tensor.shape[:2])
    return tensor.shape


class _Walk:
    """Steps over MessagePack without reading what is in arrays."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._window = b""
        self._base = 0

    def tensors(self) -> list[Tensor]:
        """Every array, in the order of the file, under dotted names."""
        found: list[Tensor] = []
        waiting: list[tuple[str, int, int, bool]] = []
        """Name, entries left, entries in all, whether it is a map."""
        at = 0
        seen = 0
        name = ""
        while True:
            seen += 1
            if seen > MOST_VALUES or len(waiting) > DEEPEST:
                raise self._broken("it nests too deeply or holds too much", at)
            item = self.item(at)
            at = item.start
            if item.kind in ("map", "list"):
                waiting.append((name, item.size, item.size, item.kind == "map"))
            else:
                if item.kind == "ext" and item.code == ARRAY:
                    found.append(self._array(name, item))
                at += item.size
                if at > self._source.size:
                    raise self._broken("a value ends beyond the end of the file", at)
            while waiting and waiting[-1][1] == 0:
                waiting.pop()
            if not waiting:
                if at != self._source.size:
                    raise self._broken("there is something after its last value", at)
                return found
            prefix, left, total, is_map = waiting.pop()
            waiting.append((prefix, left - 1, total, is_map))
            key = str(total - left)
            if is_map:
                held = self.item(at)
                if held.kind != "str" or held.size > LONGEST_TEXT:
                    raise self._broken("a key is no text", at)
                key = self._source.read(held.start, held.size).decode("utf-8", "replace")
                at = held.start + held.size
            name = f"{prefix}.{key}" if prefix else key
            check_name(name)

    def item(self, at: int) -> Item:
        """The value at `at`."""
        raw = self._bytes(at, 6)
        if not raw:
            raise self._broken("it is cut short", at)
        code = raw[0]
        if code <= 0x7F or code >= 0xE0 or code in (0xC0, 0xC2, 0xC3):
            return Item("scalar", 0, at + 1)
        if code <= 0x8F:
            return Item("map", code & 0xF, at + 1)
        if code <= 0x9F:
            return Item("list", code & 0xF, at + 1)
        if code <= 0xBF:
            return Item("str", code & 0x1F, at + 1)
        if code in _FIXED:
            return Item("scalar", _FIXED[code], at + 1)
        if 0xD4 <= code <= 0xD8:
            return Item("ext", 1 << (code - 0xD4), at + 2, self._at(raw, 1, at))
        layout = _LENGTHS.get(code)
        if layout is None:
            raise self._broken("it is no MessagePack", at)
        width = struct.calcsize(layout)
        if len(raw) < 1 + width:
            raise self._broken("it is cut short", at)
        (size,) = struct.unpack_from(layout, raw, 1)
        start = at + 1 + width
        if code <= 0xC6:
            return Item("bin", size, start)
        if code <= 0xC9:
            return Item("ext", size, start + 1, self._at(self._bytes(start, 1), 0, at))
        if code <= 0xDB:
            return Item("str", size, start)
        return Item("list" if code <= 0xDD else "map", size, start)

    def _array(self, name: str, item: Item) -> Tensor:
        """(shape, dtype's name, raw bytes), packed."""
        outer = self.item(item.start)
        shape_item = self.item(outer.start)
        if outer.kind != "list" or outer.size != 3 or shape_item.kind != "list" or shape_item.size > MOST_AXES:
            raise self._broken(f"the array {name[:80]} makes no sense", item.start)
        at = shape_item.start
        shape = []
        for _ in range(shape_item.size):
            size, at = self._whole(at)
            shape.append(size)
        kind = self.item(at)
        if kind.kind != "str" or kind.size > 32:
            raise self._broken(f"the array {name[:80]} has no dtype", at)
        dtype = self._source.read(kind.start, kind.size).decode("latin-1")
        raw = self.item(kind.start + kind.size)
        width = SIZES.get(dtype)
        if width is None or raw.kind != "bin" or raw.size != count(tuple(shape)) * width:
            raise self._broken(f"the bytes of {name[:80]} do not fit its shape and dtype", at)
        if raw.start + raw.size != item.start + item.size or raw.start + raw.size > self._source.size:
            raise self._broken(f"the bytes of {name[:80]} end elsewhere than the array", at)
        mean = name.startswith("batch_stats.")
        return Tensor(name, dtype, tuple(shape), "", raw.start, raw.size, trainable=False if mean else None)

    def _whole(self, at: int) -> tuple[int, int]:
        """A number that is not negative, and where it ends."""
        raw = self._bytes(at, 9)
        if raw and raw[0] <= 0x7F:
            return raw[0], at + 1
        width = _FIXED.get(raw[0], 0) if raw and 0xCC <= raw[0] <= 0xCF else 0
        if not width or len(raw) < 1 + width:
            raise self._broken("a size is no number", at)
        return int.from_bytes(raw[1 : 1 + width], "big"), at + 1 + width

    def _bytes(self, at: int, length: int) -> bytes:
        begin = at - self._base
        if begin < 0 or begin + length > len(self._window):
            if at > self._source.size:
                raise self._broken("it is cut short", at)
            self._base, self._window = at, self._source.some(at, WINDOW)
            begin = 0
        return self._window[begin : begin + length]

    def _at(self, raw: bytes, place: int, at: int) -> int:
        if place >= len(raw):
            raise self._broken("it is cut short", at)
        return raw[place]

    def _broken(self, what: str, at: int) -> Corrupted:
        return Corrupted(
            f"{self._source.name} is no sound MessagePack: {what}, at byte {at}.", fix="Fetch the file again."
        )
