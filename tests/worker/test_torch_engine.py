"""Several real workers average by torch.distributed, over gloo on loopback."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import (
    Cancel,
    CheckpointWritten,
    Failed,
    Log,
    Peer,
    PeerJoining,
    PeersReady,
    Ready,
    ViewChanged,
    WorkerProgress,
)
from hivenode.spec.job import JobSpec
from hivenode.spec.values import Engine
from tests.worker.members import (
    Member,
    attempt,
    begin,
    difference,
    digest,
    failure,
    finish,
    node,
    plan,
    spec,
    with_statistics,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def by_torch(host: ForkWorkers, job: JobSpec, weights: Sequence[float], directory: Path) -> list[Member]:
    return await attempt(host, job, weights, directory, engine=Engine.torch)


def formed(member: Member) -> list[int]:
    """Members of each group that was formed, as the lowest rank told it."""
    told = [log.fields["members"] for log in member.all(Log) if log.event == "averaging by torch.distributed"]
    return [int(str(count)) for count in told]


def child_of(member: Member) -> psutil.Process:
    """The process that computes for a worker; between the two is the one that forks."""
    (nursery,) = psutil.Process(member.handle.pid).children()
    (child,) = nursery.children()
    return child


async def test_three_workers_give_the_model_of_one(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=1, max_steps=20, learning_rate=0.05, batch_size=64)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    members = await by_torch(host, job, [0.5, 0.3, 0.2], tmp_path / "three")
    together = await finish(members)
    assert len({digest(done.path) for done in together}) == 1
    assert difference(alone[0].path, together[0].path) < 1e-5
    assert [done.step for done in together] == [20, 20, 20]
    assert len({done.metrics["accuracy"] for done in [*alone, *together]}) == 1
    assert abs(alone[0].metrics["loss"] - together[0].metrics["loss"]) < 1e-5
    assert formed(members[0]) == [3]


@pytest.mark.slow
async def test_members_without_a_sample_take_part(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(model="zoo:logistic", source="sklearn:iris", epochs=1, batch_size=2, learning_rate=0.01)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    together = await finish(await by_torch(host, job, [0.4, 0.3, 0.3], tmp_path / "three"))
    assert len({digest(done.path) for done in together}) == 1
    assert difference(alone[0].path, together[0].path) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
async def test_a_killed_worker_costs_no_sample(host: ForkWorkers, tmp_path: Path, victim: int) -> None:
    # A convex, smooth model: rounding does not grow, while one sample too few in one batch would show.
    job = spec(model="zoo:logistic", epochs=20, learning_rate=0.05)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    members = await by_torch(host, job, [0.4, 0.3, 0.3], tmp_path / "three")
    await members[2].expect(WorkerProgress, 2)
    members[victim].handle.kill()
    survivors = [member for rank, member in enumerate(members) if rank != victim]
    finished = await finish(survivors)
    assert members[2].all(ViewChanged)[0].lost == (node(victim),)
    assert len({digest(done.path) for done in finished}) == 1
    assert difference(alone[0].path, finished[0].path) < 1e-5
    assert formed(survivors[0])[-1] == 2


@pytest.mark.slow
async def test_a_frozen_worker_is_left_behind(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(model="zoo:logistic", epochs=20, learning_rate=0.05)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    members = await by_torch(host, job, [0.4, 0.3, 0.3], tmp_path / "three")
    await members[2].expect(WorkerProgress, 2)
    frozen = [members[1].handle.pid, child_of(members[1]).pid]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    finished = await finish([members[0], members[2]])
    assert difference(alone[0].path, finished[0].path) < 1e-5
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    assert (await members[1].expect(Failed)).retry


@pytest.mark.slow
async def test_a_lost_child_costs_no_sample_and_no_member(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(model="zoo:logistic", epochs=20, learning_rate=0.05)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    members = await by_torch(host, job, [0.5, 0.5], tmp_path / "two")
    await members[1].expect(WorkerProgress, 2)
    os.kill(child_of(members[1]).pid, signal.SIGKILL)
    finished = await finish(members)
    assert not members[0].all(ViewChanged)
    assert len({digest(done.path) for done in finished}) == 1
    assert difference(alone[0].path, finished[0].path) < 1e-5
    assert formed(members[0]) == [2, 2]


@pytest.mark.slow
async def test_a_frozen_child_costs_no_sample_and_no_member(host: ForkWorkers, tmp_path: Path) -> None:
    """Its worker goes on and has a heartbeat, so it is still a member: only the step does not end."""
    job = spec(model="zoo:logistic", epochs=20, learning_rate=0.05)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    members = await by_torch(host, job, [0.5, 0.5], tmp_path / "two")
    await members[1].expect(WorkerProgress, 2)
    frozen = child_of(members[1])
    os.kill(frozen.pid, signal.SIGSTOP)
    finished = await finish(members)
    assert not members[0].all(ViewChanged)
    assert len({digest(done.path) for done in finished}) == 1
    assert difference(alone[0].path, finished[0].path) < 1e-5
    assert formed(members[0]) == [2, 2]
    assert "torch.distributed stood still: another group is formed" in {
        log.event for member in members for log in member.all(Log)
    }
    assert not frozen.is_running()


@pytest.mark.slow
async def test_one_that_comes_late_takes_part(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(model="zoo:logistic", epochs=40, learning_rate=0.05)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    planned = plan([0.4, 0.3, 0.3], engine=Engine.torch)
    members = [await Member.start(host) for _ in range(3)]
    for rank, member in enumerate(members):
        member.handle.send(begin(job, planned, rank, tmp_path / "three"))
    ready = [await member.expect(Ready) for member in members]
    peers = [Peer(node(rank), rank, "127.0.0.1", r.port, r.certificate) for rank, r in enumerate(ready)]
    for rank in (0, 1):
        members[rank].handle.send(PeersReady(peers=(peers[1 - rank],)))
    await members[0].expect(WorkerProgress, 2)
    for rank in (0, 1):
        members[rank].handle.send(PeerJoining(peers[2]))
    members[2].handle.send(PeersReady(peers=(peers[0], peers[1]), joining=True))
    finished = await finish(members)
    assert len({digest(done.path) for done in finished}) == 1
    assert difference(alone[0].path, finished[0].path) < 1e-5
    assert formed(members[0]) == [2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["fp16", "bf16"])
async def test_fewer_bytes_train_as_well(host: ForkWorkers, tmp_path: Path, codec: str) -> None:
    job = spec(model="zoo:mlp", epochs=8, learning_rate=0.1, codec=codec)
    finished = await finish(await by_torch(host, job, [0.5, 0.5], tmp_path))
    assert len({digest(done.path) for done in finished}) == 1
    assert finished[0].metrics["accuracy"] >= 0.9


@pytest.mark.slow
async def test_running_statistics_are_averaged_and_the_members_models_equal(host: ForkWorkers, tmp_path: Path) -> None:
    job = with_statistics(epochs=2, checkpoint_every_steps=4, patience=1, min_improvement=100.0)
    members = await by_torch(host, job, [0.7, 0.3], tmp_path)
    finished = await finish(members)
    assert len({digest(done.path) for done in finished}) == 1
    assert load_file(finished[0].path)["batch_norm2.running_mean"].any()
    assert [done.step for done in finished] == [46, 46]
    assert [written.step for written in members[0].all(CheckpointWritten)]
    checkpoint = members[0].all(CheckpointWritten)[-1]
    rest = await finish(await attempt(host, job, [0.5, 0.5], tmp_path / "rest", checkpoint.path, engine=Engine.torch))
    assert len({digest(done.path) for done in rest}) == 1


async def test_it_listens_on_no_other_address_and_in_no_other_process(host: ForkWorkers, tmp_path: Path) -> None:
    members = await by_torch(host, spec(epochs=100_000), [0.5, 0.5], tmp_path)
    await members[1].expect(WorkerProgress)
    for member in members:
        open_ = [c for c in child_of(member).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {connection.laddr.ip for connection in open_} == {"127.0.0.1"}
        worker = psutil.Process(member.handle.pid).net_connections("inet")
        listening = [c.laddr.port for c in worker if c.status == psutil.CONN_LISTEN]
        assert set(listening) <= {member.all(Ready)[0].port}
    children = [child_of(member) for member in members]
    for member in members:
        member.handle.kill()
        await member.exit()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.slow
async def test_a_cancel_ends_all_of_them(host: ForkWorkers, tmp_path: Path) -> None:
    members = await by_torch(host, spec(epochs=100_000, checkpoint_every_steps=10**9), [0.5, 0.5], tmp_path)
    for member in members:
        await member.expect(WorkerProgress)
    for member in members:
        member.handle.send(Cancel(reason="enough"))
    failures = [await failure(member) for member in members]
    assert [failed.code for failed in failures] == ["cancelled", "cancelled"]
    assert len(members[0].all(CheckpointWritten)) == 1


async def test_nobody_speaks_in_plaintext_where_that_is_not_trusted(host: ForkWorkers, tmp_path: Path) -> None:
    member = await Member.start(host)
    planned = plan([0.5, 0.5], engine=Engine.torch)
    member.handle.send(begin(spec(), planned, 0, tmp_path, trusted=("192.0.2.0/24",)))
    failed = await member.expect(Failed)
    assert failed.code == "refused"
    assert "does not trust its own address 127.0.0.1" in failed.message
    assert "training.trusted_subnets" in failed.fix
    stranger = await Member.start(host)
    stranger.handle.send(begin(spec(), planned, 0, tmp_path, trusted=("127.0.0.1/32",)))
    ready = await stranger.expect(Ready)
    far = Peer(node(1), 1, "192.0.2.7", ready.port, ready.certificate)
    stranger.handle.send(PeersReady(peers=(far,)))
    assert "does not trust the address 192.0.2.7" in (await stranger.expect(Failed)).message
