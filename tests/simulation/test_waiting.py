"""Why a job does not run is known to all, not to its coordinator alone; over whole nodes."""

from __future__ import annotations

import asyncio
import random

import pytest

from hivenode.net.messages import Waiting
from hivenode.node import Node
from hivenode.spec.status import JobDetail
from hivenode.spec.values import Epoch
from tests.simulation.loop import run
from tests.simulation.test_scenarios import end
from tests.simulation.world import World


async def reason(world: World, name: str, job: str) -> str:
    async def ask(node: Node) -> JobDetail:
        return node.service.job(job)

    return (await world.ask(name, ask)).summary.reason


@pytest.mark.parametrize("seed", range(3))
def test_a_member_sees_what_a_job_waits_for_and_one_that_comes_later_too(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = World(rng)
        for name in ("ann", "bob"):
            await world.start_node(name)
        await world.formed()
        member = next(name for name in ("ann", "bob") if name != world.coordinator())
        job = await world.submit(member, min_nodes=4)
        await asyncio.sleep(5)
        wanted = await reason(world, world.coordinator(), job)
        assert "4" in wanted
        assert await reason(world, member, job) == wanted

        await world.start_node("cid")
        await world.formed()
        await asyncio.sleep(20)
        assert await reason(world, "cid", job) == await reason(world, world.coordinator(), job)
        assert "4" in await reason(world, "cid", job)

        await world.start_node("dan")
        await world.until(lambda: world.step(job) > 0, 60, "it runs once there are four")
        assert wanted not in [await reason(world, name, job) for name in ("ann", "bob", "cid", "dan")]
        await end(world, [job])

    run(main, seed=seed)


def test_only_who_coordinates_says_why_a_job_waits() -> None:
    async def main(rng: random.Random) -> None:
        world = World(rng)
        for name in ("ann", "bob", "cid"):
            await world.start_node(name)
        await world.formed()
        liar, hearer = (name for name in ("ann", "bob", "cid") if name != world.coordinator())
        job = await world.submit(hearer, min_nodes=9)
        await asyncio.sleep(5)
        told = await reason(world, hearer, job)
        mine, true = world.machines[liar], world.leader(liar)
        assert true is not None
        for epoch in (true, Epoch(true.counter + 1, mine.id)):
            mine.node.ports.transport.send(
                world.machines[hearer].id, Waiting(job=job, epoch=epoch, reason="send money first")
            )
        await asyncio.sleep(1)
        assert await reason(world, hearer, job) == told

    run(main, seed=1)
