"""Random faults as data: drawn from a seed, carried out on a world. When something breaks, `shrinking` looks for the
fewest and simplest that still break it.

A schedule is a tuple of faults in order of time. Any part of a schedule is a schedule: a fault that makes
no sense where it falls (killing what is down) does nothing, so leaving out others before it is no error.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hivenode.errors import HiveError
from hivenode.net.simulated import Quality
from tests.simulation.loop import ProcessKilled
from tests.simulation.world import World

GOOD = Quality(delay_seconds=(0.001, 0.03), loss=0.02)
POOR = Quality(delay_seconds=(0.05, 0.4), loss=0.15)


class Kind(StrEnum):
    kill = "kill"
    crash = "crash"
    restart = "restart"
    stop = "stop"
    partition = "partition"
    heal = "heal"
    one_way = "one_way"
    cut = "cut"
    poor = "poor"
    good = "good"
    freeze = "freeze"
    fill = "fill"
    submit = "submit"


@dataclass(frozen=True)
class Fault:
    """What happens when, to whom.

    Attributes:
        at: seconds after the beginning.
        who: the machines concerned; for a partition one side of it.
        amount: seconds that a freeze or a full disk lasts; steps of a submitted job.
    """

    at: float
    kind: Kind
    who: tuple[str, ...] = ()
    amount: float = 0.0


Schedule = tuple[Fault, ...]

_WEIGHTS = {
    Kind.kill: 2, Kind.crash: 1, Kind.restart: 4, Kind.stop: 1, Kind.partition: 1, Kind.heal: 2, Kind.one_way: 1,
    Kind.cut: 1, Kind.poor: 1, Kind.good: 1, Kind.freeze: 1, Kind.fill: 1, Kind.submit: 1,
}  # fmt: skip
_LASTS = {Kind.freeze: (0.5, 40.0), Kind.fill: (1.0, 20.0)}


def draw(rng: random.Random, names: Sequence[str], *, seconds: float, every: float, max_jobs: int = 4) -> Schedule:
    """Faults at random times, `every` seconds apart in the mean."""
    faults: list[Fault] = []
    at, jobs = rng.expovariate(1 / every), 0
    while at < seconds:
        kind = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        who = tuple(rng.sample(list(names), rng.randint(1, len(names) - 1) if kind is Kind.partition else 2))
        amount = round(rng.uniform(*_LASTS[kind]), 2) if kind in _LASTS else 0.0
        if kind is Kind.submit:
            jobs += 1
            amount = rng.choice([60, 300])
        if kind is not Kind.submit or jobs <= max_jobs:
            faults.append(Fault(round(at, 2), kind, who, amount))
        at += rng.expovariate(1 / every)
    return tuple(faults)


class Nemesis:
    """Carries a schedule out, and repairs everything afterwards. The world's nodes must have been started."""

    def __init__(self, world: World, schedule: Schedule) -> None:
        self._world = world
        self._schedule = schedule
        self._names = list(world.machines)
        self._frozen: dict[str, None] = {}
        self._submitting: dict[asyncio.Task[None], None] = {}

    async def rage(self) -> None:
        began = self._world.loop.time()
        for fault in self._schedule:
            await asyncio.sleep(max(0.0, began + fault.at - self._world.loop.time()))
            await self._strike(fault)

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

    async def _strike(self, fault: Fault) -> None:
        world, name = self._world, next(iter(fault.who), "")
        machine = world.machines.get(name)
        if machine is None:
            assert fault.kind is Kind.heal, fault
            world.network.heal()
            return
        match fault.kind:
            case Kind.kill | Kind.crash if machine.up and len(world.up) > 2:
                self._frozen.pop(name, None)
                (world.kill if fault.kind is Kind.kill else world.crash_host)(name)
            case Kind.restart if not machine.up:
                machine.disk.full = False
                await world.restart(name)
            case Kind.stop if machine.up and name not in self._frozen and len(world.up) > 2:
                machine.disk.full = False
                await world.stop(name)
            case Kind.partition:
                world.network.partition(fault.who)
            case Kind.heal:
                world.network.heal()
            case Kind.one_way:
                world.network.one_way(*fault.who)
            case Kind.cut:
                world.network.cut(*fault.who)
            case Kind.poor | Kind.good:
                world.network.delay(*fault.who, POOR if fault.kind is Kind.poor else GOOD)
            case Kind.freeze if machine.up and name not in self._frozen:
                self._frozen[name] = None
                world.freeze(name)
                world.loop.call_later(fault.amount, self._thaw, name)
            case Kind.fill if machine.up:
                self._fill(name, True)
                world.loop.call_later(fault.amount, self._fill, name, False)
            case Kind.submit if machine.up:
                task = asyncio.ensure_future(self._submit(name, int(fault.amount)))
                self._submitting[task] = None
                task.add_done_callback(lambda done: self._submitting.pop(done))

    def _fill(self, name: str, full: bool) -> None:
        self._world.network.note(f"{name} disk {'full' if full else 'has room'}")
        self._world.machines[name].disk.full = full

    def _thaw(self, name: str) -> None:
        if name in self._frozen:
            del self._frozen[name]
            self._world.thaw(name)

    async def _submit(self, name: str, steps: int) -> None:
        try:
            await self._world.submit(name, steps=steps, min_nodes=2)
        except (HiveError, ProcessKilled):
            return  # it was refused, or its node died: nothing was promised
