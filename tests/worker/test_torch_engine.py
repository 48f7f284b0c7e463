"""Several real workers average by torch.distributed, over gloo on loopback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import Log
from hivenode.spec.job import JobSpec
from hivenode.spec.values import Engine
from tests.worker.members import Member, attempt, difference, digest, finish, spec

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def by_torch(host: ForkWorkers, job: JobSpec, weights: Sequence[float], directory: Path) -> list[Member]:
    return await attempt(host, job, weights, directory, engine=Engine.torch)


def formed(member: Member) -> list[tuple[object, object]]:
    """Step and members of each group that was formed, as the lowest rank told it."""
    told = [log.fields for log in member.all(Log) if log.event == "averaging by torch.distributed"]
    return [(fields["step"], fields["members"]) for fields in told]


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
    assert formed(members[0]) == [(0, 3)]
