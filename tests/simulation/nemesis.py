"""Who breaks things: random faults on a world, for as long as asked, and the repair of all of them."""

from __future__ import annotations

import asyncio
import random

from hivenode.errors import HiveError
from hivenode.net.simulated import Quality
from tests.simulation.loop import ProcessKilled
from tests.simulation.world import World

GOOD = Quality(delay_seconds=(0.001, 0.03), loss=0.02)
POOR = Quality(delay_seconds=(0.05, 0.4), loss=0.15)


class Nemesis:
    """Args:
    world: its nodes must have been started.
    every_seconds: mean time between faults.
    max_jobs: submitted meanwhile, at most.
    """

    def __init__(self, world: World, rng: random.Random, *, every_seconds: float = 6.0, max_jobs: int = 4) -> None:
        self._world = world
        self._rng = rng
        self._every = every_seconds
        self._max_jobs = max_jobs
        self._names = list(world.machines)
        self._frozen: dict[str, None] = {}
        self._submitting: dict[asyncio.Task[None], None] = {}

    async def rage(self, seconds: float) -> None:
        """Break and mend at random."""
        world, rng = self._world, self._rng
        until = world.loop.time() + seconds
        while world.loop.time() < until:
            await asyncio.sleep(rng.expovariate(1 / self._every))
            name, other = rng.sample(self._names, 2)
            await self._strike(name, other)

    async def repent(self) -> None:
        """Everything works again, and every node runs."""
        world = self._world
        world.network.heal()
        for name in self._names:
            world.machines[name].disk.full = False
            for other in self._names:
                world.network.delay(name, other, GOOD)
        for name in list(self._frozen):
            self._thaw(name)
        if self._submitting:
            await asyncio.wait(self._submitting)
        for name in self._names:
            if not world.machines[name].up:
                await world.restart(name)

    async def _strike(self, name: str, other: str) -> None:
        world, rng = self._world, self._rng
        machine = world.machines[name]
        match rng.randrange(16):
            case 0 | 1 | 2 if machine.up and len(world.up) > 2:
                self._frozen.pop(name, None)
                (world.kill if rng.random() < 0.5 else world.crash_host)(name)
            case 3 | 4 | 5 if not machine.up:
                machine.disk.full = False
                await world.restart(name)
            case 6:
                world.network.partition(rng.sample(self._names, rng.randint(1, len(self._names) - 1)))
            case 7 | 8:
                world.network.heal()
            case 9:
                world.network.one_way(name, other)
            case 10:
                world.network.cut(name, other)
            case 11:
                world.network.delay(name, other, rng.choice([GOOD, POOR]))
            case 12 if machine.up and name not in self._frozen:
                self._frozen[name] = None
                world.freeze(name)
                world.loop.call_later(rng.uniform(0.5, 40), self._thaw, name)
            case 13 if machine.up:
                self._fill(name, True)
                world.loop.call_later(rng.uniform(1, 20), self._fill, name, False)
            case 14 if machine.up and name not in self._frozen and len(world.up) > 2:
                machine.disk.full = False
                await world.stop(name)
            case 15 if machine.up and len(world.submitted) + len(self._submitting) < self._max_jobs:
                task = asyncio.ensure_future(self._submit(name))
                self._submitting[task] = None
                task.add_done_callback(lambda done: self._submitting.pop(done))

    def _fill(self, name: str, full: bool) -> None:
        self._world.network.note(f"{name} disk {'full' if full else 'has room'}")
        self._world.machines[name].disk.full = full

    def _thaw(self, name: str) -> None:
        if name in self._frozen:
            del self._frozen[name]
            self._world.thaw(name)

    async def _submit(self, name: str) -> None:
        try:
            await self._world.submit(name, steps=self._rng.choice([60, 300]), min_nodes=self._rng.randint(1, 3))
        except (HiveError, ProcessKilled):
            return  # it was refused, or its node died: nothing was promised
