"""What a node may do is what it was granted, and no more: whole nodes, one role each."""

from __future__ import annotations

import asyncio
import random

import pytest

from hivenode.errors import Refused
from hivenode.net.messages import Heartbeat, VoteRequest
from hivenode.node import Node
from hivenode.spec.values import Epoch, Role
from tests.simulation.loop import run
from tests.simulation.stories import end
from tests.simulation.world import World

JOB = {"name": "digits", "training": {"epochs": 1, "max_steps": 40}}


async def one_each(rng: random.Random) -> World:
    world = World(rng)
    await world.start_node("lead", roles=(Role.coordinator,))
    await world.start_node("second", roles=(Role.coordinator,))
    await world.start_node("wish", roles=(Role.submitter,))
    for name in ("hand", "other"):
        await world.start_node(name, roles=(Role.worker,))
    await world.formed()
    return world


async def refused(world: World, name: str, deed: str, job: str = "") -> str:
    """Why a node will not do what a person there asks for."""

    async def ask(node: Node) -> str:
        with pytest.raises(Refused) as caught:
            await (node.service.submit(JOB) if deed == "submit" else node.service.cancel(job, "no"))
        return f"{caught.value.sentence} {caught.value.fix}"

    return await world.ask(name, ask)


def test_each_does_what_it_may_and_a_worker_neither_submits_nor_cancels() -> None:
    async def main(rng: random.Random) -> None:
        world = await one_each(rng)
        assert world.coordinator() in ("lead", "second")
        job = await world.submit("wish", steps=300, min_nodes=2)
        await world.until(lambda: world.step(job) > 20, 60, "the job runs")
        assert world.working(job) == ["hand", "other"], "only those that may work do"
        for name in ("hand", "lead"):
            assert "may not submit jobs. Submit on a node with the submitter role" in await refused(
                world, name, "submit"
            )
            assert "may not cancel jobs" in await refused(world, name, "cancel", job)
        await end(world, [job])
        assert [held.id for held in world.machines["hand"].node.ledger.jobs.values()] == [job]

    run(main, seed=1)


def test_where_all_that_may_coordinate_are_gone_nobody_does() -> None:
    async def main(rng: random.Random) -> None:
        world = await one_each(rng)
        job = await world.submit("wish", steps=3000, min_nodes=2)
        await world.until(lambda: world.step(job) > 20, 60, "the job runs")
        highest = max(world.led)
        for name in ("lead", "second"):
            world.kill(name)
        await asyncio.sleep(300)
        for name in ("wish", "hand", "other"):
            node = world.machines[name].node
            assert node.leadership.leader is None
            assert node.leadership.highest.counter <= highest, "and nobody stands"
            assert any("coordinator" in sentence for sentence in node.service.status().health), "it is said"
        await world.restart("second")
        await world.until(lambda: world.coordinator() == "second", 60, "it takes one that may")
        await end(world, [job])

    run(main, seed=2)


def test_what_is_said_in_an_epoch_by_one_that_may_not_coordinate_is_heard_by_nobody() -> None:
    """A worker that stands all the same gets no vote, and is followed by nobody."""

    async def main(rng: random.Random) -> None:
        world = await one_each(rng)
        before = world.leader("wish")
        assert before is not None

        async def usurp(node: Node) -> None:
            epoch = Epoch(before.counter + 1, node.me)
            for peer in node.ports.transport.links:
                for message in (VoteRequest(epoch, True), VoteRequest(epoch, False), Heartbeat(epoch)):
                    node.ports.transport.send(peer, message)

        for _ in range(20):
            await world.ask("hand", usurp)
            await asyncio.sleep(1)
        assert {world.leader(machine.name) for machine in world.up} == {before}
        assert max(world.led) == before.counter

    run(main, seed=3)
