"""Whole nodes seal old events: under crashes at every point, and for a node that was away a month."""

from __future__ import annotations

import random

import pytest

from hivenode.hive.sealer import DAY
from hivenode.node import Node
from hivenode.spec.events import BlobHeld, JobCancelled, JobSubmitted
from tests.hive.replicas import digest
from tests.simulation.loop import run
from tests.simulation.world import World

NAMES = ("ann", "bob", "cid", "dan")
SETTINGS: dict[str, dict[str, object]] = {
    "feeds": {"seal_events": 60, "seal_after_days": 7, "patience_days": 30, "keep_jobs_days": 20}
}


async def hive(rng: random.Random, names: tuple[str, ...] = NAMES) -> World:
    world = World(rng, settings=SETTINGS)
    for name in names:
        await world.start_node(name)
    await world.formed()
    return world


def pass_days(world: World, days: float) -> None:
    """All wall clocks move on; nothing else happens meanwhile."""
    for machine in world.machines.values():
        machine.skew_seconds += days * DAY


async def work(world: World, name: str, label: str, jobs: int = 8) -> None:
    """A node submits and cancels small jobs and says what it keeps, as a day of use leaves it in the feeds."""
    bodies = []
    for number in range(jobs):
        job = f"j-{label}-{number}"
        bodies += [
            JobSubmitted(job=job, name="small", spec=b"{}"),
            BlobHeld(digest=digest(f"{label} {number}"), size=1),
            JobCancelled(job=job, reason="enough"),
        ]

    async def state(node: Node) -> None:
        await node.replication.append(*bodies)

    await world.ask(name, state)


def sealed(world: World, name: str) -> int:
    return world.machines[name].node.replication.seal_number


async def until_sealed(world: World, number: int, seconds: float = 400) -> None:
    await world.until(
        lambda: all(sealed(world, machine.name) >= number for machine in world.up), seconds, f"seal {number}"
    )


@pytest.mark.parametrize("seed", range(3))
def test_old_events_are_sealed_and_the_facts_stay(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        for day in range(10):
            await work(world, rng.choice(NAMES), f"d{day}")
            pass_days(world, 1)
        await world.settled()
        before = {name: len(list(world.machines[name].node.feeds.entries())) for name in NAMES}
        jobs = world.machines["ann"].node.ledger.jobs
        await until_sealed(world, 1)
        await world.settled()
        world.check_facts()
        for name in NAMES:
            node = world.machines[name].node
            assert len(list(node.feeds.entries())) < before[name] - 60
            assert node.ledger.jobs == jobs
        for name in NAMES:
            world.kill(name)
            await world.restart(name)
        await world.formed()
        await world.settled()
        world.check_facts()
        assert world.machines["bob"].node.ledger.jobs == jobs
        assert all(sealed(world, name) == 1 for name in NAMES)

    run(main, seed=seed)
