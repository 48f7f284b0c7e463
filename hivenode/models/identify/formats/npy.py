"""numpy's .npy: a magic, a header in Python's notation, raw numbers.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import re

from hivenode.errors import Corrupted
from hivenode.models.identify.formats.numpy_pickles import MOST_AXES, MOST_ELEMENTS, Array
from hivenode.models.identify.report import count
from hivenode.models.identify.source import Readable

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 64 << 10
_SIMPLE = r"[<>|=]?[a-zA-Z]\d{0,9}(?:\[\w{1,12}\])?"
_FIELD = re.compile(rf"\('[^'\\]{{0,200}}', '({_SIMPLE})'(?:, \((\d{{1,9}}(?:, ?\d{{1,9}})*),?\))?\)")
_FIELDS = re.compile(rf"\[{_FIELD.pattern}(?:, {_FIELD.pattern})*\]")
_HEADER = re.compile(
    rf"\{{'descr': (?:'({_SIMPLE})'|(\[.*\])), 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,16}L?,? ?)*)\),? ?\}\s*"
)
_DTYPE = re.compile(r"[<>|=]?([a-zA-Z?])(\d{0,9})")
_NAMES = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex", "S": "bytes", "U": "str", "V": "void",
          "m": "timedelta", "M": "datetime", "O": "object"}  # fmt: skip


def header(data: Readable, name: str) -> Array:
    """The array in a .npy, its numbers left where they are.

    Raises:
        Corrupted: it is none, or a header that numpy does not write.
    """
    head = data.some(0, 12)
    if not head.startswith(MAGIC) or len(head) < 12 or head[6] not in (1, 2, 3):
        raise _damaged(name, "it does not begin as one")
    width = 2 if head[6] == 1 else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    if length > LONGEST_HEADER:
        raise _damaged(name, f"its header takes {length} bytes")
    start = 8 + width
    raw = data.some(start, length)
    matched = _HEADER.fullmatch(raw.decode("utf-8", "replace")) if len(raw) == length else None
    if matched is None:
        raise _damaged(name, "its header is not what numpy writes")
    simple, fields, fortran, sizes = matched.groups()
    shape = tuple(int(size.rstrip("L")) for size in re.findall(r"\d+L?", sizes))
    if len(shape) > MOST_AXES or any(size > MOST_ELEMENTS for size in shape) or count(shape) > MOST_ELEMENTS:
        raise _damaged(name, "its shape is of no array")
    if simple is not None:
        label, itemsize = _simple(simple)
    else:
        if _FIELDS.fullmatch(fields) is None:
            raise _damaged(name, "its fields are not what numpy writes")
        itemsize, objects = 0, False
        for kind, inner in _FIELD.findall(fields):
            part, size = _simple(kind)
            itemsize += size * count(tuple(int(axis) for axis in re.findall(r"\d+", inner)))
            objects = objects or part == "object"
        label = "object" if objects else f"void{itemsize}"
    return Array(label, shape, itemsize, start + length, None, None, fortran == "True")


def _simple(spelt: str) -> tuple[str, int]:
    """numpy's name and the bytes of an element."""
    matched = _DTYPE.match(spelt)
    kind, size = (matched[1], int(matched[2] or 0)) if matched else ("V", 0)
    if kind == "O":
        return "object", 8
    if kind == "U":
        return f"str{size}", 4 * size
    if kind in "SV":
        return f"{_NAMES[kind]}{size}", size
    if kind in "b?":
        return "bool", 1
    return f"{_NAMES.get(kind, kind)}{8 * size}", size


def _damaged(name: str, what: str) -> Corrupted:
    return Corrupted(f"{name} is no sound array of numpy: {what}.", fix="Fetch the file again.")
