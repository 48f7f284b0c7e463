"""Several real workers train one model together, over their own connections on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import (
    Cancel,
    CheckpointWritten,
    DebtsWritten,
    Failed,
    Finished,
    Log,
    PeerLost,
    ViewChanged,
    WorkerProgress,
)
from hivenode.spec.job import JobSpec
from hivenode.spec.model import ModelSpec
from hivenode.spec.training import TrainingSpec
from tests.worker.members import attempt, difference, digest, finish, node, spec, with_statistics

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_three_workers_give_the_model_of_one(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=1, max_steps=20, learning_rate=0.05, batch_size=64)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    together = await finish(await attempt(host, job, [0.5, 0.3, 0.2], tmp_path / "three"))
    assert len({digest(done.path) for done in together}) == 1
    assert difference(alone[0].path, together[0].path) < 1e-5
    assert [done.lead for done in together] == [True, False, False]
    assert [done.step for done in together] == [20, 20, 20]
    assert len({done.metrics["accuracy"] for done in [*alone, *together]}) == 1


async def test_batches_smaller_than_the_number_of_workers(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(model="zoo:logistic", source="sklearn:iris", epochs=1, batch_size=2, learning_rate=0.01)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    together = await finish(await attempt(host, job, [0.4, 0.3, 0.3], tmp_path / "three"))
    assert len({digest(done.path) for done in together}) == 1
    assert difference(alone[0].path, together[0].path) < 1e-5


SMOOTH = (
    {"type": "conv", "outputs": 4, "activation": "none"},
    {"type": "batch_norm"},
    {"type": "activation", "function": "gelu"},
    {"type": "average"},
    {"type": "dense"},
)
"""Normalised, and without edges at which a rounding error would grow."""


def normalised(**training: object) -> JobSpec:
    return JobSpec(name="test", model=ModelSpec(source="layers:", layers=SMOOTH), training=TrainingSpec(**training))


async def test_a_shared_batch_is_normalised_as_one(host: ForkWorkers, tmp_path: Path) -> None:
    job = normalised(epochs=1, batch_size=64, learning_rate=0.1)  # the last batch has 29 samples, none for the third
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    together = await finish(await attempt(host, job, [0.7, 0.29, 0.01], tmp_path / "three"))
    assert len({digest(done.path) for done in together}) == 1
    assert difference(alone[0].path, together[0].path) < 1e-5
    apart = job.model_copy(update={"training": job.training.model_copy(update={"batch_norm": "alone"})})
    each = await finish(await attempt(host, apart, [0.7, 0.29, 0.01], tmp_path / "apart"))
    assert difference(alone[0].path, each[0].path) > 1e-3


@pytest.mark.parametrize("victim", [0, 1])
async def test_who_trains_in_float16_may_be_killed(host: ForkWorkers, tmp_path: Path, victim: int) -> None:
    job = normalised(epochs=12, batch_size=64, learning_rate=0.1, precision="fp16")
    members = await attempt(host, job, [0.4, 0.3, 0.3], tmp_path)
    await members[2].expect(WorkerProgress, 2)
    members[victim].handle.kill()
    finished = await finish([member for rank, member in enumerate(members) if rank != victim])
    assert len({digest(done.path) for done in finished}) == 1
    assert finished[0].step == 12 * 23


async def test_who_normalises_with_others_may_be_killed(host: ForkWorkers, tmp_path: Path) -> None:
    job = normalised(epochs=12, batch_size=64, learning_rate=0.1)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    members = await attempt(host, job, [0.4, 0.3, 0.3], tmp_path / "three")
    await members[2].expect(WorkerProgress, 2)
    members[0].handle.kill()
    finished = await finish(members[1:])
    assert members[2].all(ViewChanged)[0].lost == (node(0),)
    assert len({digest(done.path) for done in finished}) == 1
    assert difference(alone[0].path, finished[0].path) < 1e-3, "but for statistics remembered twice in a step"


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_killed_worker_costs_no_sample(host: ForkWorkers, tmp_path: Path, victim: int) -> None:
    # A convex, smooth model: rounding does not grow, while one sample too few in one batch would show.
    job = spec(model="zoo:logistic", epochs=20, learning_rate=0.05)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    members = await attempt(host, job, [0.4, 0.3, 0.3], tmp_path / "three")
    await members[2].expect(WorkerProgress, 2)
    members[victim].handle.kill()
    finished = await finish([member for rank, member in enumerate(members) if rank != victim])
    assert members[2].all(ViewChanged)[0].lost == (node(victim),)
    assert len({digest(done.path) for done in finished}) == 1
    assert difference(alone[0].path, finished[0].path) < 1e-5


async def test_the_others_finish_a_good_model_when_the_first_is_killed(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=8, batch_size=64, learning_rate=0.05, momentum=0.5, checkpoint_every_steps=20)
    members = await attempt(host, job, [0.4, 0.3, 0.3], tmp_path)
    await members[2].expect(WorkerProgress, 2)
    members[0].handle.kill()
    assert await members[0].exit() == "killed by SIGKILL"
    survivors = members[1:]
    finished = await finish(survivors)
    assert len({digest(done.path) for done in finished}) == 1
    assert [done.lead for done in finished] == [True, False]
    assert finished[0].metrics["accuracy"] >= 0.95
    for member in survivors:
        (changed,) = member.all(ViewChanged)
        assert (changed.members, changed.lost) == ((node(1), node(2)), (node(0),))
        assert member.all(WorkerProgress)[-1].members == (node(1), node(2))
    # The new lowest rank writes from then on.
    assert survivors[0].all(CheckpointWritten)
    assert not survivors[1].all(CheckpointWritten)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
async def test_two_that_were_killed_go_on_to_the_bit(host: ForkWorkers, tmp_path: Path, optimizer: str) -> None:
    job = spec(epochs=3, learning_rate=0.01, optimizer=optimizer, checkpoint_every_steps=30)
    straight = await finish(await attempt(host, job, [0.6, 0.4], tmp_path / "straight"))
    members = await attempt(host, job, [0.6, 0.4], tmp_path / "killed")
    written = await members[0].expect(CheckpointWritten)
    for member in members:
        member.handle.kill()
    assert [await member.exit() for member in members] == ["killed by SIGKILL"] * 2
    assert written.step == 30
    rest = await finish(await attempt(host, job, [0.6, 0.4], tmp_path / "rest", resume=written.path))
    assert {digest(done.path) for done in rest} == {digest(done.path) for done in straight}


async def test_a_checkpoint_of_three_goes_on_with_two(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=2, learning_rate=0.01, optimizer="adam", checkpoint_every_steps=30)
    members = await attempt(host, job, [0.4, 0.3, 0.3], tmp_path / "three")
    whole = await finish(members)
    (checkpoint,) = members[0].all(CheckpointWritten)
    rest = await finish(await attempt(host, job, [0.5, 0.5], tmp_path / "two", resume=checkpoint.path))
    assert digest(rest[0].path) == digest(rest[1].path)
    assert difference(whole[0].path, rest[0].path) < 1e-3
    assert rest[0].step == whole[0].step == 46


async def test_what_codecs_owe_outlives_an_attempt_on_the_same_nodes(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=2, learning_rate=0.05, momentum=0.5, codec="int8", checkpoint_every_steps=20)
    shares = [0.5, 0.5]
    members = await attempt(host, job, shares, tmp_path / "first")
    whole = await finish(members)
    checkpoint = members[0].all(CheckpointWritten)[0]
    assert checkpoint.step == 20
    assert all(20 in [said.step for said in member.all(DebtsWritten)] for member in members)
    # In the same directories each finds what it still owed; in new ones none does.
    again = await finish(await attempt(host, job, shares, tmp_path / "first", resume=checkpoint.path))
    without = await finish(await attempt(host, job, shares, tmp_path / "other", resume=checkpoint.path))
    assert {digest(done.path) for done in again} == {digest(done.path) for done in whole}
    assert {digest(done.path) for done in without} != {digest(done.path) for done in whole}
    assert whole[0].step == again[0].step == without[0].step == 46


async def test_what_is_owed_by_another_job_or_damaged_is_not_taken_over(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=2, learning_rate=0.05, codec="int8", checkpoint_every_steps=20, max_steps=25)
    members = await attempt(host, job, [0.5, 0.5], tmp_path / "first")
    await finish(members)
    checkpoint, owed = members[0].all(CheckpointWritten)[0], Path(members[1].all(DebtsWritten)[0].path)
    content = bytearray(owed.read_bytes())
    content[-5] ^= 1
    owed.write_bytes(content)
    again = await attempt(host, job, [0.5, 0.5], tmp_path / "first", resume=checkpoint.path)
    await finish(again)
    warnings = [[said.event for said in member.all(Log) if said.level == "warning"] for member in again]
    assert warnings[0] == []
    assert "without what was still owed" in warnings[1][0]


@pytest.mark.parametrize("absent", [(1,), (1, 2)])
async def test_nodes_that_were_lost_before_it_began_are_left_out(
    host: ForkWorkers, tmp_path: Path, absent: tuple[int, ...]
) -> None:
    job = spec(epochs=1, max_steps=10)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    members = await attempt(host, job, [0.4, 0.3, 0.3], tmp_path / "three", absent=absent)
    finished = await finish([member for rank, member in enumerate(members) if rank not in absent])
    assert members[0].all(ViewChanged)[0].lost == tuple(node(rank) for rank in absent)
    assert members[0].all(ViewChanged)[0].step == 0
    assert difference(alone[0].path, finished[0].path) < 1e-5


async def test_a_stopped_worker_is_left_behind_on_the_daemons_word(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=8, learning_rate=0.05)
    members = await attempt(host, job, [0.4, 0.3, 0.3], tmp_path)
    await members[0].expect(WorkerProgress)
    os.kill(members[1].handle.pid, signal.SIGSTOP)
    for survivor in (members[0], members[2]):
        survivor.handle.send(PeerLost(node=node(1)))
    finished = await finish([members[0], members[2]])
    assert len({digest(done.path) for done in finished}) == 1
    os.kill(members[1].handle.pid, signal.SIGCONT)
    failed = await members[1].expect(Failed)
    assert (failed.code, failed.retry) == ("unavailable", True)
    await members[1].exit()


async def test_a_cancel_ends_all_of_them(host: ForkWorkers, tmp_path: Path) -> None:
    members = await attempt(host, spec(epochs=100_000, checkpoint_every_steps=10**9), [0.5, 0.5], tmp_path)
    for member in members:
        await member.expect(WorkerProgress)
    for member in members:
        member.handle.send(Cancel(reason="enough"))
    failures = [await member.expect(Failed) for member in members]
    await asyncio.gather(*(member.exit() for member in members))
    assert failures[0].code == "cancelled"
    assert {failed.retry for failed in failures} == {True}
    assert len(members[0].all(CheckpointWritten)) == 1


async def test_running_statistics_are_averaged_and_the_members_models_equal(host: ForkWorkers, tmp_path: Path) -> None:
    job = with_statistics(epochs=1, max_steps=7, checkpoint_every_steps=4)
    members = await attempt(host, job, [0.7, 0.3], tmp_path)
    paths = [(await member.expect(Finished)).path for member in members]
    for member in members:
        await member.exit()
    first, second = (Path(path).read_bytes() for path in paths)
    assert first == second
    from safetensors.numpy import load

    statistics = load(first)["batch_norm2.running_mean"]
    assert statistics.any()
