"""Files of pickles by plain `pickle` or joblib, compressed or not: interpreted to their end, and judged."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hivenode.errors import HiveError
from hivenode.models.identify.formats.allowed import judge, place
from hivenode.models.identify.formats.compression import MOST_PACKED, Unpacked, compression
from hivenode.models.identify.formats.numpy_pickles import WRAPPER, Splices
from hivenode.models.identify.formats.pickles import Call, Limits, Opaque, PersistentId, Pickle, Value, interpret, walk
from hivenode.models.identify.report import Report
from hivenode.models.identify.source import Readable, Source

MARKED = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_UNMARKED = re.compile(
    rb"\(?[ci][A-Za-z_][\w.]{0,200}\n[A-Za-z_][\w.]{0,200}\n"  # a global
    rb"|\([dl][p0-9]|[\]}](q[\x00-\xff]|r[\x00-\xff]{4}|[(.])|\(\(?[IFVScXKMJGUN][\x00-\xff]|\([dlit]?[p\]}()]"
)
"""How pickles of protocols 0 and 1, which have no mark, begin."""
LIMITS = Limits(held=8 << 10)
MOST_PICKLES = 64
HEAD = 64
_BASES = frozenset(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in (
    "object", "dict", "list", "tuple", "set", "float", "int", "str"))  # fmt: skip
_REBUILDERS = ("copyreg._reconstructor", "copy_reg._reconstructor")


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins so can be a pickle."""
    return head.startswith(MARKED) or _UNMARKED.match(head) is not None


def unpacks_to_pickle(head: bytes, source: Source) -> bool:
    """Whether a compressed file holds a pickle, by its first bytes; never raises."""
    kind = compression(head)
    if kind is None:
        return False
    try:
        return is_pickle(Unpacked(source, source.size, kind, source.name).some(0, HEAD))
    except HiveError:
        return False


@dataclass
class Content:
    """What a file of pickles holds.

    Attributes:
        values: of each pickle, one after the other.
        data: what they were read from, after decompression.
        compression: None if there is none.
        spliced: whether joblib put arrays between the opcodes.
    """

    values: list[Value]
    data: Readable
    compression: str | None = None
    spliced: bool = False
    pickles: list[Pickle] = field(default_factory=list)


@contextmanager
def opened(source: Source) -> Iterator[tuple[Readable, str | None]]:
    """A file, or what it unpacks to, and how it is compressed.

    A compressed file must be read from its beginning to its end, arrays and all, and has a larger budget for it.
    """
    kind = compression(source.head(16))
    if kind is None:
        yield source, None
    elif type(source) is Source:
        with Source(source.path, budget=MOST_PACKED, name=source.name) as packed:
            yield Unpacked(packed, packed.size, kind, source.name), kind
            source.bytes_read += packed.bytes_read
    else:
        yield Unpacked(source, source.size, kind, source.name), kind


def content(
    report: Report,
    data: Readable,
    name: str,
    allowed: Collection[str],
    bare: Collection[str],
    *,
    kind: str | None = None,
    where: str = "",
) -> Content:
    """Interpret every pickle in a file, and put what is not known to be harmless into the findings.

    Args:
        name: of the file, for errors.
        allowed: globals that may be mentioned.
        bare: of those, classes whose instances must be made without arguments.
        where: the entry, for places.

    Raises:
        Corrupted: a pickle is damaged or cut short.
        Exhausted: more of them than is read.
    """
    made = Content([], data, kind)
    inner = frozenset(allowed)
    outer = inner | {WRAPPER}

    def nested(pickle: Pickle) -> None:
        judge(report, pickle, inner, where)
        check_calls(report, pickle.value, bare, where)

    at = 0
    while True:
        splices = Splices(data, LIMITS, nested, name)
        pickle = interpret(data, start=at, limits=LIMITS, hooks=splices.hooks, name=name)
        judge(report, pickle, outer, where)
        check_calls(report, pickle.value, bare, where)
        made.values.append(pickle.value)
        made.pickles.append(pickle)
        made.spliced = made.spliced or any(use.name == WRAPPER for use in pickle.globals)
        at = pickle.end
        following = data.some(at, HEAD)
        if not following:
            break
        if not is_pickle(following) or len(made.values) >= MOST_PICKLES:
            report.find(
                "bytes after the last pickle", place(where, at), "another reader may take them for its own file"
            )
            break
    if isinstance(data, Unpacked) and data.rest:
        report.find(f"{data.rest} bytes after the compressed data", where or name, "another reader may take them")
    return made


def check_calls(report: Report, value: Value, bare: Collection[str], where: str = "") -> None:
    """Find uses of allowed names that are not how picklers use them."""
    found: set[str] = set()

    def find(what: str, why: str) -> None:
        if what not in found:
            found.add(what)
            report.find(what, where or "in a call", why)

    for node in walk(value):
        if isinstance(node, Call):
            path = node.path
            if path in bare and (node.args or node.kwargs):
                find(f"{path} with arguments", "instances are made without any; a constructor may open files")
            elif path in _REBUILDERS:
                base = node.args[1] if len(node.args) == 3 else None
                if getattr(base, "path", "") not in _BASES:
                    find(path, "used for something else than to make an instance")
        elif isinstance(node, PersistentId):
            find("a persistent id", "it refers to something outside the file, which the loader chooses")
        elif isinstance(node, Opaque) and node.what == "buffer kept outside":
            find("an out-of-band buffer", "it refers to something outside the file")
