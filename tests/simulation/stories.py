"""What stories about a hive are told with: how it begins, and how all of them must end."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tests.simulation.world import World

NAMES = ("ann", "bob", "cid", "dan", "eve")


async def hive(rng: random.Random, count: int = 5, **how: object) -> World:
    """A formed hive of this many nodes."""
    world = World(rng, **how)  # type: ignore[arg-type]
    for name in NAMES[:count]:
        await world.start_node(name)
    await world.formed()
    return world


async def end(world: World, jobs: Iterable[str] = (), seconds: float = 300) -> None:
    """All jobs finished on all nodes, and all that must hold then."""
    for job in jobs:
        await world.until(lambda job=job: world.ended(job), seconds, f"the end of {job}")
    await world.formed(seconds=120)
    await world.settled()
    await world.until(lambda: not any(world.working(job) for job in jobs), 60, "the end of all workers")
    for job in jobs:
        held = world.job(world.up[0].name, job)
        assert held is not None
        assert held.ending == "finished", f"{held.ending}: {held.error}"
    world.check_facts()


def rest(world: World, *without: str) -> list[str]:
    return [machine.name for machine in world.up if machine.name not in without]
