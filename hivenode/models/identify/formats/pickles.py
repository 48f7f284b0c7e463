"""A pickle machine that builds nothing: protocols 0 to 5, every opcode, no import and no call.

Plain data comes out as plain data. What a pickle would import is a `Global`, what it would call a `Call`: names and
arguments, never objects. Opcodes after PEP 3154, PEP 574 and CPython's `pickletools`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import msgspec

from hivenode.errors import Corrupted
from hivenode.models.identify.source import Held, Readable

Value: TypeAlias = Any
"""None, bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset or one of the nodes below."""


class Limits(msgspec.Struct, frozen=True):
    """What one pickle may take.

    Attributes:
        operations: opcodes.
        marks: lists, tuples and dicts begun inside each other.
        string: bytes of one string.
        line: bytes of one line of the text opcodes.
        total: bytes of opcodes and strings (not of what hooks skip).
        integer: bytes of one integer.
        held: longer strings and bytes are left where they are, as a `Blob`.
    """

    operations: int = 4_000_000
    marks: int = 1_000
    string: int = 16 << 20
    line: int = 64 << 10
    total: int = 48 << 20
    integer: int = 256
    held: int = 16 << 20


USUAL = Limits()


class Global(msgspec.Struct, frozen=True):
    """What would be imported: `module` and the dotted `name` in it; `path` is both."""

    module: str
    name: str
    path: str = ""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "path", f"{self.module}.{self.name}")


class Call(msgspec.Struct, eq=False):
    """What would be called, or made by a class, and what is done to it afterwards.

    Attributes:
        function: a `Global`, unless the pickle plays tricks.
        args: positional arguments.
        kwargs: keyword arguments (NEWOBJ_EX).
        state: the argument of BUILD, i.e. of `__setstate__`; the last one, if there are several.
        items: what was appended or added.
        entries: what was set by key.
    """

    function: Value
    args: tuple[Value, ...]
    kwargs: dict[Value, Value] | None = None
    state: Value = None
    items: list[Value] | None = None
    entries: dict[Value, Value] | None = None

    @property
    def path(self) -> str:
        """Of the function; "" if it is no plain global."""
        return self.function.path if isinstance(self.function, Global) else ""


class PersistentId(msgspec.Struct, eq=False):
    """A reference to something outside the pickle, e.g. a tensor's storage."""

    value: Value


class Opaque(msgspec.Struct, eq=False):
    """A value that is not kept: what it is, in a word or two."""

    what: str


class Blob(msgspec.Struct, eq=False):
    """Bytes, or text in UTF-8, too long to be held: where they lie in what was interpreted."""

    offset: int
    length: int
    text: bool = False


class Key(tuple[Value, ...]):
    """A tuple used as a key. Its hash depends on this process, so that nobody can prepare keys that collide."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(repr(tuple(self)))


class GlobalUse(msgspec.Struct, frozen=True):
    """Where a global stands in the pickle. `module` and `qualname` as written; `name` is both with a dot."""

    name: str
    offset: int
    module: str
    qualname: str


class Oddity(msgspec.Struct, frozen=True):
    """What no pickler writes: a call of a computed function, a global whose attributes are set, ..."""

    what: str
    offset: int


class Pickle(msgspec.Struct):
    """One interpreted pickle.

    Attributes:
        value: the inert tree; it may contain itself.
        globals: in the order of the file, each use of the import opcodes.
        oddities: constructs no pickler writes.
        end: offset after STOP.
        protocol: as declared; 0 without a declaration.
    """

    value: Value
    globals: list[GlobalUse]
    oddities: list[Oddity]
    end: int
    protocol: int = 0
    operations: int = 0


Hook: TypeAlias = Callable[[Call, int], int]
"""Gets a node that has just been given its state, and the offset after BUILD; returns how many bytes to skip there."""


def interpret(
    data: bytes | Readable,
    *,
    start: int = 0,
    limits: Limits = USUAL,
    hooks: Mapping[str, Hook] | None = None,
    name: str = "the pickle",
) -> Pickle:
    """Interpret one pickle, from `start` to its STOP.

    Args:
        data: bytes, or anything that is read in pieces.
        hooks: by the path of a class; called when an instance of it has been given its state.
        name: of the file or entry, for errors.

    Raises:
        Corrupted: it is no pickle, damaged, cut short, or takes more than `limits`.
    """
    from hivenode.models.identify.formats.pickle_machine import Machine

    reader = Held(data) if isinstance(data, bytes) else data
    return Machine(reader, start, limits, hooks or {}, name).run()


def children(value: Value) -> Iterator[Value]:
    """What a node holds directly."""
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif isinstance(value, Call):
        yield value.function
        yield from value.args
        for more in (value.kwargs, value.state, value.items, value.entries):
            if more is not None:
                yield more
    elif isinstance(value, PersistentId):
        yield value.value


def walk(value: Value) -> Iterator[Value]:
    """Every node below `value` and itself, each once, whatever cycles there are; no recursion."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (dict, list, tuple, set, frozenset, Call, PersistentId)):
            if id(node) in seen:
                continue
            seen.add(id(node))
            waiting.extend(children(node))
        yield node


def mapping(value: Value) -> dict[Value, Value] | None:
    """The entries of a dict, an OrderedDict, a defaultdict or any other object filled by key; else None."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Call):
        if value.entries is not None:
            return value.entries
        if value.path in {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}:
            return _pairs(value.args)
    return None


def _pairs(args: tuple[Value, ...]) -> dict[Value, Value]:
    """The entries an OrderedDict is made with: Python 2 pickled them as one list of lists of two."""
    pairs = args[0] if len(args) == 1 and isinstance(args[0], list) else []
    made: dict[Value, Value] = {}
    for pair in pairs:
        if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str | int | bytes):
            made[pair[0]] = pair[1]
    return made


def label(value: Value) -> str:
    """A text or number as text, "" for all else: the text of a node that holds another twice, and so on, is endless."""
    return str(value) if isinstance(value, str | int) else ""


def attributes(value: Value) -> dict[Value, Value]:
    """The instance dictionary an object would get: its state, also where slots come with it; {} if it has none."""
    if not isinstance(value, Call):
        return {}
    state = value.state
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        return {**(state[0] if isinstance(state[0], dict) else {}), **state[1]}
    return state if isinstance(state, dict) else {}


def damaged(name: str, what: str, offset: int) -> Corrupted:
    """The error for a pickle that cannot be right."""
    return Corrupted(
        f"{name} is no sound pickle: {what} at byte {offset}.",
        fix="It is damaged or made to mislead; fetch it from where it was made.",
    )
