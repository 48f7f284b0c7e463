"""A feed with two histories: its machine was restored from a backup and stated things where nobody could warn it.
Neither history is believed from where they part, by anybody, and the hive goes on without that machine."""

from __future__ import annotations

import asyncio
import random

import pytest

from hivenode.errors import Refused
from hivenode.node import Node
from hivenode.spec.events import BlobHeld
from hivenode.spec.values import Role
from tests.simulation.faults import founded, revoke
from tests.simulation.loop import run
from tests.simulation.stories import hive
from tests.simulation.world import World

OTHERS = ("ann", "bob", "cid")


async def state(world: World, name: str, count: int, mark: str) -> None:
    """State so many facts, one after the other."""
    for number in range(count):

        async def say(node: Node, number: int = number) -> None:
            await node.replication.append(BlobHeld(digest=f"{mark}{number:02}".rjust(64, "0"), size=1))

        await world.ask(name, say)


async def forked(rng: random.Random, theirs: int, ours: int) -> World:
    """A hive that knows `theirs` facts of dan, who has lost them and has stated `ours` others instead, alone."""
    world = await hive(rng, 4)
    dan = world.machines["dan"]
    world.may_fork.add(dan.id)
    await asyncio.sleep(5)  # whom it follows is on disk
    backup = dan.disk.backup()
    await state(world, "dan", theirs, "a")
    await world.settled()
    world.crash_host("dan")
    dan.disk.restore(backup)
    world.network.partition(["dan"])
    await world.restart("dan")
    await state(world, "dan", ours, "b")
    return world


def counted(world: World, name: str) -> list[str]:
    """Of dan, what counts in a node's eyes."""
    dan = world.machines["dan"].id
    entries = world.machines[name].node.feeds.entries()
    return [str(entry.body) for entry in entries if entry.event.author == dan]


async def health(node: Node) -> tuple[str, ...]:
    return node.service.status().health


@pytest.mark.parametrize(("theirs", "ours"), [(1, 1), (7, 7), (2, 9), (30, 3), (3, 30)])
def test_all_agree_from_where_neither_history_counts_and_both_sides_are_told(theirs: int, ours: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await forked(rng, theirs, ours)
        before = counted(world, "dan")[:-ours]
        world.network.heal()
        dan = world.machines["dan"].id
        everybody = [machine.name for machine in world.up]
        await world.until(lambda: all(dan in machine.node.feeds.forked for machine in world.up), 60, "quarantined")
        await world.until(lambda: all(counted(world, name) == before for name in everybody), 60, "the same counts")
        await world.until(lambda: len({world.facts(name) for name in everybody}) == 1, 60, "equal views")
        for name in OTHERS:
            assert any("The feed of dan forked at event" in said for said in await world.ask(name, health))
        assert any("two branches of this node's own feed" in said for said in await world.ask("dan", health))
        with pytest.raises(Refused, match="two histories"):
            await world.submit("dan")
        for name in everybody:
            world.kill(name)
        for name in everybody:
            await world.restart(name)
        await world.until(lambda: all(dan in machine.node.feeds.forked for machine in world.up), 60, "and found again")
        await world.until(lambda: len({world.facts(name) for name in everybody}) == 1, 60, "equal views")
        assert counted(world, "ann") == before

    run(main, seed=theirs)


@pytest.mark.parametrize("seed", range(3))
def test_one_whose_feed_forked_neither_coordinates_nor_works(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await forked(rng, 2, 3)
        await world.until(lambda: world.coordinator(["dan"]) == "dan", 60, "it leads itself, alone")
        world.network.heal()
        dan = world.machines["dan"].id
        await world.until(lambda: all(dan in machine.node.feeds.forked for machine in world.up), 60, "quarantined")
        await world.until(lambda: world.coordinator() in OTHERS, 60, "one of the others coordinates")
        job = await world.submit("ann", min_nodes=2)
        await world.until(lambda: all(not _open(world, name, job) for name in OTHERS), 120, "the job ends")
        held = world.job("ann", job)
        assert held is not None
        assert held.ending == "finished"
        assert all(dan not in attempt.nodes for attempt in held.attempts.values())

    run(main, seed=seed)


def test_one_whose_feed_forked_at_its_beginning_is_still_found_by_its_name_and_shown_out() -> None:
    """Its own grant is a part of what counts no more."""

    async def main(rng: random.Random) -> None:
        world = await founded(rng)
        dan, others = world.machines["dan"], ("ann", "bob", "cid", "eve")
        world.may_fork.add(dan.id)
        world.crash_host("dan")
        dan.disk.damage(dan.id, 1)
        dan.disk.damaged.clear()  # and it does not notice
        world.network.partition(["dan"])
        await world.restart("dan")
        await world.until(lambda: dan.id in dan.node.feeds.heads, 60, "it begins its feed anew, alone")
        world.network.heal()
        await world.until(lambda: all(m.node.feeds.forked.get(dan.id) == 1 for m in world.up), 60, "forked at event 1")
        await world.until(lambda: dan.id not in world.machines["ann"].node.roles.holders(Role.worker), 60, "no grant")
        assert any("The feed of dan forked at event 1 " in said for said in await world.ask("ann", health))
        world.kill("dan")
        await world.ask("ann", lambda node: revoke(node, "dan"))
        await world.until(
            lambda: all(world.machines[name].node.roles.revoked(dan.id) for name in others), 60, "revoked"
        )
        await world.until(lambda: len({world.facts(name) for name in others}) == 1, 60, "equal views")

    run(main, seed=1)


def _open(world: World, name: str, job: str) -> bool:
    held = world.job(name, job)
    return held is None or held.open
