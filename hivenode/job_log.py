"""The log of jobs, kept on disk by a thread of its own: a slow disk holds up no heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from hivenode.logs import JobLogFile, get_logger

MAX_WAITING = 10_000
"""Lines that may wait for the disk; later ones are lost, as on a full disk."""

log = get_logger("logs")


class JobLogWriter:
    """A `JobLogFile` used in order: what is read includes all that was written before.

    Args:
        file: used by nobody else.
    """

    def __init__(self, file: JobLogFile) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="job-log")
        self._waiting = 0
        self._lost = 0

    def write(self, job: str, record: Mapping[str, object]) -> None:
        """Append a line, soon. On the event loop only."""
        if self._waiting >= MAX_WAITING:
            self._lost += 1
            if self._lost == 1:
                log.error("job log lines are being lost: the disk is too slow", waiting=self._waiting)
            return
        self._waiting += 1
        writing = asyncio.get_running_loop().run_in_executor(self._thread, self._file.write, job, dict(record))
        writing.add_done_callback(self._written)

    async def read(self, job: str, after: int, limit_bytes: int) -> tuple[Sequence[str], int, bool]:
        """See `JobLogFile.read`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._file.read, job, after, limit_bytes)

    async def close(self) -> None:
        """Returns when all is written."""
        await asyncio.to_thread(self._thread.shutdown)

    def _written(self, writing: asyncio.Future[None]) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._lost = 0
        if not writing.cancelled() and (error := writing.exception()) is not None:
            log.error("a job log line could not be written", reason=repr(error), exc_info=error)
