"""What `torch.save` writes since 1.6: a zip archive with a pickle, and a file for each storage."""

from __future__ import annotations

import re

from hivenode.errors import Corrupted
from hivenode.models.identify.formats.allowed import judge
from hivenode.models.identify.formats.archives import STORED, Archive
from hivenode.models.identify.formats.pickles import interpret
from hivenode.models.identify.formats.torch_pickles import ALLOWED, View
from hivenode.models.identify.readers.torch_checkpoints import Place, describe
from hivenode.models.identify.report import Confidence, Report
from hivenode.models.identify.source import Source

_OWN = re.compile(
    r"(data\.pkl|data/\d+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment)"
)


def detects(head: bytes, source: Source) -> bool:
    archive = Archive.sound(head, source)
    return archive is not None and root_of(archive) is not None and f"{root_of(archive)}/constants.pkl" not in archive


def root_of(archive: Archive) -> str | None:
    """The one folder of a torch archive: where data.pkl lies, at depth one."""
    first = next(iter(archive.entries), "")
    for name in (first, *archive.entries):
        if name.count("/") == 1 and name.endswith("/data.pkl"):
            return name.removesuffix("/data.pkl")
    return None


def read(source: Source) -> Report:
    archive = Archive.of(source)
    root = root_of(archive) or ""
    name = f"{root}/data.pkl"
    report = Report(safe=True)
    report.know(Confidence.read, name, format="torch_zip")
    pickle = interpret(archive.read(name), name=f"{name} in {source.name}")
    judge(report, pickle, ALLOWED, name)
    for entry in archive.entries:
        if not entry.startswith(f"{root}/") or not _OWN.fullmatch(entry[len(root) + 1 :]):
            report.find(entry, source.name, "torch puts no such file into a checkpoint")
    describe(report, pickle.value, storages(archive, root))
    return report


def storages(archive: Archive, root: str, folder: str = "data") -> Place:
    """Where storages lie in an archive, each checked once against what its tensors claim.

    Raises (when asked):
        Corrupted: a storage is missing or shorter than claimed.
    """
    known: dict[str, int | None] = {}

    def place(view: View) -> tuple[int | None, str]:
        storage = view.storage
        if storage is None:
            return None, ""
        name = f"{root}/{folder}/{storage.key}"
        if name not in known:
            entry = archive.entries.get(name)
            if entry is None:
                raise Corrupted(f"{archive.source.name} lacks the storage {name}.", fix="Fetch the file again.")
            width = 1 if storage.untyped else view.itemsize
            if storage.elements * width > entry.size:
                raise Corrupted(
                    f"{archive.source.name} lies: {name} has {entry.size} bytes, "
                    f"{storage.elements * width} are claimed.",
                    fix="Fetch the file again from where it was made.",
                )
            known[name] = archive.start(name) if entry.method == STORED else None
        return known[name], ""

    return place
