"""Checkpoints on a disk that is full: training goes on, and nothing half-written is taken for whole."""

from __future__ import annotations

import asyncio
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import Cancel, CheckpointFailed, CheckpointWritten, Failed
from hivenode.training.tensorfiles import Parts
from tests.worker.members import Member, attempt, failure, node, spec
from tests.worker.test_staged import staged, start

pytestmark = pytest.mark.asyncio(loop_scope="session")
JOB = spec(epochs=100_000, checkpoint_every_steps=2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("strategy", ["single_node", "data_parallel", "pipeline_parallel"])
async def test_training_goes_on_and_the_next_checkpoint_is_written_when_there_is_room(
    host: ForkWorkers, small_disk: Path, strategy: str
) -> None:
    if strategy == "pipeline_parallel":
        members = await start(host, JOB, staged((3,), 2), small_disk)
    else:
        members = await attempt(host, JOB, [1.0] if strategy == "single_node" else [0.5, 0.5], small_disk)
    failed = await first_failure(members)
    assert "No space left" in failed.reason
    written = members[0].all(CheckpointWritten)
    assert failed.step not in {each.step for each in written}
    assert not list(small_disk.rglob(f"checkpoint-{failed.step}.*")), "nothing is left of it"
    for each in written:
        Parts(Path(each.path))  # whole
        Path(each.path).unlink()
    later = await members[0].expect(CheckpointWritten, len(written) + 1)
    assert later.step > failed.step
    Parts(Path(later.path))
    await cancel(members)


async def first_failure(members: list[Member]) -> CheckpointFailed:
    """Whichever member tells of it."""
    tasks = [asyncio.create_task(member.expect(CheckpointFailed)) for member in members]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return done.pop().result()


async def cancel(members: list[Member]) -> None:
    for member in members:
        member.handle.send(Cancel("enough"))
    for member in members:
        assert (await member.expect(Failed)).code in ("cancelled", "unavailable")  # a stage may hear of a leaving first


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_stage_without_room_for_its_part(host: ForkWorkers, tmp_path: Path, victim: int) -> None:
    """That one says so; all go on, and there is no checkpoint until it has room again."""
    members = await start(host, JOB, staged((3,), 2), tmp_path)
    await members[0].expect(CheckpointWritten)
    pid = members[victim].handle.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, hard))
    told = await members[victim].expect(CheckpointFailed)
    assert told.reason.startswith(f"no room for the part of stage {victim}")
    again = await members[victim].expect(CheckpointFailed, 2)
    assert again.step > told.step
    assert not members[1 - victim].all(CheckpointFailed)
    assert not list((tmp_path / node(0)).glob(f"checkpoint-{told.step}.*"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    later = await members[0].expect(CheckpointWritten, len(members[0].all(CheckpointWritten)) + 1)
    Parts(Path(later.path))
    await cancel(members)


async def test_a_model_that_cannot_be_written(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=2, checkpoint_every_steps=10_000)
    (member,) = await attempt(host, job, [1.0], tmp_path)
    _, hard = resource.prlimit(member.handle.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(member.handle.pid, resource.RLIMIT_FSIZE, (4096, hard))
    failed = await failure(member)
    assert (failed.code, failed.retry) == ("exhausted", True)
    assert "could not write a file: File too large" in failed.message
    assert "Free space" in failed.fix
    assert not list(tmp_path.rglob("model.*"))
