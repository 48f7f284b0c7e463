"""Arrays of numpy: .npy, and .npz, a zip archive of them. Arrays of objects are pickles."""

from __future__ import annotations

from hivenode.errors import Corrupted
from hivenode.models.identify.formats import npy
from hivenode.models.identify.formats.archives import STORED, Archive
from hivenode.models.identify.formats.numpy_pickles import Array
from hivenode.models.identify.formats.python_pickles import content
from hivenode.models.identify.naming.buffers import is_buffer
from hivenode.models.identify.naming.estimator_objects import tensor_of
from hivenode.models.identify.naming.estimator_pickles import ALLOWED, NEVER_GIVEN_ARGUMENTS
from hivenode.models.identify.naming.tables_of_values import is_called, recognise_array
from hivenode.models.identify.report import Confidence, Report, Tensor, count
from hivenode.models.identify.source import Held, Readable, Source

MOST_ENTRIES = 20_000
LONGEST_PICKLE = 32 << 20


def detects(head: bytes, source: Source) -> bool:
    if head.startswith(npy.MAGIC):
        return True
    archive = Archive.sound(head, source)
    return archive is not None and bool(archive.entries) and all(name.endswith(".npy") for name in archive.entries)


def read(source: Source) -> Report:
    report = Report(safe=True)
    stem = source.name.split(".")[0]
    if source.head(6) == npy.MAGIC:
        report.know(Confidence.read, "its magic", format="npy", framework="numpy")
        found = npy.header(source, source.name)
        _check(report, found, source, source.size, "", source.name)
        report.hold([tensor_of("array", found)], "its header")
        recognise_array(report, found, f"{stem} by its file's name" if is_called(stem) else None)
        return report
    report.know(Confidence.read, "an archive of .npy", format="npz", framework="numpy")
    tensors = _entries(report, Archive.of(source))
    report.hold(tensors, "the headers of its entries")
    if not _table(report, tensors, stem):
        from hivenode.models.identify.naming.state_dicts import recognise

        recognise(report, tensors)
    return report


def _entries(report: Report, archive: Archive) -> list[Tensor]:
    tensors = []
    for name, entry in list(archive.entries.items())[:MOST_ENTRIES]:
        data = archive.stored(name)
        found = npy.header(data, name)
        _check(report, found, data, entry.size, name, f"{name} in {archive.source.name}")
        plain = tensor_of(name.removesuffix(".npy"), found)
        begin = None
        if entry.method == STORED and found.offset is not None:
            begin = archive.start(name) + found.offset
        buffer = False if is_buffer(plain.name, plain.shape) else None
        tensors.append(Tensor(plain.name, plain.dtype, plain.shape, "", begin, plain.nbytes, plain.stride, buffer))
    return tensors


def _check(report: Report, found: Array, data: Readable, size: int, where: str, name: str) -> None:
    """That the numbers are there; and what a pickle in their place would do."""
    begin = found.offset or 0
    if found.dtype == "object":
        raw = data.some(begin, min(size - begin, LONGEST_PICKLE))
        content(report, Held(raw), name, ALLOWED, NEVER_GIVEN_ARGUMENTS, where=where)
    elif begin + count(found.shape) * found.itemsize != size:
        raise Corrupted(
            f"{name} is cut short or lies: shape {list(found.shape)} does not fit its {size} bytes.",
            fix="Fetch the file again.",
        )


def _table(report: Report, tensors: list[Tensor], stem: str) -> bool:
    """Whether one of the arrays is a Q-table: the one called so, or the only one there is."""
    for tensor in tensors:
        if is_called(tensor.name) and recognise_array(report, tensor, tensor.name):
            report.know(Confidence.read, f"the header of {tensor.name}", parameters=count(tensor.shape))
            return True
    if len(tensors) == 1:
        called = f"{stem} by its file's name" if is_called(stem) else None
        return recognise_array(report, tensors[0], called)
    return False
