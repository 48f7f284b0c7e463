"""A directory nobody vouches for: names in its files lead to files in it, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

from hivenode.errors import Corrupted, InvalidInput, NotFound
from hivenode.models.identify.formats import jsons
from hivenode.models.identify.formats.jsons import Json
from hivenode.models.identify.source import Source

MOST_NAMES = 100_000


class Folder:
    """A directory and what was read in it.

    Raises (when made):
        InvalidInput: it may not be read, or holds more names than a model has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0
        self.size = 0
        """Bytes of the files opened or measured, each once."""
        self._measured: set[str] = set()
        try:
            with os.scandir(path) as entries:
                self.names = frozenset(entry.name for _, entry in zip(range(MOST_NAMES), entries, strict=False))
        except OSError as error:
            raise InvalidInput(
                f"{path} may not be read: {error.strerror}.", fix=f"Allow it: chmod u+rx {path}"
            ) from error

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def open(self, name: str) -> Source:
        """A file directly in the folder, or in a folder below (`unet/config.json`).

        Raises:
            Corrupted: the name leads out of the folder.
            NotFound: there is no such file.
        """
        source = Source(self.within(name), name=name)
        self._measure(name, source.size)
        return source

    def within(self, name: str) -> Path:
        """The path a name in a file stands for.

        Raises:
            Corrupted: it leads out of the folder.
        """
        parts = name.split("/")
        if not name or name.startswith("/") or "\\" in name or "\0" in name or any(p in ("", ".", "..") for p in parts):
            raise Corrupted(
                f"{self.path} refers to {name[:100]!r}, which is not in it.",
                fix="It is made to mislead; fetch it from where it was made.",
            )
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether there is such a file below; what leads out is not."""
        try:
            return self.within(name).is_file()
        except (Corrupted, OSError, ValueError):
            return False

    def json(self, name: str) -> dict[str, Json]:
        """A JSON object in a file.

        Raises:
            Corrupted: it is no JSON object.
            NotFound: there is no such file.
        """
        with self.open(name) as source:
            data = source.read(0, source.size)
            self.took(source)
        return jsons.table(data, name)

    def took(self, source: Source) -> None:
        """Count what was read of a file that was opened here."""
        self.bytes_read += source.bytes_read

    def _measure(self, name: str, size: int) -> None:
        if name not in self._measured:
            self._measured.add(name)
            self.size += size


def missing(folder: Folder, names: list[str]) -> NotFound:
    """The error for files an index names and the folder lacks."""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return NotFound(f"{folder.path} lacks {shown}, named by its index.", fix="Fetch the missing files.")
