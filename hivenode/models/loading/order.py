"""Byte order: what was written on a big-endian machine is refused, since listings say places and not orders."""

from __future__ import annotations

from pathlib import Path

from hivenode.errors import InvalidInput
from hivenode.models.identify.formats.archives import Archive
from hivenode.models.identify.formats.pickles import interpret
from hivenode.models.identify.readers.torch_zip import root_of
from hivenode.models.identify.report import Report
from hivenode.models.identify.source import Source

_ZIPS = frozenset({"torch_zip", "ultralytics_pt", "torchscript"})
_NPY_HEADER = 128
_BIG = b"'descr': '>"


def check(path: Path, report: Report) -> None:
    """Raises:
    InvalidInput: its numbers would be read backwards.
    """
    if not path.is_dir() and _big_endian(path, report.format or ""):
        raise InvalidInput(
            f"{path} was written on a big-endian machine; its numbers would be read backwards.",
            fix=f"Load it with its own framework and save it again: hivenode convert --run {path} DIR",
        )


def _big_endian(path: Path, form: str) -> bool:
    with Source(path) as source:
        if form == "gguf":
            return source.read(4, 2) == b"\0\0"
        if form == "npy":
            return _BIG in source.head(_NPY_HEADER)
        if form == "torch_legacy":
            at = 0
            for _ in range(2):
                at = interpret(source, start=at, name=path.name).end
            system = interpret(source, start=at, name=path.name).value
            return isinstance(system, dict) and system.get("little_endian") is False
        if form == "npz":
            archive = Archive.of(source)
            return any(_BIG in archive.stored(name).some(0, _NPY_HEADER) for name in archive.entries)
        if form in _ZIPS:
            archive = Archive.of(source)
            name = f"{root_of(archive)}/byteorder"
            return name in archive and archive.read(name, limit=64).strip() == b"big"
    return False
