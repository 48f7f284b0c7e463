"""Who coordinates, over whole nodes: by standing, handed over, with a quorum, and with a disk that is full."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest

from hivenode.hive.swim import Member, MemberState
from hivenode.net.simulated import Quality
from hivenode.node import Node, Ports
from hivenode.spec.status import Status
from hivenode.spec.values import Role
from tests.simulation.loop import run
from tests.simulation.test_scenarios import NAMES, end, hive, rest
from tests.simulation.world import Machine, World

SEEDS = range(3)


class Powered(World):
    """Machines that may run on battery."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.batteries: set[str] = set()

    def _ports(self, machine: Machine, seeds: Sequence[str], rng: random.Random) -> Ports:
        return replace(super()._ports(machine, seeds, rng), on_battery=lambda: machine.name in self.batteries)


async def status(world: World, name: str) -> Status:
    async def ask(node: Node) -> Status:
        return node.service.status()

    return await world.ask(name, ask)


def listen(world: World, name: str) -> list[dict[str, object]]:
    """What a node tells of its coordinator from now on, as `hivenode events` shows it."""
    heard: list[dict[str, object]] = []
    notices = world.machines[name].node.notices
    tell = notices.tell

    def listening(kind: str, data: dict[str, object]) -> None:
        if kind == "coordinator":
            heard.append(data)
        tell(kind, data)

    notices.tell = listening  # type: ignore[method-assign]
    return heard


