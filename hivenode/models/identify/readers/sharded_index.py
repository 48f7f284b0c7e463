"""The index of sharded weights (`model.safetensors.index.json`): the directory around it is what is described."""

from __future__ import annotations

from hivenode.models.identify.folder import Folder
from hivenode.models.identify.readers.weight_files import take_index
from hivenode.models.identify.report import Confidence, Report
from hivenode.models.identify.source import Source


def detects(head: bytes, source: Source) -> bool:
    if b'"weight_map"' in head:
        return True
    return source.path.name.endswith(".index.json") and b'"weight_map"' in source.tail(1 << 20)


def read(source: Source) -> Report:
    folder = Folder(source.path.parent)
    report = Report(safe=True)
    kind = "safetensors" if ".safetensors" in source.path.name else "torch"
    report.know(Confidence.read, "weight_map", format=f"{kind}_sharded")
    take_index(report, folder, source.path.name)
    report.size_bytes = folder.size
    if report.error is not None and not report.dangerous:
        report.safe = None
    return report
