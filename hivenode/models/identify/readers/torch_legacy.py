"""What `torch.save` wrote before 1.6: five pickles, then the storages' raw bytes, each after its length."""

from __future__ import annotations

import struct

from hivenode.errors import Corrupted
from hivenode.models.identify.formats.allowed import judge
from hivenode.models.identify.formats.pickles import Global, PersistentId, Pickle, Value, interpret, label, walk
from hivenode.models.identify.formats.torch_pickles import ALLOWED, DTYPES, STORAGES, View
from hivenode.models.identify.readers.torch_checkpoints import describe
from hivenode.models.identify.report import Confidence, Report
from hivenode.models.identify.source import Source

NUMBER = 0x1950A86A20F9469CFC6C
MAGICS = tuple(bytes((0x80, protocol)) + b"\x8a\x0a" + NUMBER.to_bytes(10, "little") + b"." for protocol in range(2, 5))
FRAMED = b"\x80\x04\x95\x0d\0\0\0\0\0\0\0\x8a\x0a" + NUMBER.to_bytes(10, "little") + b"."
MOST_STORAGES = 500_000


def detects(head: bytes, source: Source) -> bool:
    return head.startswith((*MAGICS, FRAMED))


def read(source: Source) -> Report:
    report = Report(safe=True)
    report.know(Confidence.read, "its magic number", format="torch_legacy")
    at = 0
    pickles: list[Pickle] = []
    for name in ("the magic number", "the protocol", "the system", "the object", "the storages' keys"):
        pickles.append(interpret(source, start=at, name=f"{name} in {source.name}"))
        judge(report, pickles[-1], ALLOWED)
        at = pickles[-1].end
    starts, sizes, end = _storages(source, pickles[4].value, _itemsizes(pickles[3].value), at)
    if end != source.size:
        report.find(f"{source.size - end} bytes after the last storage", f"byte {end}", "torch writes nothing there")

    def place(view: View) -> tuple[int | None, str]:
        storage = view.storage
        if storage is None:
            return None, ""
        width = 1 if storage.untyped else view.itemsize
        if storage.key not in starts or storage.elements * width > sizes[storage.key]:
            raise Corrupted(
                f"{source.name} lies: storage {storage.key} is not there or shorter than claimed.",
                fix="Fetch the file again from where it was made.",
            )
        return starts[storage.key], ""

    describe(report, pickles[3].value, place)
    return report


def _itemsizes(value: Value) -> dict[str, int]:
    """Bytes an element of each storage, by its class in the persistent ids."""
    found: dict[str, int] = {}
    for node in walk(value):
        parts = node.value if isinstance(node, PersistentId) else None
        if isinstance(parts, tuple) and len(parts) >= 5 and isinstance(parts[1], Global):
            dtype = STORAGES.get(parts[1].name)
            if dtype is not None:
                found[label(parts[2])] = DTYPES[dtype]
    return found


def _storages(
    source: Source, keys: Value, itemsizes: dict[str, int], at: int
) -> tuple[dict[str, int], dict[str, int], int]:
    """Where each storage begins, how many bytes it has, and where the last one ends.

    Raises:
        Corrupted: the keys are no list, or a storage ends beyond the file.
    """
    if not isinstance(keys, list) or len(keys) > MOST_STORAGES:
        raise Corrupted(f"{source.name} does not list its storages.", fix="Fetch the file again.")
    starts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for key in map(label, keys):
        (elements,) = struct.unpack("<q", source.read(at, 8))
        size = elements * itemsizes.get(key, 1)
        at += 8
        if elements < 0 or at + size > source.size or key in starts:
            raise Corrupted(
                f"{source.name} is cut short or lies about its sizes: storage {key[:40]} ends beyond its end.",
                fix="Fetch the file again.",
            )
        starts[key], sizes[key] = at, size
        at += size
    return starts, sizes, at
