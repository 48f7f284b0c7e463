"""Whole nodes in a hive too large for a full mesh."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from hivenode.hive.mesh import rings_for
from hivenode.hive.roster import RosterEffect
from hivenode.hive.swim import MemberState
from hivenode.net.messages import ProfileReply, ProfileRequest
from hivenode.spec.values import Role
from hivenode.trust.identity import Identity
from tests.simulation.loop import run
from tests.simulation.world import ALL_ROLES, World

SMALL = {"network": {"full_mesh": 8, "pool": 4}}


async def grown(rng: random.Random, count: int, **settings: dict[str, object]) -> World:
    """A hive of so many nodes with a partial mesh above eight."""
    world = World(rng, settings={**SMALL, **settings})
    for number in range(count):
        roles = ALL_ROLES if number < 3 else (Role.worker, Role.submitter)  # whoever votes keeps links to all voters
        await world.start_node(f"n{number:03}", roles=roles, seeds=[f"n{n:03}" for n in range(min(number, 3))])
    await world.formed(seconds=120)
    return world


def links(world: World, name: str) -> int:
    return len(world.machines[name].node.ports.transport.links)


def test_each_keeps_few_links_and_knows_everybody_and_every_fact() -> None:
    async def main(rng: random.Random) -> None:
        world = await grown(rng, 30)
        await world.settled()
        await asyncio.sleep(120)
        assert world.agreed()
        most = 2 * rings_for(30)
        for name in world.machines:
            kept = len(world.machines[name].node.book._kept)
            if name != world.coordinator():  # which keeps a link to everybody
                assert kept <= most + 3
                assert links(world, name) <= kept + 5, "what was linked in passing, or once, is let go"
        author = world.machines["n007"]
        heads = author.node.feeds.heads[author.id]
        await world.submit("n007", steps=10, min_nodes=2, max_nodes=2)
        await world.until(
            lambda: all(m.node.feeds.heads.get(author.id, 0) > heads for m in world.up),
            10,
            "what it stated, everywhere",
        )

    run(main)


def test_a_dead_member_is_noticed_by_all_and_nobody_else_is_held_dead() -> None:
    async def main(rng: random.Random) -> None:
        world = await grown(rng, 30)
        await asyncio.sleep(60)
        world.crash_host("n011")
        left = [name for name in world.machines if name != "n011"]
        await world.until(lambda: world.agreed(left), 60, "its death")
        await asyncio.sleep(120)
        assert world.agreed(left)
        await world.restart("n011")
        await world.formed(seconds=60)

    run(main)


def test_any_member_can_call_any_other() -> None:
    async def main(rng: random.Random) -> None:
        world = await grown(rng, 24)
        await asyncio.sleep(60)
        for one, other in ((3, 17), (17, 3), (5, 22), (20, 9), (11, 4), (1, 23)):
            target = world.machines[f"n{other:03}"].id
            answer = await world.ask(f"n{one:03}", lambda node, t=target: node.call_node(t, ProfileRequest(), 5.0))
            assert isinstance(answer, ProfileReply)

    run(main)


def test_a_split_heals_although_the_two_sides_kept_no_link() -> None:
    async def main(rng: random.Random) -> None:
        world = await grown(rng, 24)
        sides = [sorted(world.machines)[0::2], sorted(world.machines)[1::2]]
        world.network.partition(*sides)
        for side in sides:
            await world.until(lambda s=side: world.agreed(s), 120, "a side of its own")
        await asyncio.sleep(120)
        world.network.heal()
        await world.formed(seconds=180)
        await world.settled()

    run(main)


def test_one_that_restarts_finds_the_hive_when_its_neighbours_are_gone() -> None:
    async def main(rng: random.Random) -> None:
        world = await grown(rng, 24)
        await world.settled()
        await asyncio.sleep(5)
        lost = world.machines["n015"]
        gone = [m.name for m in world.machines.values() if m.id in lost.node.book._kept]
        assert 4 < len(gone) < 15
        for name in ["n015", *gone]:
            world.kill(name)
        await world.restart("n015")
        alive = sorted(m.name for m in world.up)
        await world.until(
            lambda: all(world.sees(name) == alive for name in alive), 180, "all those left see each other"
        )
        assert all(m.node.membership.member(lost.id).state is MemberState.alive for m in world.up)  # type: ignore[union-attr]

    run(main)


def test_who_misses_what_a_newcomer_says_of_itself_asks_until_it_is_told() -> None:
    async def main(rng: random.Random) -> None:
        world = await grown(rng, 24, membership={"profile": "wan"})  # which exchanges all that is known once a minute
        await asyncio.sleep(60)
        deaf = [world.machines[name] for name in ("n009", "n012", "n015", "n018")]
        late, hearing = Identity.from_seed(b"n024").node_id, False

        def lossy(learn: Callable[..., list[RosterEffect]]) -> Callable[..., list[RosterEffect]]:
            return lambda now, said, **more: learn(now, said, **more) if hearing or said.node != late else []

        for machine in deaf:
            roster = machine.node.membership._swim._roster
            roster.learn = lossy(roster.learn)  # type: ignore[method-assign]
        await world.start_node("n024", roles=(Role.worker,), seeds=["n000"])
        others = [machine for machine in world.up if machine not in deaf]
        await world.until(lambda: all(m.node.membership.member(late) for m in others), 20, "known to the others")
        await asyncio.sleep(5)  # by then nobody passes it on any more
        assert all(m.node.roles.name(late) == "n024" for m in deaf), "of the grant all have heard"
        assert not any(m.node.membership.member(late) for m in deaf)
        hearing = True
        await world.until(lambda: all(m.node.membership.member(late) for m in deaf), 12, "what they had missed")

    run(main)


@pytest.mark.slow
def test_a_hundred_nodes_converge_and_stay() -> None:
    async def main(rng: random.Random) -> None:
        world = World(rng)
        for number in range(100):
            await world.start_node(f"n{number:03}", seeds=[f"n{n:03}" for n in range(min(number, 3))])
        await world.formed(seconds=120)
        await world.settled()
        await asyncio.sleep(300)
        assert world.agreed()

    run(main)


async def crowd(rng: random.Random, count: int, links: int, settings: dict[str, dict[str, object]]) -> World:
    """So many at once, all of whom know the same three of them; five may coordinate."""
    world = World(rng, settings=settings, links=links)
    for number in range(count):
        roles = ALL_ROLES if number < 5 else (Role.worker,)  # whoever votes keeps links to all voters
        await world.start_node(f"n{number:03}", roles=roles, seeds=[f"n{n:03}" for n in range(min(number, 3))])
    return world


def test_a_crowd_joins_through_seeds_that_have_links_for_a_few_of_them_at_a_time() -> None:
    async def main(rng: random.Random) -> None:
        world = await crowd(rng, 80, 20, SMALL)
        await world.formed(seconds=15)  # it took 24 when only links at rest gave way
        await world.settled(15)

    run(main)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_hundred_join_at_once_within_a_minute() -> None:
    async def main(rng: random.Random) -> None:
        world = await crowd(rng, 300, 110, {})
        await world.formed(seconds=60)
        await world.settled(60)

    run(main, until=600)
