"""Arrays in pickles: as numpy writes them, and as joblib does, which puts the raw numbers between the opcodes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from hivenode.errors import Corrupted
from hivenode.models.identify.formats.pickles import (
    Blob,
    Call,
    Global,
    Hook,
    Limits,
    Pickle,
    Value,
    damaged,
    interpret,
    mapping,
)
from hivenode.models.identify.report import count
from hivenode.models.identify.source import Readable

WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
MOST_AXES = 64
MOST_ELEMENTS = 1 << 50
DEEPEST = 8
MOST_NESTED = 20_000
_DTYPE = re.compile(r"[<>|=]?([biufcSUVOmM?])(\d{0,9})(\[\w{1,12}\])?")
_KINDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex", "S": "bytes", "U": "str", "V": "void"}


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype of numpy. `name` as numpy prints it; `objects`: whether elements are Python objects."""

    name: str
    itemsize: int
    objects: bool


@dataclass(frozen=True, slots=True)
class Array:
    """An array that a node of a pickle stands for.

    Attributes:
        offset: of the raw bytes in what was interpreted, if they lie there as they are.
        held: the raw bytes, if they are short.
        items: the elements of an array of objects.
    """

    dtype: str
    shape: tuple[int, ...]
    itemsize: int
    offset: int | None = None
    held: bytes | None = None
    items: tuple[Value, ...] | None = None
    fortran: bool = False


def dtype(value: Value, name: str = "the pickle", depth: int = 0) -> DType | None:
    """What a node made by `numpy.dtype` stands for; None for other nodes.

    Raises:
        Corrupted: a dtype that says two things about itself, which loaders could take differently.
    """
    if isinstance(value, Global):
        found = _DTYPE_CLASSES.get(value.path)
        return DType(*found) if found else None
    if not isinstance(value, Call) or value.path != "numpy.dtype" or not value.args:
        return None
    if isinstance(value.args[0], Global):
        return dtype(value.args[0], name)
    spelt = _DTYPE.fullmatch(value.args[0]) if isinstance(value.args[0], str) else None
    if spelt is None or depth > DEEPEST:
        raise damaged(name, "a dtype that numpy does not write", 0)
    kind, size = spelt[1], int(spelt[2] or 0)
    if kind == "?":
        kind, size = "b", 1
    itemsize = 4 * size if kind == "U" else 8 if kind in "mMO" else size
    objects = kind == "O"
    label = {"O": "object", "m": "timedelta64", "M": "datetime64"}.get(kind) or _KINDS[kind]
    if kind in "iufcSUV":
        label += str(size if kind in "SUV" else 8 * size)
    state = value.state
    if state is None:
        return DType(label, itemsize, objects)
    if not isinstance(state, tuple) or len(state) < 8 or value.entries or value.items:
        raise damaged(name, "a dtype whose state numpy does not write", 0)
    subarray, names, fields, stated, _, flags = state[2:8]
    if kind in "SUV" and (type(stated) is not int or stated != itemsize):
        raise damaged(name, "a dtype of two sizes", 0)
    if subarray is not None:
        base = dtype(subarray[0], name, depth + 1) if isinstance(subarray, tuple) and len(subarray) == 2 else None
        if base is None:
            raise damaged(name, "a dtype of subarrays that numpy does not write", 0)
        objects = objects or base.objects
    if names is not None or fields is not None:
        if not isinstance(fields, dict) or not isinstance(names, tuple) or kind != "V" or len(fields) > 4096:
            raise damaged(name, "a dtype whose fields numpy does not write", 0)
        for field in fields.values():
            inner = dtype(field[0], name, depth + 1) if isinstance(field, tuple) and len(field) >= 2 else None
            if inner is None or type(field[1]) is not int or not 0 <= field[1] <= itemsize - inner.itemsize:
                raise damaged(name, "a field that lies outside its dtype", 0)
            objects = objects or inner.objects
    if type(flags) is not int or (bool(flags & 1) != objects and kind != "O"):
        raise damaged(name, "a dtype that both holds objects and does not", 0)
    return DType(label, itemsize, objects)


_DTYPE_CLASSES = {
    "numpy.float64": ("float64", 8, False), "numpy.float32": ("float32", 4, False),
    "numpy.int64": ("int64", 8, False), "numpy.int32": ("int32", 4, False), "builtins.float": ("float64", 8, False),
    "builtins.int": ("int64", 8, False), "numpy.bool_": ("bool", 1, False), "builtins.object": ("object", 8, True),
}  # fmt: skip
_RECONSTRUCT = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_FROM_BUFFER = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
SCALAR = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}


def shape_of(value: Value, name: str) -> tuple[int, ...]:
    """A shape.

    Raises:
        Corrupted: it is none, or of more elements than any machine holds.
    """
    if type(value) is int:
        value = (value,)
    if (
        not isinstance(value, tuple)
        or len(value) > MOST_AXES
        or not all(type(size) is int and 0 <= size <= MOST_ELEMENTS for size in value)
        or count(value) > MOST_ELEMENTS
    ):
        raise damaged(name, "an array of an impossible shape", 0)
    return value


