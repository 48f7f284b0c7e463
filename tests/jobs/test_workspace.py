"""What an attempt leaves to the next on a node: a few files of few jobs, over restarts, and gone with the job."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hivenode.jobs.workspace import KEPT_FILES, KEPT_JOBS, WorkDirectories

pytestmark = pytest.mark.asyncio(loop_scope="session")


def put(workspace: WorkDirectories, job: str, name: str, at: int) -> None:
    directory = Path(workspace.make(job, 1))
    (directory / name).write_text(f"{job} {name}")
    os.utime(directory / name, ns=(at, at))
    workspace.keep(job, str(directory / name))


async def test_the_next_attempt_finds_the_last_few_also_after_a_restart(tmp_path: Path) -> None:
    places = (tmp_path / "work", tmp_path / "owed")
    first = WorkDirectories(*places)
    for number in range(KEPT_FILES + 2):
        put(first, "job-a", f"debts-{number}", number)
    put(first, "job-b", "debts-9", 0)
    await first.close()
    left = WorkDirectories(*places)
    directory = Path(left.make("job-a", 2))
    assert sorted(path.name for path in directory.iterdir()) == [f"debts-{n}" for n in range(2, KEPT_FILES + 2)]
    assert (directory / "debts-3").read_text() == "job-a debts-3"
    left.remove(str(directory))  # the attempt fails: what was kept stays
    assert list(Path(left.make("job-c", 1)).iterdir()) == []
    left.forget("job-a")
    await left.close()
    after = WorkDirectories(*places)
    assert list(Path(after.make("job-a", 3)).iterdir()) == []
    assert [path.name for path in Path(after.make("job-b", 3)).iterdir()] == ["debts-9"]
    await after.close()


async def test_jobs_that_never_ended_here_make_way_for_newer_ones(tmp_path: Path) -> None:
    workspace = WorkDirectories(tmp_path / "work", tmp_path / "owed")
    for number in range(KEPT_JOBS + 5):
        put(workspace, f"job-{number}", "debts-1", number)
    await workspace.close()
    assert len(list((tmp_path / "owed").iterdir())) == KEPT_JOBS
    assert (tmp_path / "owed" / f"job-{KEPT_JOBS + 4}").exists()
