"""Shared data of which each worker has a range, by real workers: the ranges move when one of them turns out slow."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import CheckpointWritten, Finished, Log, Need, Peer, PeersReady, Ready, WorkerProgress
from hivenode.training.strategies.balance import KEY, Line, load
from hivenode.training.tensorfiles import Parts
from tests.worker.members import Member, begin, digest, node, plan, slowed, spec
from tests.worker.test_jobs import Pieces

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Run:
    """Workers of a job, each answered when it wants pieces."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._answering: list[asyncio.Task[None]] = []
        self.members: list[Member] = []
        self.ready: list[Ready] = []

    async def start(self, host: ForkWorkers, weights: list[float], directory: Path, resume: str | None = None) -> None:
        planned = plan(weights)
        for rank, _ in enumerate(weights):
            member = await Member.start(host)
            order = begin(self._pieces.spec, planned, rank, directory, resume, resources=self._pieces.resources)
            member.handle.send(order)
            self.members.append(member)
        self.ready = [await member.expect(Ready) for member in self.members]
        peers = [Peer(node(rank), rank, "127.0.0.1", r.port, r.certificate) for rank, r in enumerate(self.ready)]
        for rank, member in enumerate(self.members):
            self._answering.append(asyncio.create_task(self._answer(member)))
            member.handle.send(PeersReady(peers=tuple(peer for peer in peers if peer.rank != rank)))

    async def _answer(self, member: Member) -> None:
        for number in range(1, 1000):
            await member.expect_any(Need, number, Finished)
            for wish in member.all(Need)[number - 1 : number]:
                member.handle.send(self._pieces.answer(wish))

    async def finish(self) -> list[Finished]:
        finished = [await member.expect(Finished) for member in self.members]
        for task in self._answering:
            task.cancel()
        for member in self.members:
            assert await member.exit() == "exit 0"
        return finished


def moved(member: Member) -> list[str]:
    return [line.event for line in member.all(Log) if line.event.startswith("From epoch")]


def line_of(path: str) -> Line:
    return load(Parts(Path(path)).metadata["optimizer." + KEY])


EPOCHS = 16
"""Enough for three looks in a row that find a worker slow, also where the other one has not all of the machine."""


@pytest.mark.timeout(150)
@pytest.mark.parametrize("training", [
    {}, pytest.param({"sync": "local", "sync_every": 5}, marks=pytest.mark.slow),
], ids=["every-step", "local"])  # fmt: skip
async def test_ranges_move_from_a_worker_that_is_slow(
    host: ForkWorkers, tmp_path: Path, training: dict[str, object]
) -> None:
    job = spec(
        params={"channels": 32},
        epochs=EPOCHS,
        batch_size=128,
        learning_rate=0.02,
        checkpoint_every_steps=24,
        **training,
    )
    pieces = Pieces(job, tmp_path / "pieces")
    run = Run(pieces)
    await run.start(host, [0.5, 0.5], tmp_path / "run")
    with slowed(run.ready[1].pid):
        finished = await run.finish()
    assert len({digest(done.path) for done in finished}) == 1, "all moved at the same step"
    assert finished[0].step == EPOCHS * 12
    first = [moved(member)[0] for member in run.members]
    assert first[0].split(" on this")[0] == first[1].split(" on this")[0]
    shares = [member.all(WorkerProgress)[-1].share or 0.0 for member in run.members]
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] > 0.6
    assert [ref for wish in run.members[0].all(Need) for ref in wish.blobs], "the other took more of the data over"
    kept = [written.path for written in run.members[0].all(CheckpointWritten)]
    *_, (path, line) = ((path, line_of(path)) for path in kept)
    again = Run(pieces)
    await again.start(host, [0.5, 0.5], tmp_path / "again", resume=path)
    rest = await again.finish()
    assert len({digest(done.path) for done in rest}) == 1
    begun = again.members[0].all(WorkerProgress)[0].share
    assert begun == pytest.approx(dict(line.shares)[node(0)]), "it went on with the ranges of the checkpoint"
