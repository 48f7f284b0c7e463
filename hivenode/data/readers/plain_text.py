"""Plain UTF-8 text, a file or a folder of .txt, for models that write."""

from __future__ import annotations

from pathlib import Path

from hivenode.data.readers.raw import Raw, bounded, language
from hivenode.errors import InvalidInput
from hivenode.spec.data import DataSpec

MAX_TEXT_BYTES = 1 << 30


def read(path: Path, spec: DataSpec) -> Raw:
    """Raises InvalidInput."""
    if spec.task not in ("auto", "language"):
        raise InvalidInput(f"{path} is text without labels.", fix='Set data.task = "language", or use csv or jsonl.')
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files or sum(map(bounded, files)) > MAX_TEXT_BYTES:
        raise InvalidInput(f"{path} holds no text, or more than {MAX_TEXT_BYTES >> 30} GiB.", fix="Check data.source.")
    parts = []
    for file in files:
        try:
            parts.append(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise InvalidInput(f"{file}, line {line}, is not UTF-8.", fix="Save it as UTF-8.") from error
    return language(spec, path, "\n".join(parts))