def array(value: Value, name: str = "the pickle") -> Array | None:
    """The array a node stands for; None if it stands for something else.

    Raises:
        Corrupted: an array whose bytes do not fit its shape.
    """
    if not isinstance(value, Call):
        return None
    if value.path in _RECONSTRUCT:
        return _reconstructed(value, name)
    if value.path in _FROM_BUFFER and len(value.args) >= 3:
        kind = dtype(value.args[1], name)
        if kind is None:
            return None
        return _filled(value.args[0], kind, shape_of(value.args[2], name), "F" in value.args[3:4], name)
    if value.path == WRAPPER and isinstance(value.entries, dict):
        kept = value.entries.get(_KEPT)
        return kept if isinstance(kept, Array) else array(kept, name)
    return None


_KEPT = "array"
"""Under which the hook leaves what it found at a wrapper; a wrapper has no entries of its own."""


def _reconstructed(value: Call, name: str) -> Array | None:
    state = value.state
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        return None
    shape, kind, fortran, data = state[-4:]
    known = dtype(kind, name)
    if known is None:
        return None
    return _filled(data, known, shape_of(shape, name), fortran is True, name)


def _filled(data: Value, kind: DType, shape: tuple[int, ...], fortran: bool, name: str) -> Array:
    while isinstance(data, Call) and data.path in {"builtins.bytearray", "_codecs.encode", "builtins.bytes"}:
        encoded = data.path == "_codecs.encode"
        data = data.args[0] if data.args else b""
        if isinstance(data, str):
            data = data.encode("latin-1", "replace") if encoded or not data else b""
        elif isinstance(data, Blob) and data.text:
            return Array(kind.name, shape, kind.itemsize, fortran=fortran)  # in UTF-8: no place to read numbers from
    if kind.objects:
        items = tuple(data) if isinstance(data, list) else None
        return Array(kind.name, shape, kind.itemsize, items=items, fortran=fortran)
    if isinstance(data, (bytes, bytearray)):
        length, offset, held = len(data), None, bytes(data)
    elif isinstance(data, Blob):
        length, offset, held = data.length, data.offset, None
    else:
        raise damaged(name, "an array of numbers without its bytes", 0)
    if length != count(shape) * kind.itemsize:
        raise damaged(name, f"an array of {count(shape)} elements of {kind.itemsize} bytes in {length} bytes", 0)
    return Array(kind.name, shape, kind.itemsize, offset, held, None, fortran)


class Splices:
    """Finds joblib's arrays while a pickle is interpreted: raw numbers are passed over, pickles inside interpreted too.

    Args:
        data: what is interpreted.
        inner: told each pickle inside, for its globals.
    """

    def __init__(self, data: Readable, limits: Limits, inner: Callable[[Pickle], None], name: str) -> None:
        self._data = data
        self._limits = limits
        self._inner = inner
        self._name = name
        self._depth = 0
        self._nested = 0

    @property
    def hooks(self) -> dict[str, Hook]:
        return {WRAPPER: self._wrapper}

    def _wrapper(self, node: Call, offset: int) -> int:
        state = mapping(node.state) or {}
        kind = dtype(state.get("dtype"), self._name)
        order = state.get("order")
        if kind is None or order not in ("C", "F") or node.args or node.entries or node.items:
            raise damaged(self._name, "an array of joblib's that joblib does not write", offset)
        shape = shape_of(state.get("shape"), self._name)
        if kind.objects:
            return self._objects(node, offset)
        begin = offset
        alignment = state.get("numpy_array_alignment_bytes")
        if alignment is not None:
            padding = self._data.some(offset, 1)
            if not padding:
                raise damaged(self._name, "it is cut short", offset)
            begin += 1 + padding[0]
        length = count(shape) * kind.itemsize
        node.entries = {_KEPT: Array(kind.name, shape, kind.itemsize, begin, None, None, order == "F")}
        if length and not self._data.some(begin + length - 1, 1):
            raise Corrupted(
                f"{self._name} is cut short: an array of {length} bytes begins at {begin}.", fix="Fetch the file again."
            )
        return begin + length - offset

    def _objects(self, node: Call, offset: int) -> int:
        self._nested += 1
        self._depth += 1
        if self._depth > DEEPEST or self._nested > MOST_NESTED:
            raise damaged(self._name, "pickles inside pickles without end", offset)
        within = interpret(self._data, start=offset, limits=self._limits, hooks={}, name=self._name)
        self._depth -= 1
        self._inner(within)
        node.entries = {_KEPT: within.value}
        return within.end - offset


def standing_for(found: Array) -> Call:
    """A node that `array` takes for `found`, for readers of formats that are no pickles."""
    module, _, name = WRAPPER.rpartition(".")
    return Call(Global(module, name), (), entries={_KEPT: found})
