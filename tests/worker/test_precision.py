"""Training in float16 by real workers: steps whose gradient does not fit are skipped by all."""

from __future__ import annotations

from pathlib import Path

import pytest

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import CheckpointWritten, Log
from hivenode.spec.values import Engine
from tests.worker.members import Member, attempt, difference, digest, failure, finish, spec

pytestmark = pytest.mark.asyncio(loop_scope="session")

# So few samples have gradients so large that the first steps do not fit.
FEW = {"epochs": 1, "max_steps": 24, "batch_size": 3, "learning_rate": 0.01}


def skipped(member: Member) -> list[str]:
    return [said.event for said in member.all(Log) if "did not fit float16" in said.event]


@pytest.mark.parametrize("way", [
    {},
    pytest.param({"codec": "int8"}, marks=pytest.mark.slow),
    pytest.param({"sync": "accumulate", "micro_batch_size": 1}, marks=pytest.mark.slow),
    pytest.param({"engine": Engine.torch}, marks=pytest.mark.slow),
], ids=["every", "lossy", "accumulated", "torch"])  # fmt: skip
async def test_a_step_that_does_not_fit_is_skipped_by_all(
    host: ForkWorkers, tmp_path: Path, way: dict[str, object]
) -> None:
    engine = way.get("engine", Engine.exchange)
    assert isinstance(engine, Engine)
    training = {name: value for name, value in way.items() if name != "engine"}
    job = spec(**FEW, **training, precision="fp16", checkpoint_every_steps=12)
    members = await attempt(host, job, [0.7, 0.3], tmp_path / "two", precision="fp16", engine=engine)
    finished = await finish(members)
    assert len({digest(done.path) for done in finished}) == 1
    told = skipped(members[0])
    assert told[0].startswith("Step 1 changed nothing: the gradient did not fit float16. ")
    assert not skipped(members[1])
    assert [done.metrics["skipped_steps"] for done in finished] == [len(told)] * 2
    # The loss goes on to be multiplied by what the checkpoint says.
    kept = members[0].all(CheckpointWritten)[0]
    assert kept.step == 12
    if not training:  # what codecs owe, and who computes how much, is another matter
        more = await attempt(
            host, job, [0.7, 0.3], tmp_path / "more", resume=kept.path, precision="fp16", engine=engine
        )
        again = await finish(more)
        assert {digest(done.path) for done in again} == {digest(done.path) for done in finished}
        assert len(skipped(more[0])) == len([event for event in told if int(event.split()[1]) > 12])


async def test_each_skips_its_own_steps_where_it_trains_for_itself(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(**FEW, sync="local", sync_every=6, precision="fp16")
    members = await attempt(host, job, [0.5, 0.5], tmp_path / "two", precision="fp16")
    finished = await finish(members)
    assert len({digest(done.path) for done in finished}) == 1
    assert all(skipped(member) for member in members)
    exact = await finish(await attempt(host, job, [0.5, 0.5], tmp_path / "exact"))
    assert 0 < difference(exact[0].path, finished[0].path) < 0.1


async def test_what_diverges_in_float16_ends_with_a_hint(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(**FEW | {"learning_rate": 100.0}, momentum=0.9, precision="fp16")
    (member,) = await attempt(host, job, [1.0], tmp_path, precision="fp16")
    failed = await failure(member)
    assert failed.code == "job_failed"
    assert 'training.precision = "fp32"' in failed.fix
