"""Zip archives as a test wants them, also wrong ones."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path


def write_zip(path: Path, entries: Mapping[str, bytes], *, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def patched(path: Path, old: bytes, new: bytes, *, times: int = -1) -> Path:
    """The file with some bytes replaced; they must be there."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, times))
    return path
