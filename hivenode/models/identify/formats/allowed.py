"""Globals that do no harm whatever they are called with, by themselves and together; everything else is named.

An allow-list, never a block-list: what is not here is a finding. A name is here because what it makes is a container,
a number, an array or a tensor, and because calling it neither imports, opens, runs nor looks up anything by a name in
the file.
"""

from __future__ import annotations

from collections.abc import Collection

from hivenode.models.identify.formats.pickles import Blob, Call, Pickle, walk
from hivenode.models.identify.report import Report

_BUILTINS = (
    "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set",
    "slice", "str", "tuple",
)  # fmt: skip
_COLLECTIONS = ("Counter", "OrderedDict", "defaultdict", "deque")
_NUMPY_SCALARS = (
    "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "complex64", "complex128", "str_", "bytes_",
)  # fmt: skip
PLAIN: frozenset[str] = frozenset(
    {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS}
    | {"__builtin__.long", "__builtin__.unicode"}
    | {f"collections.{name}" for name in _COLLECTIONS}
    | {"_codecs.encode", "datetime.datetime", "datetime.date", "datetime.timedelta", "datetime.time"}
    | {"pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath"}
    | {"argparse.Namespace", "copyreg._reconstructor", "copy_reg._reconstructor"}
)
"""Of Python itself. `_codecs.encode` is how protocol 2 spells bytes, and is allowed for latin1 alone."""
NUMPY: frozenset[str] = frozenset(
    {f"numpy.{name}" for name in (*_NUMPY_SCALARS, "dtype", "ndarray", "matrix", "matrixlib.defmatrix.matrix")}
    | {
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    }
)
"""What numpy writes for arrays, dtypes and scalars."""
WHY = "not on the list of names that only hold data: loading the file could run it"


def judge(
    report: Report, pickle: Pickle, allowed: Collection[str], where: str = "", *, start: int = 0, why: str = WHY
) -> None:
    """Put everything in a pickle that is not known to be harmless into the report's findings.

    Args:
        allowed: paths of globals; one whose name in the module has a dot is another thing than it looks like, and is
            never allowed.
        where: file or entry that holds the pickle.
        start: added to offsets.
    """
    named: set[str] = set()
    for use in pickle.globals:
        if (use.name not in allowed or "." in use.qualname) and use.name not in named:
            named.add(use.name)
            report.find(use.name, place(where, start + use.offset), why)
    for oddity in pickle.oddities:
        if oddity.what not in named:
            named.add(oddity.what)
            report.find(oddity.what, place(where, start + oddity.offset), "no pickler writes this; it hides something")
    if any(use.name == "_codecs.encode" for use in pickle.globals):
        for node in walk(pickle.value):
            if isinstance(node, Call) and node.path == "_codecs.encode" and not _spells_bytes(node.args):
                report.find("_codecs.encode", where, "used for something else than to spell bytes")
                break


def _spells_bytes(args: tuple[object, ...]) -> bool:
    return len(args) == 2 and isinstance(args[0], str | Blob) and args[1] in ("latin1", "latin-1")


def place(where: str, offset: int) -> str:
    """A place for a person: `model/data.pkl at byte 17`."""
    return f"{where} at byte {offset}" if where else f"byte {offset}"
