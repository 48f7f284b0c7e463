"""The loop behind `pickles.interpret`."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Mapping
from typing import NoReturn

from hivenode.models.identify.formats.pickles import (
    Blob,
    Call,
    Global,
    GlobalUse,
    Hook,
    Key,
    Limits,
    Oddity,
    Opaque,
    PersistentId,
    Pickle,
    Value,
    damaged,
)
from hivenode.models.identify.source import Readable

FIRST_WINDOW = 4 << 10
LARGEST_WINDOW = 256 << 10
MOST_RECORDED = 200_000
HIGHEST_PROTOCOL = 5
KEY_BITS = 64
KEY_LENGTH = 64
KEY_TEXT = 256

_u16 = struct.Struct("<H").unpack_from
_i32 = struct.Struct("<i").unpack_from
_u32 = struct.Struct("<I").unpack_from
_u64 = struct.Struct("<Q").unpack_from
_f64 = struct.Struct(">d").unpack_from


class Machine:
    """Interprets one pickle; see `pickles.interpret`."""

    def __init__(self, data: Readable, start: int, limits: Limits, hooks: Mapping[str, Hook], name: str) -> None:
        self._data = data
        self._limits = limits
        self._hooks = hooks
        self._name = name
        self._window = b""
        self._base = start
        """Offset of the window's first byte."""
        self._at = 0
        """Place in the window."""
        self._next_window = FIRST_WINDOW
        self._total = 0
        self._stack: list[Value] = []
        self._below: list[list[Value]] = []
        self._memo: dict[int, Value] = {}
        self._interned: dict[Global, Global] = {}
        self._pickle = Pickle(None, [], [], start)

    def run(self) -> Pickle:
        try:
            return self._run()
        except IndexError:
            self._fail("something is taken from an empty stack")
        except KeyError:
            self._fail("something is used that was never kept")

    def _run(self) -> Pickle:
        # The commonest opcodes are inlined: a state dict of a thousand tensors has some forty thousand.
        memo = self._memo
        stack = self._stack
        handlers = _HANDLERS
        operations, most = 0, self._limits.operations
        while True:
            operations += 1
            if operations > most:
                self._fail(f"more than {most} operations")
            window, at = self._window, self._at
            if at + 9 > len(window):  # the longest fixed-size argument
                self._refill(9)
                window, at = self._window, self._at
                if at >= len(window):
                    self._fail("it ends without STOP")
            code = window[at]
            try:
                if code == 0x71:  # BINPUT
                    memo[window[at + 1]] = stack[-1]
                    self._at = at + 2
                elif code == 0x68:  # BINGET
                    stack.append(memo[window[at + 1]])
                    self._at = at + 2
                elif code == 0x72:  # LONG_BINPUT
                    memo[_u32(window, at + 1)[0]] = stack[-1]
                    self._at = at + 5
                elif code == 0x6A:  # LONG_BINGET
                    stack.append(memo[_u32(window, at + 1)[0]])
                    self._at = at + 5
                elif code == 0x94:  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                    self._at = at + 1
                elif code == 0x4B:  # BININT1
                    stack.append(window[at + 1])
                    self._at = at + 2
                elif code == 0x4D:  # BININT2
                    stack.append(_u16(window, at + 1)[0])
                    self._at = at + 3
                elif code == 0x4A:  # BININT
                    stack.append(_i32(window, at + 1)[0])
                    self._at = at + 5
                elif code == 0x28:  # MARK
                    if len(self._below) >= self._limits.marks:
                        self._fail(f"nesting deeper than {self._limits.marks}")
                    self._below.append(stack)
                    stack = self._stack = []
                    self._at = at + 1
                elif code == 0x74:  # TUPLE
                    made = tuple(stack)
                    stack = self._stack = self._below.pop()
                    stack.append(made)
                    self._at = at + 1
                elif code == 0x58:  # BINUNICODE
                    self._at = at + 5
                    self._long(_u32(window, at + 1)[0], text=True)
                elif code == 0x52:  # REDUCE
                    args = stack.pop()
                    self._call(stack.pop(), args)
                    self._at = at + 1
                elif code == 0x29:  # EMPTY_TUPLE
                    stack.append(())
                    self._at = at + 1
                elif code == 0x51:  # BINPERSID
                    stack.append(PersistentId(stack.pop()))
                    self._at = at + 1
                elif code == 0x2E:  # STOP
                    self._at = at + 1
                    if self._below:
                        self._fail("STOP inside a mark")
                    self._pickle.value = stack.pop()
                    self._pickle.end = self._base + self._at
                    self._pickle.operations = operations
                    return self._pickle
                else:
                    handler = handlers.get(code)
                    if handler is None:
                        self._fail(f"{bytes([code])!r} is no opcode")
                    self._at = at + 1
                    handler(self)
                    stack = self._stack
            except struct.error:
                self._fail("it is cut short")

    # reading

    def _refill(self, needed: int) -> None:
        """Make `needed` bytes from here on available, or all there are."""
        left = self._window[self._at :]
        self._base += self._at
        self._at = 0
        wanted = max(needed - len(left), self._next_window)
        self._next_window = min(2 * self._next_window, LARGEST_WINDOW)
        more = self._data.some(self._base + len(left), wanted)
        self._total += len(more)
        if self._total > self._limits.total + LARGEST_WINDOW:
            self._fail(f"more than {self._limits.total >> 20} MiB")
        self._window = left + more

    def _take(self, length: int) -> bytes:
        """The next `length` bytes."""
        if length > self._limits.string:
            self._fail(f"a string of {length} bytes")
        if self._at + length > len(self._window):
            self._refill(length)
            if length > len(self._window):
                self._fail("it is cut short")
        taken = self._window[self._at : self._at + length]
        self._at += length
        return taken

    def _line(self) -> bytes:
        """The next line, without its end."""
        while (end := self._window.find(b"\n", self._at)) < 0:
            had = len(self._window) - self._at
            if had > self._limits.line:
                self._fail(f"a line of more than {self._limits.line} bytes")
            self._refill(had + 1)
            if len(self._window) == had:
                self._fail("it is cut short")
        line = self._window[self._at : end]
        self._at = end + 1
        return line

    def _number(self, length: int) -> int:
        return int.from_bytes(self._take(length), "little")

    def _fail(self, what: str) -> NoReturn:
        raise damaged(self._name, what, self._base + self._at)

    # the stack

    def _marked(self) -> list[Value]:
        """What lies above the last mark; the mark goes."""
        above = self._stack
        self._stack = self._below.pop()
        return above

    def _push(self, value: Value) -> None:
        self._stack.append(value)

    def _odd(self, what: str) -> None:
        if len(self._pickle.oddities) < MOST_RECORDED:
            self._pickle.oddities.append(Oddity(what, self._base + self._at - 1))

    # constants

    def _text(self, raw: bytes) -> None:
        try:
            self._push(str(raw, "utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            self._fail("a string that is no UTF-8")

    def _long(self, length: int, *, text: bool = False) -> None:
        """A string or bytes of any length; past what is held, only its place."""
        if length > self._limits.held:
            here = self._base + self._at
            self._push(Blob(here, length, text))
            self._jump(here + length)
        elif text:
            self._text(self._take(length))
        else:
            self._push(self._take(length))

    def _old_text(self, raw: bytes) -> None:
        """A string of Python 2: text or bytes, nobody knows."""
        self._push(raw.decode("ascii") if raw.isascii() else raw)

    def _integer(self, length: int) -> None:
        if length < 0:
            self._fail("a negative length")
        raw = self._take(length)
        self._push(int.from_bytes(raw, "little", signed=True) if length <= self._limits.integer else Opaque("integer"))

    def _decimal(self, line: bytes) -> None:
        try:
            self._push(int(line, 0) if len(line) <= self._limits.integer else Opaque("integer"))
        except ValueError:
            self._fail("an integer that is none")

    def _int_line(self) -> None:
        line = self._line()
        if line in {b"00", b"01"}:
            self._push(line == b"01")
        else:
            self._decimal(line)

    def _float_line(self) -> None:
        line = self._line()
        try:
            self._push(float(line) if len(line) <= self._limits.integer else Opaque("float"))
        except ValueError:
            self._fail("a float that is none")

    def _string_line(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in {b"'", b'"'}:
            self._fail("a string without quotes")
        try:
            self._old_text(codecs.escape_decode(line[1:-1])[0])
        except ValueError:
            self._fail("a string with a broken escape")

    def _unicode_line(self) -> None:
        try:
            self._push(str(self._line(), "raw-unicode-escape"))
        except UnicodeDecodeError:
            self._fail("a string with a broken escape")

    def _skip(self, length: int) -> None:
        self._take(length)

    def _protocol(self) -> None:
        protocol = self._number(1)
        if protocol > HIGHEST_PROTOCOL:
            self._fail(f"protocol {protocol}, which does not exist,")
        self._pickle.protocol = protocol

    # containers

    def _key(self, key: Value) -> Value:
        """What stands for a key: hashing it must cost nothing and collide with nothing prepared."""
        if isinstance(key, (list, dict, set)):
            self._fail("a key that cannot be one")
        if isinstance(key, tuple):
            return Key(key) if len(key) <= KEY_LENGTH and all(map(_plain, key)) else Opaque("tuple")
        if isinstance(key, frozenset):
            return Opaque("frozenset")
        if isinstance(key, int) and key.bit_length() > KEY_BITS:
            return Opaque("integer")
        return key

    def _set(self, pairs: list[Value]) -> None:
        if len(pairs) % 2:
            self._fail("a key without a value")
        target = self._stack[-1]
        if isinstance(target, Call):
            if target.entries is None:
                target.entries = {}
            entries = target.entries
        elif type(target) is dict:
            entries = target
        else:
            self._odd(f"an entry is set in {_kind(target)}")
            return
        for place in range(0, len(pairs), 2):
            key = pairs[place]
            entries[key if type(key) is str else self._key(key)] = pairs[place + 1]

    def _extend(self, values: list[Value]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(values)
        elif isinstance(target, Call):
            if target.items is None:
                target.items = []
            target.items.extend(values)
        else:
            self._odd(f"something is appended to {_kind(target)}")

    def _add(self, values: list[Value]) -> None:
        target = self._stack[-1]
        if type(target) is set:
            target.update(map(self._key, values))
        elif isinstance(target, Call):
            if target.items is None:
                target.items = []
            target.items.extend(values)
        else:
            self._odd(f"something is added to {_kind(target)}")

    def _dict(self) -> None:
        pairs = self._marked()
        self._push({})
        self._set(pairs)

    def _tuple(self, length: int) -> None:
        stack = self._stack
        if len(stack) < length:
            raise IndexError
        stack[-length:] = [tuple(stack[-length:])]

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def _put(self, place: int) -> None:
        if place < 0:
            self._fail("a negative place")
        self._memo[place] = self._stack[-1]

    def _place(self) -> int:
        line = self._line()
        if not line.isdigit() or len(line) > 18:
            self._fail("a place that is no number")
        return int(line)

    # what would be imported and called

    def _import(self, module: str, name: str, offset: int) -> Global:
        if len(self._pickle.globals) >= MOST_RECORDED:
            self._fail(f"more than {MOST_RECORDED} imports")
        made = Global(module, name)
        made = self._interned.setdefault(made, made)
        self._pickle.globals.append(GlobalUse(made.path, offset, module, name))
        return made

    def _global_lines(self) -> Global:
        offset = self._base + self._at - 1
        module, name = self._line(), self._line()
        try:
            return self._import(module.decode(), name.decode(), offset)
        except UnicodeDecodeError:
            self._fail("a global whose name is no UTF-8")

    def _stack_global(self) -> None:
        offset = self._base + self._at - 1
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is str and type(module) is str:
            self._push(self._import(module, name, offset))
        else:
            shown = [part if type(part) is str else "?" for part in (module, name)]
            self._odd("a global whose name is computed")
            self._push(self._import(shown[0], shown[1], offset))

    def _extension(self, code: int) -> None:
        self._odd(f"extension code {code}, which stands for a global registered elsewhere")
        self._push(Global("copyreg", f"extension {code}"))

    def _call(self, function: Value, args: Value, kwargs: Value = None) -> None:
        if type(args) is not tuple:
            self._odd(f"arguments that are {_kind(args)}")
            args = (args,)
        if isinstance(function, PersistentId) and _names_class(function.value):
            function = function.value[1]
        if not isinstance(function, Global):
            self._odd(f"a call of {_kind(function)}")
        self._push(Call(function, args, kwargs if type(kwargs) is dict else None))

    def _reduce(self) -> None:
        args = self._stack.pop()
        self._call(self._stack.pop(), args)

    def _newobj_ex(self) -> None:
        kwargs, args = self._stack.pop(), self._stack.pop()
        if type(kwargs) is not dict:
            self._odd(f"keyword arguments that are {_kind(kwargs)}")
        self._call(self._stack.pop(), args, kwargs)

    def _obj(self) -> None:
        parts = self._marked()
        self._call(parts[0], tuple(parts[1:]))

    def _inst(self) -> None:
        function = self._global_lines()
        self._call(function, tuple(self._marked()))

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if not isinstance(target, Call):
            self._odd(f"attributes of {_kind(target)} are set")
            return
        if target.state is not None:
            self._odd(f"a second state for {target.path or 'an object'}")
        target.state = state
        hook = self._hooks.get(target.path)
        if hook is not None:
            here = self._base + self._at
            skipped = hook(target, here)
            if skipped:
                self._jump(here + skipped)

    def _jump(self, offset: int) -> None:
        if offset < self._base + self._at:
            self._fail("data that ends before it begins")
        ahead = offset - self._base
        if ahead <= len(self._window):
            self._at = ahead
        else:
            self._window, self._base, self._at, self._next_window = b"", offset, 0, FIRST_WINDOW


def _names_class(value: Value) -> bool:
    """Old torch wraps a module's class as ('module', class, file, its source); the class is what is called."""
    return type(value) is tuple and len(value) == 4 and value[0] == "module" and isinstance(value[1], Global)


def _plain(part: Value) -> bool:
    """Whether a part of a key is short enough to be spelt out each time it is hashed."""
    if isinstance(part, int):
        return part.bit_length() <= KEY_BITS
    if isinstance(part, (str, bytes)):
        return len(part) <= KEY_TEXT
    return part is None or isinstance(part, float)


def _kind(value: Value) -> str:
    """What a node is, for a person."""
    if isinstance(value, Global):
        return f"the global {value.path}"
    if isinstance(value, Call):
        return f"the result of {value.path}" if value.path else "a computed object"
    if isinstance(value, PersistentId):
        return "a persistent object"
    if isinstance(value, Opaque):
        return f"a {value.what}"
    if isinstance(value, Blob):
        return "a long string"
    return f"a {type(value).__name__}"


Handler = Callable[[Machine], None]


def _handlers() -> dict[int, Handler]:
    take, push = Machine._take, Machine._push
    length = Machine._number
    table: dict[bytes, Handler] = {
        b"\x80": Machine._protocol,
        b"\x95": lambda m: m._skip(8),  # FRAME
        b"N": lambda m: push(m, None),
        b"\x88": lambda m: push(m, True),
        b"\x89": lambda m: push(m, False),
        b"I": Machine._int_line,
        b"L": lambda m: m._decimal(m._line().rstrip(b"L")),
        b"F": Machine._float_line,
        b"G": lambda m: push(m, _f64(take(m, 8))[0]),
        b"\x8a": lambda m: m._integer(length(m, 1)),
        b"\x8b": lambda m: m._integer(_i32(take(m, 4))[0]),
        b"S": Machine._string_line,
        b"V": Machine._unicode_line,
        b"T": lambda m: m._old_text(take(m, length(m, 4))),
        b"U": lambda m: m._old_text(take(m, length(m, 1))),
        b"\x8c": lambda m: m._text(take(m, length(m, 1))),
        b"\x8d": lambda m: m._long(length(m, 8), text=True),
        b"B": lambda m: m._long(length(m, 4)),
        b"C": lambda m: push(m, take(m, length(m, 1))),
        b"\x8e": lambda m: m._long(length(m, 8)),
        b"\x96": lambda m: m._long(length(m, 8)),  # BYTEARRAY8
        b"\x97": lambda m: push(m, Opaque("buffer kept outside")),
        b"\x98": lambda m: push(m, m._stack.pop()),  # READONLY_BUFFER
        b"]": lambda m: push(m, []),
        b"}": lambda m: push(m, {}),
        b"\x8f": lambda m: push(m, set()),
        b"\x85": lambda m: m._tuple(1),
        b"\x86": lambda m: m._tuple(2),
        b"\x87": lambda m: m._tuple(3),
        b"l": lambda m: push(m, m._marked()),
        b"d": Machine._dict,
        b"a": lambda m: m._extend([m._stack.pop()]),
        b"e": lambda m: m._extend(m._marked()),
        b"s": lambda m: m._set([m._stack.pop(-2), m._stack.pop()]),
        b"u": lambda m: m._set(m._marked()),
        b"\x90": lambda m: m._add(m._marked()),
        b"\x91": lambda m: push(m, frozenset(map(m._key, m._marked()))),
        b"0": Machine._pop,
        b"1": lambda m: m._marked().clear(),
        b"2": lambda m: push(m, m._stack[-1]),
        b"p": lambda m: m._put(m._place()),
        b"g": lambda m: push(m, m._memo[m._place()]),
        b"c": lambda m: push(m, m._global_lines()),
        b"\x93": Machine._stack_global,
        b"\x82": lambda m: m._extension(length(m, 1)),
        b"\x83": lambda m: m._extension(length(m, 2)),
        b"\x84": lambda m: m._extension(length(m, 4)),
        b"\x81": Machine._reduce,  # NEWOBJ
        b"\x92": Machine._newobj_ex,
        b"o": Machine._obj,
        b"i": Machine._inst,
        b"b": Machine._build,
        b"P": lambda m: push(m, PersistentId(m._line().decode("latin-1"))),
    }
    return {code[0]: handler for code, handler in table.items()}


_HANDLERS = _handlers()
