"""The log of jobs through its thread: in order, and nothing on the event loop waits for the disk."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from hivenode.job_log import MAX_WAITING, JobLogWriter
from hivenode.logs import JobLogFile


async def test_lines_are_read_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    log = JobLogWriter(JobLogFile(tmp_path))
    for number in range(300):
        log.write(f"j-{number % 3}", {"n": number})
    lines, place, more = await log.read("j-1", 0, 1 << 20)
    assert [json.loads(line)["n"] for line in lines] == list(range(1, 300, 3))
    assert (place, more) == (100, False)
    await log.close()


class SlowDisk(JobLogFile):
    """A disk that stalls until it is let go."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.stalled = threading.Event()
        self.go = threading.Event()

    def write(self, job: str, record: Mapping[str, object]) -> None:
        self.stalled.set()
        self.go.wait()
        super().write(job, record)


async def test_a_stalled_disk_stalls_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = SlowDisk(tmp_path)
    log = JobLogWriter(disk)
    log.write("j", {"n": 0})
    await asyncio.to_thread(disk.stalled.wait)
    reading = asyncio.ensure_future(log.read("j", 0, 1000))
    await asyncio.sleep(0)
    for number in range(1, MAX_WAITING + 100):  # the loop goes on, and memory stays bounded
        log.write("j", {"n": number})
        if number % 1000 == 0:
            await asyncio.sleep(0)
    assert not reading.done()
    disk.go.set()
    assert (await reading)[1] == 1, "only what was written before the question"
    await log.close()
    assert len([record for record in caplog.records if "too slow" in record.getMessage()]) == 1
    kept = sum(path.read_bytes().count(b"\n") for path in tmp_path.iterdir())
    assert kept == MAX_WAITING


async def test_reading_a_page_of_a_pipe_that_nobody_writes_holds_up_no_one(tmp_path: Path) -> None:
    """The page is read beside the loop: here the file is a pipe, on which a read on the loop would hang for ever."""
    os.mkfifo(tmp_path / "j.0.jsonl")
    log = JobLogWriter(JobLogFile(tmp_path))
    reading = asyncio.ensure_future(log.read("j", 0, 1000))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not reading.done()
    (tmp_path / "j.0.jsonl").write_bytes(b'{"n":1}\n')
    assert (await reading)[0] == ['{"n":1}']
    await log.close()
