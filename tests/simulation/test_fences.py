"""Every order that a coordinator can give is refused below the highest epoch obeyed, also after a crash."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from hivenode.errors import Refused
from hivenode.jobs.fence import FENCE, Fence
from hivenode.net.messages import Adopt, Assign, Endpoint, Start, Stop, Welcome
from hivenode.node import Node
from hivenode.spec.values import Epoch
from hivenode.store.simulated import SimulatedJournal
from tests.simulation.loop import run
from tests.simulation.test_scenarios import end, hive, rest
from tests.simulation.world import World

Order = Assign | Start | Welcome | Adopt | Stop
KINDS = ("assign", "start", "welcome", "adopt", "stop")


def orders(node: Node, job: str, epoch: Epoch) -> dict[str, Order]:
    """One of each kind about the running attempt, in that epoch."""
    held = node.ledger.jobs[job]
    attempt = held.current
    assert attempt is not None
    number, planned = attempt.name
    return {
        "assign": Assign(job=job, attempt=number + 1, epoch=epoch, spec=held.spec, plan=attempt.plan),
        "start": Start(job=job, attempt=number, planned=planned, epoch=epoch, endpoints=()),
        "welcome": Welcome(
            job=job, attempt=number, planned=planned, epoch=epoch, endpoint=Endpoint(epoch.node, 9, "192.0.2.1:1", "")
        ),
        "adopt": Adopt(job=job, attempt=number, planned=planned, epoch=epoch),
        "stop": Stop(job=job, epoch=epoch, reason="an old coordinator says so"),
    }


async def give(world: World, name: str, order: Order) -> str:
    """Have a node receive an order from the coordinator of its epoch; why it refuses, or ""."""

    async def work(node: Node) -> str:
        try:
            await node.desk.serve(order.epoch.node, order)
        except Refused as error:
            return error.sentence
        return ""

    return await world.ask(name, work)


def standing(world: World, name: str, job: str) -> tuple[object, ...]:
    work = world.machines[name].node.executor._work[job]
    return (work.name, work.epoch, work.state, work.handle is not None)


async def late_orders(rng: random.Random, kind: str) -> None:
    """A coordinator is paused, another one adopts its attempt, and then an order of the first arrives."""
    world = await hive(rng, 3)
    first = world.coordinator()
    job = await world.submit("ann", steps=2000, min_nodes=3)
    await world.until(lambda: world.step(job) > 50, 60)
    await world.pause(first, 8.0)
    await world.until(lambda: world.coordinator() not in ("", first), 30, "another leads")
    victim = next(name for name in rest(world, first) if name in world.working(job))
    executor = world.machines[victim].node.executor
    await world.until(lambda: executor._work[job].epoch.counter > 1, 30, "the attempt is adopted")
    before = standing(world, victim, job)
    outlived = Epoch(1, world.machines[first].id)
    refusal = await give(world, victim, orders(world.machines[victim].node, job, outlived)[kind])
    assert "refuses an order of epoch 1" in refusal
    assert standing(world, victim, job) == before
    await end(world, [job])


async def after_a_crash(rng: random.Random, lose: Callable[[World, str], None]) -> None:
    """A node obeys an order of a high epoch, crashes, and comes back to orders of a lower one."""
    world = await hive(rng, 3)
    job = await world.submit("ann", steps=3000, min_nodes=3)
    await world.until(lambda: world.step(job) > 50, 60)
    victim, other = rest(world, world.coordinator())
    leader = world.leader(victim)
    assert leader is not None
    far = Epoch(leader.counter + 7, leader.node)
    assert await give(world, victim, orders(world.machines[victim].node, job, far)["adopt"]) == ""
    lose(world, victim)
    await world.restart(victim)
    for kind, order in orders(world.machines[other].node, job, leader).items():
        assert "has obeyed epoch" in await give(world, victim, order), kind


@pytest.mark.claim("E5")
@pytest.mark.parametrize("kind", KINDS)
def test_an_order_below_the_fence_is_refused_and_changes_nothing(kind: str) -> None:
    run(lambda rng: late_orders(rng, kind), seed=5)


@pytest.mark.claim("E5")
@pytest.mark.parametrize("lose", [World.kill, World.crash_host])
def test_the_fence_survives_a_crash(lose: Callable[[World, str], None]) -> None:
    run(lambda rng: after_a_crash(rng, lose), seed=2)


def test_without_the_fence_an_old_coordinator_stops_what_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def obeys(fence: Fence, epoch: Epoch) -> None:
        """Whatever the epoch."""

    monkeypatch.setattr(Fence, "obey", obeys)
    with pytest.raises(AssertionError):
        run(lambda rng: late_orders(rng, "stop"), seed=5)


def test_a_fence_that_is_not_on_disk_is_gone_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    written = SimulatedJournal.set_cell

    async def forgets(journal: SimulatedJournal, name: str, value: bytes) -> None:
        if name != FENCE:
            await written(journal, name, value)

    monkeypatch.setattr(SimulatedJournal, "set_cell", forgets)
    with pytest.raises(AssertionError):
        run(lambda rng: after_a_crash(rng, World.kill), seed=2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_of_an_epoch_out_of_all_proportion_is_refused(kind: str) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng, 3)
        job = await world.submit("ann", steps=500, min_nodes=3)
        await world.until(lambda: world.step(job) > 20, 60)
        victim = world.working(job)[0]
        far = Epoch(1 << 40, world.machines[world.coordinator()].id)
        before = standing(world, victim, job)
        assert "knows of no election near" in await give(
            world, victim, orders(world.machines[victim].node, job, far)[kind]
        )
        assert standing(world, victim, job) == before
        await end(world, [job])

    run(main, seed=1)
