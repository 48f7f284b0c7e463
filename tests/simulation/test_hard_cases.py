"""Sequences that once lost work, hung a job or stopped a node."""

from __future__ import annotations

import asyncio
import random

import pytest

from hivenode.node import Node
from hivenode.spec.events import JobSubmitted
from tests.simulation.loop import run
from tests.simulation.stories import NAMES, end, hive, rest
from tests.simulation.world import World

SEEDS = range(3)


def odd_specs() -> list[bytes]:
    bad_epochs = b'{"name": "x", "training": {"epochs": "many"}}'
    return [b"not json", b"\xff\xfe", b"[]", b"{}", b'{"training": 3}', bad_epochs]


@pytest.mark.parametrize("seed", SEEDS)
def test_submissions_that_make_no_sense_stop_nobody(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        odd = [JobSubmitted(job=f"j-odd{number}", name="odd", spec=spec) for number, spec in enumerate(odd_specs())]
        await world.ask("bob", lambda node: node.replication.append(*odd))
        job = await world.submit("cid", min_nodes=3)
        await end(world, [job])
        for machine in world.up:
            listed = {summary.job: summary for summary in machine.node.service.jobs()}
            assert listed[job].state == "finished"
            for name, summary in listed.items():
                machine.node.service.job(name)
                assert name == job or summary.state == "failed", "what cannot be understood is given up"

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_job_that_was_run_before_keeps_its_own_checkpoints(seed: int) -> None:
    """The same declaration makes the same checkpoints; those of an ended job are not its own alone."""

    async def main(rng: random.Random) -> None:
        world = await hive(rng, 3)

        async def cancel(node: Node, job: str) -> None:
            await node.service.cancel(job, "again")

        first = await world.submit("ann", steps=400, min_nodes=3)
        await world.until(lambda: world.step(first) > 150, 60)
        await world.ask("ann", lambda node: cancel(node, first))
        second = await world.submit("ann", steps=400, min_nodes=3)
        await world.until(lambda: world.step(second) > 150, 120)
        for name in NAMES[:3]:
            world.crash_host(name)
        for name in NAMES[:3]:
            await world.restart(name)
        await end(world, [second])
        held = world.job("ann", second)
        assert held is not None
        assert held.current is not None
        assert held.current.resume_step > 0
        assert len(held.attempts) == 2

    run(main, seed=seed)


@pytest.mark.parametrize("pause", [0.05, 0.3, 0.6, 2.0])
def test_the_lead_restarts_just_as_training_ends(pause: float) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng, 3)
        job = await world.submit("ann", steps=100, min_nodes=3)
        await world.until(lambda: world.step(job) >= 99, 120)
        held = world.job("ann", job)
        assert held is not None
        assert held.current is not None
        lead = next(machine.name for machine in world.up if machine.id == held.current.members[0])
        world.kill(lead)
        await asyncio.sleep(pause)
        await world.restart(lead)
        await end(world, [job])

    run(main)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_with_a_full_disk_does_not_coordinate(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng, 4)
        full = world.coordinator()
        others = rest(world, full)
        world.machines[full].disk.full = True
        job = await world.submit(others[0], min_nodes=2, max_nodes=2, nodes=others)
        await world.until(lambda: all(_done(world, name, job) for name in others), 120, "the others finish")
        world.machines[full].disk.full = False
        await end(world, [job])

    run(main, seed=seed)


def _done(world: World, name: str, job: str) -> bool:
    held = world.job(name, job)
    return held is not None and held.ending == "finished"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_machine_that_is_switched_off_every_evening_gets_there(seed: int) -> None:
    """More often than there are tries: a try that got further is not a failure."""

    async def main(rng: random.Random) -> None:
        world = await hive(rng, 1)
        job = await world.submit("ann", steps=1000, strategy="single_node")
        for evening in range(1, 9):
            await world.until(lambda evening=evening: world.step(job) > 100 * evening, 120)
            world.crash_host("ann")
            await asyncio.sleep(rng.uniform(0, 30))
            await world.restart("ann")
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_given_up_as_lost_may_finish_out_of_sight(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        coordinator = world.coordinator()
        far = rest(world, coordinator)[0]
        job = await world.submit(far, steps=200, strategy="single_node", nodes=[far])
        await world.until(lambda: world.step(job) > 20, 60)
        world.network.partition([far], rest(world, far))
        await world.until(lambda: _done(world, far, job), 120, "it finishes alone")
        await world.until(
            lambda: (
                (held := world.job(coordinator, job)) is not None
                and any(attempt.ended for attempt in held.attempts.values())
            ),
            120,
            "the others think it lost",
        )
        world.network.heal()
        await end(world, [job])

    run(main, seed=seed)
