"""Universal Binary JSON, draft 12 (https://ubjson.org), as XGBoost writes it; arrays of one type are passed over."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from hivenode.errors import Corrupted
from hivenode.models.identify.formats.windows import Window

Value: TypeAlias = Any
"""None, bool, int, float, str, list, dict or `Typed`."""
MOST_VALUES = 2_000_000
DEEPEST = 64
LONGEST_TEXT = 1 << 20
LONGEST_KEY = 1024
_INTEGERS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q"}
_FLOATS = {b"d": ">f", b"D": ">d"}
_FIXED = {mark: struct.Struct(layout) for mark, layout in (_INTEGERS | _FLOATS).items()}
DTYPES = {
    b"i": "int8", b"U": "uint8", b"I": "int16", b"l": "int32", b"L": "int64", b"d": "float32", b"D": "float64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Typed:
    """An array of numbers of one type, left where it is (big-endian)."""

    dtype: str
    count: int
    offset: int

    @property
    def nbytes(self) -> int:
        width = {"int8": 1, "uint8": 1, "int16": 2, "int64": 8, "float64": 8}.get(self.dtype, 4)
        return self.count * width


def parse(window: Window, name: str) -> Value:
    """The value that fills `window`.

    Raises:
        Corrupted: it is no UBJSON, cut short, nests too deeply, or something follows it.
    """
    reader = _Reader(window, name)
    value = reader.value(reader.mark(), 0)
    if reader.at != window.size:
        reader.fail(f"something follows its end at byte {reader.at}")
    return value


class _Reader:
    def __init__(self, window: Window, name: str) -> None:
        self.window = window
        self.name = name
        self.at = 0
        self.values = 0

    def fail(self, what: str) -> NoReturn:
        raise Corrupted(f"{self.name} is no sound UBJSON: {what}.", fix="Fetch it again from where it was made.")

    def mark(self) -> bytes:
        """The next type marker; no-ops are passed over."""
        for _ in range(LONGEST_KEY):
            taken = self.window.read(self.at, 1)
            self.at += 1
            if taken != b"N":
                return taken
        return self.fail("it is padded without end")

    def number(self, mark: bytes) -> int | float:
        layout = _FIXED[mark]
        (value,) = layout.unpack(self.window.read(self.at, layout.size))
        self.at += layout.size
        return value  # type: ignore[no-any-return]

    def length(self, mark: bytes) -> int:
        if mark not in _INTEGERS:
            self.fail(f"a length of type {mark!r} at byte {self.at - 1}")
        value = self.number(mark)
        if value < 0 or value > self.window.size:
            self.fail(f"a length of {value} at byte {self.at}")
        return int(value)

    def text(self, limit: int) -> str:
        length = self.length(self.mark())
        if length > limit:
            self.fail(f"a string of {length} bytes at byte {self.at}")
        raw = self.window.read(self.at, length)
        self.at += length
        return raw.decode("utf-8", "replace")

    def value(self, mark: bytes, depth: int) -> Value:
        self.values += 1
        if self.values > MOST_VALUES:
            self.fail(f"more than {MOST_VALUES} values")
        if depth > DEEPEST:
            self.fail(f"nesting deeper than {DEEPEST}")
        if mark in _FIXED:
            return self.number(mark)
        if mark == b"{":
            return self.object(depth)
        if mark == b"[":
            return self.array(depth)
        if mark == b"S":
            return self.text(LONGEST_TEXT)
        if mark in b"ZTF":
            return {b"Z": None, b"T": True, b"F": False}[mark]
        if mark == b"C":
            self.at += 1
            return self.window.read(self.at - 1, 1).decode("latin-1")
        if mark == b"H":
            return self.text(LONGEST_KEY)
        return self.fail(f"{mark!r} at byte {self.at - 1} is no type")

    def bounds(self) -> tuple[bytes | None, int | None]:
        """The type and count a container declares after its mark, if it does."""
        kind: bytes | None = None
        ahead = self.window.read(self.at, 1)
        if ahead == b"$":
            kind = self.window.read(self.at + 1, 1)
            self.at += 2
            ahead = self.window.read(self.at, 1)
            if ahead != b"#":
                self.fail(f"a type without a count at byte {self.at}")
        if ahead != b"#":
            return None, None
        self.at += 1
        return kind, self.length(self.mark())

    def object(self, depth: int) -> dict[str, Value]:
        kind, count = self.bounds()
        made: dict[str, Value] = {}
        while count is None or len(made) < count:
            if count is None and self.window.read(self.at, 1) == b"}":
                self.at += 1
                break
            key = self.text(LONGEST_KEY)
            if key in made:
                self.fail(f"the key {key} twice")
            made[key] = self.value(kind or self.mark(), depth + 1)
        return made

    def array(self, depth: int) -> list[Value] | Typed:
        kind, count = self.bounds()
        if kind in DTYPES and count is not None:
            made = Typed(DTYPES[kind], count, self.at)
            if self.at + made.nbytes > self.window.size:
                self.fail(f"an array of {count} numbers that ends beyond its end")
            self.at += made.nbytes
            return made
        if kind is not None and kind not in {b"S", b"{", b"["}:
            self.fail(f"an array of type {kind!r}")
        values: list[Value] = []
        while count is None or len(values) < count:
            mark = kind or self.mark()
            if count is None and mark == b"]":
                break
            values.append(self.value(mark, depth + 1))
        return values
