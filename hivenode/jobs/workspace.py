"""Directories for workers, and the little that one attempt leaves to the next on this node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hivenode.errors import Exhausted
from hivenode.logs import get_logger

KEPT_FILES = 3
"""Of a job; the checkpoint that an attempt goes on from may be older than the last."""
KEPT_JOBS = 16

log = get_logger("jobs")


class WorkDirectories:
    """`executor.Workspace` on a disk.

    Args:
        root: whatever an earlier daemon left there is removed.
        kept: on the same disk; what is there stays.
    """

    def __init__(self, root: Path, kept: Path) -> None:
        self._root, self._kept = root, kept
        shutil.rmtree(root, ignore_errors=True)
        for path in (root, kept):
            path.mkdir(parents=True, mode=0o700, exist_ok=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="remove-work")

    def make(self, job: str, attempt: int) -> str:
        path = self._root / f"{job}-{attempt}-{secrets.token_hex(4)}"
        try:
            path.mkdir(mode=0o700)
        except OSError as error:
            raise Exhausted(
                f"No directory for a worker can be made in {self._root}: {error.strerror}.",
                fix="Free some space there, or see to its permissions.",
            ) from error
        for file in _by_age(self._kept / job):
            try:
                os.link(file, path / file.name)
            except OSError as error:
                log.warning("a job goes on without what was kept for it", job=job, file=file.name, reason=str(error))
        return str(path)

    def keep(self, job: str, path: str) -> None:
        """Soon, by the thread that removes. Older ones make way, of that job and of others."""
        self._thread.submit(self._put_aside, job, path)

    def _put_aside(self, job: str, path: str) -> None:
        place = self._kept / job
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            os.replace(path, place / Path(path).name)
            os.utime(place)
        except OSError as error:
            log.warning("a worker's file could not be kept", job=job, file=Path(path).name, reason=str(error))
            return
        for file in _by_age(place)[:-KEPT_FILES]:
            file.unlink(missing_ok=True)
        for other in _by_age(self._kept)[:-KEPT_JOBS]:
            shutil.rmtree(other, ignore_errors=True)

    def forget(self, job: str) -> None:
        self.remove(str(self._kept / job))

    def remove(self, directory: str) -> None:
        """Soon, by a thread: there may be gigabytes of checkpoints in it."""
        self._thread.submit(shutil.rmtree, directory, ignore_errors=True)

    async def close(self) -> None:
        """Returns when all is removed."""
        await asyncio.to_thread(self._thread.shutdown)


def _by_age(directory: Path) -> list[Path]:
    """What is in it, the oldest first."""
    with contextlib.suppress(OSError):
        return sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return []
