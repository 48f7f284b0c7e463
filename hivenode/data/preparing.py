"""Having a file read by a process of its own, which has nothing else in its reach: `hivenode.worker.prepare`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from hivenode.data.manifest import MANIFEST_BYTES, MOST_SHARDS, Manifest, read_manifest
from hivenode.errors import Exhausted, Unavailable, from_dict
from hivenode.spec.data import DataSpec

SECONDS = 3600
"""That reading may take."""
COMPLAINT_BYTES = 64 << 10
LOOK_SECONDS = 0.2
"""Between two looks at what it has written."""
MORE_BYTES = 64 << 20
"""Of pieces, over the values in them: their headers, and what a file system rounds up."""
LEFT_BYTES = 1 << 30
"""Of the disk, left free; a tenth of what is free where that is less."""
MOST_FILES = 2 * MOST_SHARDS + 64
INHERITED = ("HOME", "PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""Of the environment; the rest may hold secrets."""


class Preparation:
    """Reads what `spec` names, and cuts it into `directory` if one is given; begun when this returns.

    Args:
        memory_bytes: that it may take; also of the disk, since it cuts what it has in memory.
    """

    def __init__(self, spec: DataSpec, directory: str | None, memory_bytes: int) -> None:
        self._spec = spec
        self._directory = directory
        self._disk_bytes = 0
        if directory:
            free = shutil.disk_usage(directory).free
            self._disk_bytes = min(memory_bytes + MORE_BYTES, free - min(LEFT_BYTES, free // 10))
        self._said, self._complaint = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - until `end`
        arguments = [sys.executable, "-P", "-m", "hivenode.worker.prepare", str(memory_bytes)]
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        with tempfile.TemporaryFile() as order:
            order.write(spec.model_dump_json().encode())
            order.seek(0)
            self._process = subprocess.Popen(
                [*arguments, *([directory] if directory else [])],
                stdin=order, stdout=self._said, stderr=self._complaint,
                env=environment | {"OPENBLAS_NUM_THREADS": "1", "JOBLIB_MULTIPROCESSING": "0"},
            )  # fmt: skip

    def manifest(self) -> Manifest:
        """Wait for what it makes.

        Raises:
            HiveError: what is wrong with the file.
        """
        status = self._ended()
        self._said.seek(0)
        said = self._said.read(MANIFEST_BYTES + 1)
        if status == 0 and len(said) <= MANIFEST_BYTES:
            return read_manifest(said)
        try:
            raise from_dict(msgspec.json.decode(said, type=dict[str, dict[str, str]])["error"])
        except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
            raise Unavailable(
                f"{self._spec.source} could not be read: {self._last_words(status)}.",
                fix="Look at the file, or free some memory.",
            ) from None

    def _ended(self) -> int:
        """Its exit status. What it writes is looked at meanwhile, and once it cannot write any more."""
        until = time.monotonic() + SECONDS
        while True:
            try:
                status = self._process.wait(LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                if time.monotonic() > until:
                    raise Exhausted(f"Reading {self._spec.source} took over an hour.", fix="Split it.") from None
                self._look()
            else:
                self._look()
                return status

    def _look(self) -> None:
        if self._directory is None:
            return  # it can write nothing
        files, taken = 0, 0
        for folder, folders, names in os.walk(self._directory, onerror=self._unseen):
            files += len(folders) + len(names)
            for name in names:
                try:
                    taken += os.lstat(os.path.join(folder, name)).st_blocks * 512
                except OSError as error:
                    self._unseen(error)
            if files > MOST_FILES or taken > self._disk_bytes:
                raise Exhausted(
                    f"The pieces of {self._spec.source} would take more than the {self._disk_bytes >> 20} MiB of disk "
                    f"or the {MOST_FILES} files that they may.",
                    fix="Free some space, raise worker.memory_bytes, or split it.",
                )

    def _unseen(self, error: OSError) -> None:
        """Of what it has written: as good as too much, unless it is gone again."""
        if not isinstance(error, FileNotFoundError):
            raise Exhausted(
                f"What reading {self._spec.source} has written cannot be measured: {error.strerror}.",
                fix="Look at the file: it is made to mislead, or the disk is damaged.",
            ) from error

    def _last_words(self, status: int) -> str:
        self._complaint.seek(max(0, self._complaint.seek(0, os.SEEK_END) - COMPLAINT_BYTES))
        lines = self._complaint.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit status {status}"

    def end(self) -> None:
        """End it, if it has not ended by itself."""
        self._process.kill()
        self._process.wait()
        self._said.close()
        self._complaint.close()


def prepared(spec: DataSpec, directory: Path | None, memory_bytes: int) -> Manifest:
    """The same, waited for. Raises HiveError."""
    preparation = Preparation(spec, str(directory) if directory else None, memory_bytes)
    try:
        return preparation.manifest()
    finally:
        preparation.end()
