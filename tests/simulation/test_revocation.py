"""A member is revoked, and every other node goes on from the same facts, whatever had reached whom."""

from __future__ import annotations

import random

import pytest

from hivenode.node import Node
from hivenode.spec.events import BlobHeld
from hivenode.spec.values import Role
from tests.simulation.faults import FOUNDER, founded, revoke
from tests.simulation.loop import run
from tests.simulation.stories import NAMES


@pytest.mark.parametrize("seed", range(3))
def test_the_coordinator_is_revoked_while_some_alone_know_its_last_words(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await founded(rng)
        victim = world.coordinator()
        confidant = next(name for name in NAMES if name not in (victim, FOUNDER))
        rest = [name for name in NAMES if name != victim]
        job = await world.submit(FOUNDER, steps=600, min_nodes=4)
        await world.until(lambda: world.step(job) > 50, 60, "the job runs")
        world.network.partition([victim, confidant])

        async def speak(node: Node) -> None:
            await node.replication.append(BlobHeld(digest="e" * 64, size=1))

        await world.ask(victim, speak)
        heads = lambda name: world.machines[name].node.feeds.heads  # noqa: E731
        author = world.machines[victim].id
        await world.until(lambda: heads(confidant)[author] > heads(FOUNDER)[author], 20, "a secret")
        await world.ask(FOUNDER, lambda node: revoke(node, victim))
        world.network.heal()

        await world.until(lambda: len({str(heads(name)) for name in rest}) == 1, 60, "equal feeds")
        held = lambda: [world.job(name, job) for name in rest]  # noqa: E731
        await world.until(lambda: all(one is not None and not one.open for one in held()), 120, "the end of the job")
        await world.until(lambda: len({str(heads(name)) for name in rest}) == 1, 60, "equal feeds")
        assert all(one is not None and one.ending == "finished" for one in held())
        assert len({world.facts(name) for name in rest}) == 1, "byte-equal views"
        await world.until(lambda: world.coordinator(rest) in rest, 30, "another coordinator")
        for name in rest:
            node = world.machines[name].node
            assert author not in node.ports.transport.links
            assert author not in node.membership.alive
            assert author not in node.workers()
            assert not any("e" * 64 in str(entry.body) for entry in node.feeds.entries())
        before = {name: heads(name)[author] for name in rest}
        world.kill(victim)
        await world.restart(victim)
        world.kill(confidant)
        await world.restart(confidant)
        await world.until(lambda: world.coordinator(rest) != "", 60, "all are back")
        assert {name: heads(name)[author] for name in rest} == before
        assert author not in world.machines[confidant].node.ports.transport.links

    run(main, seed=seed)


def test_a_revoked_node_whose_roles_are_granted_again_is_a_member_again() -> None:
    async def main(rng: random.Random) -> None:
        world = await founded(rng)
        await world.ask(FOUNDER, lambda node: revoke(node, "dan"))
        await world.until(lambda: world.coordinator([n for n in NAMES if n != "dan"]) != "", 30, "a coordinator")
        dan = world.machines["dan"]
        await world.until(lambda: dan.node.roles.revoked(dan.id) and not dan.node.ports.transport.links, 30, "told")

        async def grant(node: Node) -> None:
            await node.service.members.grant("dan", (Role.worker,))

        await world.ask(FOUNDER, grant)
        await world.formed()
        await world.settled()  # the others take it back in as soon as they may, perhaps before it hears why
        for machine in world.up:
            assert machine.node.roles.of(dan.id) == (Role.worker,)
            assert dan.id in machine.node.workers()

    run(main, seed=0)
