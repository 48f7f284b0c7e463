"""What `torch.save` of 0.1.1 wrote: a tar archive of `sys_info`, `storages`, `tensors` and `pickle`."""

from __future__ import annotations

import struct

from hivenode.errors import Corrupted
from hivenode.models.identify.formats.allowed import judge
from hivenode.models.identify.formats.archives import Member, is_tar, members
from hivenode.models.identify.formats.pickles import Call, Global, PersistentId, Value, interpret, label, walk
from hivenode.models.identify.formats.torch_pickles import ALLOWED, DTYPES, STORAGES, View
from hivenode.models.identify.readers.torch_checkpoints import describe
from hivenode.models.identify.report import Confidence, Report
from hivenode.models.identify.source import Part, Source

REBUILD = Global("torch._utils", "_rebuild_tensor")
MOST_AXES = 64
MOST_TENSORS = 200_000
TENSORS = frozenset(
    f"torch.{device}{name.replace('Storage', 'Tensor')}" for device in ("", "cuda.") for name in STORAGES
)


def detects(head: bytes, source: Source) -> bool:
    return is_tar(head)


def read(source: Source) -> Report:
    files = members(source)
    if not {"storages", "tensors", "pickle"} <= files.keys():
        raise Corrupted(
            f"{source.name} is a tar archive, but none of torch's.", fix="Unpack it and give the model that is in it."
        )
    report = Report(safe=True)
    report.know(Confidence.read, "storages, tensors and pickle in a tar", format="torch_tar")
    for name in files:
        if name not in {"sys_info", "storages", "tensors", "pickle"}:
            report.find(name, source.name, "torch puts no such file into a checkpoint")
    storages = _Reel(report, source, "storages", files["storages"])
    kept: dict[str, tuple[Global, int, int]] = {}
    for _ in range(storages.count()):
        key, _, kind = storages.tuple(3)
        (elements,) = struct.unpack("<q", storages.raw(8))
        dtype = STORAGES.get(kind.name) if isinstance(kind, Global) else None
        if dtype is None or elements < 0:
            raise storages.broken()
        kept[label(key)] = (kind, elements, storages.skip(elements * DTYPES[dtype]))
    shared: dict[str, tuple[str, int, int]] = {}
    views = storages.value()
    for entry in views if isinstance(views, list) else []:
        if isinstance(entry, tuple) and len(entry) == 4 and all(type(part) is int for part in entry[2:]):
            shared[label(entry[0])] = (label(entry[1]), entry[2], entry[3])
    tensors = _tensors(_Reel(report, source, "tensors", files["tensors"]), kept, shared)
    main = _Reel(report, source, "pickle", files["pickle"]).value()
    for node in walk(main):
        if isinstance(node, PersistentId) and label(node.value) in tensors:
            node.value = tensors[label(node.value)]

    def place(view: View) -> tuple[int | None, str]:
        return (kept[view.storage.key][2] if view.storage is not None else None), ""

    describe(report, main, place)
    return report


def _tensors(
    reel: _Reel, kept: dict[str, tuple[Global, int, int]], shared: dict[str, tuple[str, int, int]]
) -> dict[str, Call]:
    """Tensors by the key that stands for them in the pickle, in the form later versions write."""
    made: dict[str, Call] = {}
    for _ in range(reel.count()):
        key, storage, _ = reel.tuple(3)
        (axes,) = struct.unpack("<i4x", reel.raw(8))
        if not 0 <= axes <= MOST_AXES:
            raise reel.broken()
        numbers = struct.unpack(f"<{2 * axes + 1}q", reel.raw(16 * axes + 8))
        root, begin, _ = shared.get(label(storage), (label(storage), 0, 0))
        if root not in kept:
            raise reel.broken()
        kind, elements, _ = kept[root]
        held = PersistentId(("storage", kind, root, "cpu", elements))
        made[label(key)] = Call(REBUILD, (held, begin + numbers[-1], numbers[:axes], numbers[axes : 2 * axes]))
    return made


class _Reel:
    """A member that holds pickles and raw numbers in turn."""

    def __init__(self, report: Report, source: Source, name: str, member: Member) -> None:
        self._report = report
        self._source = source
        self._name = name
        self._part: Part = source.part(member.start, member.size)
        self._at = 0

    def value(self) -> Value:
        """The next pickle's value; what it would import is judged."""
        pickle = interpret(self._part, start=self._at, name=f"{self._name} in {self._source.name}")
        judge(self._report, pickle, ALLOWED | TENSORS, self._name)
        self._at = pickle.end
        return pickle.value

    def count(self) -> int:
        found = self.value()
        if type(found) is not int or not 0 <= found <= MOST_TENSORS:
            raise self.broken()
        return found

    def tuple(self, length: int) -> tuple[Value, ...]:
        found = self.value()
        if not isinstance(found, tuple) or len(found) != length:
            raise self.broken()
        return found

    def raw(self, length: int) -> bytes:
        data = self._part.some(self._at, length)
        if len(data) != length:
            raise self.broken()
        self._at += length
        return data

    def skip(self, length: int) -> int:
        """Leave out raw bytes; returns where they begin in the file."""
        begin = self._part.start + self._at
        self._at += length
        if self._at > self._part.size:
            raise self.broken()
        return begin

    def broken(self) -> Corrupted:
        return Corrupted(
            f"{self._source.name} is damaged: {self._name} makes no sense at byte {self._at}.",
            fix="Fetch the file again from where it was made.",
        )