@pytest.mark.claim("E14")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_laptop_on_battery_does_not_coordinate_while_a_desktop_can(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = Powered(rng)
        world.batteries |= {"lap", "top"}
        for name in ("lap", "top", "desk"):
            await world.start_node(name)
        await world.until(lambda: world.coordinator() == "desk", 60, "the desktop, which came last, leads")
        world.kill("desk")
        await world.until(lambda: world.coordinator() in ("lap", "top"), 10, "a laptop leads where nothing else is")
        laptop = world.coordinator()
        before = world.leader(laptop)
        await world.restart("desk")
        await world.until(lambda: world.coordinator() == "desk", 45, "it hands over to the desktop that has come back")
        after = world.leader("desk")
        assert before is not None
        assert after is not None
        assert after.counter == before.counter + 1
        await asyncio.sleep(300)
        assert world.leader("desk") == after, "and there it stays"

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_coordinator_that_is_unplugged_hands_over_and_gets_the_lead_back_late(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = Powered(rng)
        for name in ("ann", "bob", "cid"):
            await world.start_node(name)
        await world.formed()
        first = world.coordinator()
        job = await world.submit("ann", steps=2000, min_nodes=3)
        await world.until(lambda: world.step(job) > 50, 60)
        world.batteries.add(first)
        await world.until(lambda: world.coordinator() not in ("", first), 6, "it hands over")
        second = world.leader(first)
        world.batteries.remove(first)
        await asyncio.sleep(50)
        assert world.leader(first) == second
        await end(world, [job])
        held = world.job("ann", job)
        assert held is not None
        assert len(held.attempts) == 1, "the attempt goes on under the next coordinator"

    run(main, seed=seed)


def test_the_owner_says_who_coordinates() -> None:
    async def main(rng: random.Random) -> None:
        world = Powered(rng)
        world.batteries.add("bob")
        for name, priority in (("ann", 1), ("bob", 9), ("cid", 5)):
            await world.start_node(name, settings={"election": {"priority": priority}})
        await world.until(lambda: world.coordinator() == "bob", 60, "the one with the highest priority")

    run(main, seed=1)


@pytest.mark.claim("E13")
@pytest.mark.parametrize("seed", range(8))
def test_a_coordinator_that_stops_is_followed_within_a_second(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        job = await world.submit("ann", steps=1000, min_nodes=4)
        await world.until(lambda: world.step(job) > 50, 60)
        first = world.coordinator()
        before = world.leader(first)
        stopping = asyncio.ensure_future(world.stop(first))
        others = rest(world, first)
        await world.until(lambda: world.coordinator(others) not in ("", first), 1.0, "the next coordinator")
        after = world.leader(others[0])
        await stopping
        assert before is not None
        assert after is not None
        assert after.counter == before.counter + 1
        await asyncio.sleep(10)
        assert world.leader(others[0]) == after
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.claim("E19")
@pytest.mark.parametrize("seed", SEEDS)
def test_of_two_coordinators_one_with_a_full_disk_the_other_leads_alone(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = World(rng)
        for name in ("ann", "bob"):
            await world.start_node(name)
        await world.start_node("eve", roles=(Role.worker,))
        await world.formed()
        full = world.coordinator()
        (well,) = [name for name in ("ann", "bob") if name != full]
        world.machines[full].disk.full = True
        job = await world.submit(well, strategy="single_node", nodes=[well])
        await world.until(lambda: world.coordinator(["eve", well]) == well, 10, "the one that can write leads")
        await world.until(lambda: not _open(world, well, job), 120)
        told = await status(world, full)
        assert any("full" in sentence for sentence in told.health), told.health
        world.machines[full].disk.full = False
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.claim("E19")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_voter_whose_disk_is_full_says_so_when_it_is_asked_for_its_vote(seed: int) -> None:
    """It has written nothing for a while, so nobody knows yet: the vote that cannot be written is what shows it."""

    async def main(rng: random.Random) -> None:
        world = await hive(rng, 2)
        first = world.coordinator()
        (other,) = rest(world, first)
        await world.start_node("cid")
        await world.formed()
        for name in (other, "cid"):
            world.machines[name].disk.full = name == other
        world.kill(first)
        await world.until(lambda: world.coordinator(["cid"]) == "cid", 20, "the one that can write leads")
        assert world.leader(other) is None
        world.machines[other].disk.full = False
        await world.restart(first)
        await world.formed()
        world.check_facts()

    run(main, seed=seed)


def _open(world: World, name: str, job: str) -> bool:
    held = world.job(name, job)
    return held is None or held.open


@pytest.mark.claim("E10")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_side_without_quorum_waits_and_says_so(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng, settings={"election": {"quorum": 3}})
        heard = listen(world, "ann")
        world.network.partition(["ann", "bob"])
        await world.until(lambda: world.sees("ann") == world.sees("bob") == ["ann", "bob"], 90)
        told = await status(world, "ann")
        assert told.coordinator == ""
        assert any("waiting for 3 votes: 2 of 3 present" in sentence for sentence in told.health), told.health
        assert "waiting for 3 votes: 2 of 3 present" in [told["waiting"] for told in heard]
        world.network.heal()
        await world.formed()
        assert heard[-1]["waiting"] == ""
        assert heard[-1]["node"]
        assert not any("waiting" in sentence for sentence in (await status(world, "ann")).health)

    run(main, seed=seed)


@pytest.mark.claim("E9")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_leader_that_loses_its_quorum_steps_down_before_anybody_is_held_dead(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng, settings={"election": {"quorum": 3}})
        first = world.coordinator()
        world.network.partition([first])
        await world.until(lambda: world.leader(first) is None, 5, "check-quorum")
        assert len(world.sees(first)) == len(NAMES), "it had not even missed them"
        world.network.heal()
        await world.formed()

    run(main, seed=seed)


def test_links_that_stall_cost_a_well_coordinator_nothing_and_nobody_is_held_dead() -> None:
    """A network that loses 30 % of all segments holds a link up for half a minute at times; a fresh one replaces it."""

    async def main(rng: random.Random) -> tuple[int, int]:
        world = World(rng, quality=Quality(loss=0.3))
        for name in ("ann", "bob", "cid"):
            await world.start_node(name)
        await world.formed()
        await asyncio.sleep(60)
        first, deaths = max(world.led), 0

        def count(member: Member, was: MemberState | None, act: Callable[[Member, MemberState | None], None]) -> None:
            nonlocal deaths
            deaths += member.state is MemberState.dead
            act(member, was)

        for machine in world.up:
            membership = machine.node.membership
            membership._on_change = partial(count, act=membership._on_change)
        await asyncio.sleep(300)
        return sum(counter > first for counter in world.led), deaths

    runs = [run(main, seed=seed) for seed in range(4)]
    # Twenty minutes in all. With links that are waited for: some eight coordinators and ten deaths.
    assert sum(changes for changes, _ in runs) <= 1, runs
    assert sum(deaths for _, deaths in runs) <= 1, runs
