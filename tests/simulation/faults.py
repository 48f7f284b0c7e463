"""The faults that a hive must survive, by number; each a story that ends with everything that must hold.

While they are told the world watches (`watch`): leaders only rise, nobody obeys an outlived epoch, no feed forks,
nothing that was on disk is lost. `test_faults` tells each under many seeds.

 1 a worker node is killed                          11 all nodes restart together
 2 a node is frozen and resumes                     12 nodes join while the hive is split
 3 one slow node among 32                           13 an expelled node returns
 4 a split in halves                                14 most nodes are gone
 5 a link works one way only                        15 one key on two machines
 6 a link comes and goes                            16 clocks hours apart
 7 the coordinator is cut off while it plans        17 a linked member is revoked
 8 the coordinator is frozen while it plans         18 a member lies
 9 crashes around the writing of a vote             19 bulk on every link
10 torn, damaged and full disks                     20 many join at once, by a bad network
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable

from hivenode.hive.leadership import Leadership
from hivenode.net.messages import FeedDelta
from hivenode.net.simulated import Quality
from hivenode.node import Node
from hivenode.spec.events import BlobHeld
from hivenode.spec.values import Role
from hivenode.trust.authority import Authority
from tests.simulation.rogue import Rogue
from tests.simulation.stories import NAMES, end, hive, rest
from tests.simulation.world import World

Story = Callable[[random.Random], Awaitable[None]]
FAULTS: list[tuple[int, Story]] = []


def fault(number: int) -> Callable[[Story], Story]:
    def add(story: Story) -> Story:
        FAULTS.append((number, story))
        return story

    return add


@fault(1)
async def killed_worker(rng: random.Random) -> None:
    world = await hive(rng)
    job = await world.submit("ann", steps=400, min_nodes=4)
    await world.until(lambda: world.step(job) > 50, 60)
    victim = next(name for name in world.working(job) if name != world.coordinator())
    world.kill(victim)
    await world.until(lambda: victim not in world.sees(world.up[0].name), 5, "the victim is held dead")
    await end(world, [job])
    held = world.job(world.up[0].name, job)
    assert held is not None
    assert [attempt.number for attempt in held.attempts.values()] == [1]
    assert held.current is not None
    assert len(held.current.members) == len(held.current.plan.shares) - 1
    assert world.registrations(job) == 1


@fault(2)
async def paused_node(rng: random.Random) -> None:
    world = await hive(rng)
    await asyncio.sleep(30)
    victim = rng.choice(NAMES)
    membership = world.machines[victim].node.membership
    assert membership.health == 0
    await world.pause(victim, rng.uniform(8, 40))
    await world.until(lambda: membership.health > 0, 2, "it distrusts itself")
    await world.formed(seconds=60)
    await world.until(lambda: membership.health == 0, 60, "it trusts itself again")
    assert (await world.ask(victim, _health)) == ()


@fault(4)
async def split_in_halves(rng: random.Random) -> None:
    world = await hive(rng, 4)
    job = await world.submit("ann", steps=600, min_nodes=4)
    await world.until(lambda: world.step(job) > 50, 60)
    halves = (["ann", "bob"], ["cid", "dan"])
    world.network.partition(*halves)
    for half in halves:
        await world.formed(half, 90)
    others = [await world.submit(half[0], min_nodes=2) for half in halves]
    for half, other in zip(halves, others, strict=True):
        await world.until(
            lambda half=half, other=other: all(
                (held := world.job(name, other)) is not None and not held.open for name in half
            ),
            120,
            f"{half} does a job of its own",
        )
    world.network.heal()
    await end(world, [job, *others])


@fault(5)
async def one_way_link(rng: random.Random) -> None:
    world = await hive(rng)
    await asyncio.sleep(30)
    first = world.coordinator()
    before = world.leader(first)
    other = next(name for name in NAMES if name != first)
    pair = (first, other) if rng.random() < 0.5 else (other, first)
    world.network.one_way(*pair)
    await asyncio.sleep(300)
    world.network.heal()
    await world.formed(seconds=120)
    after = world.leader(first)
    assert before is not None
    assert after is not None
    assert after.counter <= before.counter + 2
    world.check_facts()


@fault(6)
async def flapping_link(rng: random.Random) -> None:
    world = await hive(rng)
    first = world.coordinator()
    before = world.leader(first)
    other = rest(world, first)[0]
    for _ in range(75):
        world.network.one_way(first, other)
        world.network.one_way(other, first)
        await asyncio.sleep(2)
        world.network.heal()
        await asyncio.sleep(2)
    await world.formed()
    after = world.leader(first)
    assert before is not None
    assert after is not None
    assert after.counter <= before.counter + 2


@fault(7)
async def coordinator_cut_off_mid_plan(rng: random.Random) -> None:
    world = await hive(rng, quality=Quality(delay_seconds=(0.02, 0.3)))
    first = world.coordinator()
    job = await world.submit(rest(world, first)[0], min_nodes=3, steps=800)
    await asyncio.sleep(rng.uniform(0, 1.5))
    world.network.isolate(first)
    await world.until(lambda: world.coordinator(rest(world, first)) not in ("", first), 60, "a new coordinator")
    await asyncio.sleep(rng.uniform(0, 10))
    world.network.heal()
    await end(world, [job])


@fault(8)
async def coordinator_paused_mid_plan(rng: random.Random) -> None:
    world = await hive(rng)
    first = world.coordinator()
    job = await world.submit(rest(world, first)[0], min_nodes=3)
    await asyncio.sleep(rng.uniform(0, 1.0))
    await world.pause(first, rng.uniform(5, 20))
    await end(world, [job])


@fault(10)
async def full_disk(rng: random.Random) -> None:
    world = await hive(rng)
    victim = rng.choice(rest(world, world.coordinator()))
    world.machines[victim].disk.full = True
    job = await world.submit(next(iter(rest(world, victim))), min_nodes=2)
    others = rest(world, victim)
    await world.until(lambda: all((j := world.job(n, job)) is not None and not j.open for n in others), 200)
    world.machines[victim].disk.full = False
    await end(world, [job])


@fault(12)
async def join_while_split(rng: random.Random) -> None:
    world = await hive(rng, 4)
    world.network.partition(["ann", "bob", "eve"])
    await world.formed(["ann", "bob"], 90)
    await world.start_node("eve", seeds=["bob"])
    await world.formed(["ann", "bob", "eve"], 60)
    job = await world.submit("eve", min_nodes=3)
    await asyncio.sleep(rng.uniform(0, 10))
    world.network.heal()
    await end(world, [job])


@fault(14)
async def minority_waits_for_a_quorum(rng: random.Random) -> None:
    world = await hive(rng, settings={"election": {"quorum": 3}})
    world.network.partition(["ann", "bob"])
    await world.formed(["cid", "dan", "eve"], 90)
    await world.until(lambda: world.sees("ann") == world.sees("bob") == ["ann", "bob"], 90)
    job = await world.submit("ann", min_nodes=1)
    await asyncio.sleep(60)
    assert world.leader("ann") is None
    assert world.leader("bob") is None
    assert world.working(job) == []
    world.network.heal()
    await end(world, [job])


@fault(14)
async def most_nodes_lost(rng: random.Random) -> None:
    world = await hive(rng)
    job = await world.submit("ann", steps=600, min_nodes=5)
    await world.until(lambda: world.step(job) > 100, 60)
    for name in rng.sample(NAMES, 4):
        world.kill(name)
        await asyncio.sleep(rng.choice([0, 0.3, 3]))
    await end(world, [job])


@fault(15)
async def one_key_on_two_machines(rng: random.Random) -> None:
    world = await hive(rng, 3)
    await asyncio.sleep(30)
    twin = await world.start_node("twin", clone_of="ann")
    await world.until(lambda: twin.stopping or world.machines["ann"].stopping, 60, "one of the two stops")
    assert not (twin.stopping and world.machines["ann"].stopping)
    await world.stop("twin" if twin.stopping else "ann")
    await world.formed(seconds=60)
    job = await world.submit("bob", min_nodes=3)
    await end(world, [job])


@fault(16)
async def clocks_apart(rng: random.Random) -> None:
    world = World(rng)
    for name in NAMES:
        await world.start_node(name, skew_seconds=rng.choice([-3600.0, 0.0, 3600.0]))
    await world.formed()
    job = await world.submit("dan", min_nodes=3)
    await end(world, [job])


@fault(3)
async def one_slow_node(rng: random.Random) -> None:
    """Its loop stands still for two seconds at a time."""
    world = World(rng)
    names = [f"n{number}" for number in range(32)]
    for name in names:
        await world.start_node(name, seeds=names[:1] if name != names[0] else [])
    await world.formed()
    well = {world.machines[name].id for name in names[1:]}
    world.loop.always(lambda: _nobody_lacks(world, well))
    until = world.loop.time() + 20
    while world.loop.time() < until:
        await world.pause(names[0], 2.0)
        await asyncio.sleep(0.05)


def _nobody_lacks(world: World, nodes: set[str]) -> None:
    for machine in world.up:
        assert nodes <= set(machine.node.membership.alive), f"{machine.name} has given up a node that is well"


async def _health(node: Node) -> tuple[str, ...]:
    return node.service.status().health


@fault(9)
async def crash_around_a_vote(rng: random.Random) -> None:
    """The power goes before a vote is on disk, or after and before anybody hears of it. With a quorum of more than half
    no counter ever has two leaders."""
    world = await hive(rng, settings={"election": {"quorum": 3}})
    for _ in range(4):
        victims = rng.sample([machine.name for machine in world.up], 2)
        for victim in victims:
            _crash_at_vote(world, victim, before=rng.random() < 0.5)
        coordinator = world.coordinator()
        if coordinator and coordinator not in victims:
            world.crash_host(coordinator)
        await asyncio.sleep(rng.uniform(3, 12))
        for machine in world.machines.values():
            machine.disk.__dict__.pop("write", None)
            if not machine.up:
                await world.restart(machine.name)
        await world.formed(seconds=120)
    assert all(len(nodes) == 1 for nodes in world.led.values()), world.led
    await end(world, [await world.submit("ann", min_nodes=2)])


def _crash_at_vote(world: World, name: str, *, before: bool) -> None:
    disk, write = world.machines[name].disk, world.machines[name].disk.write

    async def crash_with(batch: object) -> None:
        if getattr(batch, "cell", "") != Leadership.CELL:
            await write(batch)  # type: ignore[arg-type]
            return
        if not before:
            await write(batch)  # type: ignore[arg-type]
        world.loop.call_soon(_crash, world, name, context=world.outside)
        await asyncio.get_running_loop().create_future()

    disk.write = crash_with  # type: ignore[method-assign]


def _crash(world: World, name: str) -> None:
    if world.machines[name].up:
        world.crash_host(name)


@fault(10)
async def torn_disks(rng: random.Random) -> None:
    """Writes under way are cut in the middle; one node finds that bits have turned over."""
    world = await hive(rng, torn=True)
    jobs = [await world.submit("ann", min_nodes=3), await world.submit("bob", min_nodes=2)]
    for _ in range(6):
        await asyncio.sleep(rng.uniform(0.02, 1.5))
        victim = rng.choice([machine.name for machine in world.up])
        world.crash_host(victim)
        if rng.random() < 0.3:
            world.machines[victim].disk.damage(world.machines[rng.choice(NAMES)].id, rng.randint(2, 6))
        await asyncio.sleep(rng.uniform(0, 3))
        await world.restart(victim)
    await end(world, jobs)


@fault(11)
async def all_restart(rng: random.Random) -> None:
    world = await hive(rng, torn=rng.random() < 0.5)
    done = await world.submit("ann", min_nodes=2)
    await world.until(lambda: world.ended(done), 120)
    job = await world.submit("bob", steps=400, min_nodes=3)
    await world.until(lambda: world.step(job) > 150, 60)
    for name in NAMES:
        world.crash_host(name)
    await asyncio.sleep(rng.uniform(0, 20))
    for name in rng.sample(NAMES, len(NAMES)):
        await world.restart(name)
        await asyncio.sleep(rng.uniform(0, 1))
    await end(world, [done, job])
    held = world.job("ann", job)
    assert held is not None
    assert held.current is not None
    assert held.current.resume_step > 0, "it goes on from its checkpoint"


@fault(13)
async def expelled_node_returns(rng: random.Random) -> None:
    world = await founded(rng)
    victim = rng.choice(NAMES[1:])
    others = [name for name in NAMES if name != victim]
    await world.ask(FOUNDER, lambda node: revoke(node, victim))
    await world.until(lambda: world.coordinator(others) in others, 60, "a coordinator among the others")
    before = {name: world.leader(name) for name in others}
    author = world.machines[victim].id
    for _ in range(4):
        world.kill(victim)
        await asyncio.sleep(rng.uniform(0, 5))
        await world.restart(victim)
        await asyncio.sleep(rng.uniform(5, 20))
    for name in others:
        assert author not in world.machines[name].node.membership.alive
        assert author not in world.machines[name].node.ports.transport.links
        assert world.leader(name) == before[name], "it has disturbed nobody"
    job = await world.submit(others[0], min_nodes=3)
    await world.until(lambda: all(_finished(world, name, job) for name in others), 120, "the others do a job")
    await world.until(lambda: len({world.facts(name) for name in others}) == 1, 60, "equal views")


def _finished(world: World, name: str, job: str) -> bool:
    held = world.job(name, job)
    return held is not None and held.ending == "finished"


FOUNDER = "ann"


async def founded(rng: random.Random) -> World:
    """A hive whose founder keeps the authority's key, and is not its coordinator."""
    world = await hive(rng)
    if world.coordinator() == FOUNDER:
        await world.stop(FOUNDER)
        await world.formed()
        await world.restart(FOUNDER, ["bob"])
        await world.formed()
    papers = world.machines[FOUNDER].node.papers
    authority = Authority.from_seed(b"simulated world")
    papers._credentials = dataclasses.replace(papers._credentials, authority=authority)
    return world


async def revoke(node: Node, ref: str) -> None:
    await node.service.members.revoke(ref, "sold")


@fault(17)
async def revoked_while_linked(rng: random.Random) -> None:
    world = await founded(rng)
    victim = rng.choice(NAMES[1:])
    others = [name for name in NAMES if name != victim]
    job = await world.submit(FOUNDER, steps=800, min_nodes=5)
    await world.until(lambda: world.step(job) > 50, 60, "the job runs")
    await world.ask(FOUNDER, lambda node: revoke(node, victim))
    author = world.machines[victim].id
    await world.until(
        lambda: all(author not in world.machines[name].node.ports.transport.links for name in others),
        10,
        "all links to it are closed",
    )
    await world.until(lambda: all(_finished(world, name, job) for name in others), 200, "the others finish the job")
    await world.until(lambda: world.coordinator(others) in others, 30, "a coordinator among the others")
    await world.until(lambda: len({world.facts(name) for name in others}) == 1, 60, "equal views")


@fault(18)
async def lying_member(rng: random.Random) -> None:
    """A member with a valid certificate says whatever may do harm."""
    world = await hive(rng)
    await asyncio.sleep(30)
    well = {machine.id for machine in world.up}
    leader = world.leader("ann")
    assert leader is not None
    world.loop.always(lambda: _nobody_lacks(world, well))
    rogue = await Rogue.start(world, rng)
    job = await world.submit("bob", steps=400, min_nodes=4)
    await world.until(lambda: world.step(job) > 0, 60, "the job runs")
    await rogue.lie(40, each=2)
    leaders = {epoch.node if epoch else "" for epoch in map(world.leader, NAMES)}
    assert leaders == {leader.node}, "nobody else leads"
    rogue.stop()
    await world.until(lambda: all(_finished(world, name, job) for name in NAMES), 120, "the job is finished")
    for machine in world.up:
        roles = machine.node.roles
        assert set(roles.holders(Role.coordinator)) == well, "roles are as they were"
        assert machine.node.feeds.heads.get(rogue.id, 0) <= 1
    await world.until(lambda: len({world.facts(name) for name in NAMES}) == 1, 60, "equal views")


@fault(19)
async def bulk_on_every_link(rng: random.Random) -> None:
    """Blobs of everybody move to everybody while a job trains; nobody is suspected for it."""
    world = await hive(rng, quality=Quality(delay_seconds=(0.001, 0.02), bytes_per_second=2e5))
    await asyncio.sleep(30)
    world.loop.always(lambda: _nobody_lacks(world, {machine.id for machine in world.machines.values()}))
    job = await world.submit("ann", steps=300, min_nodes=4)

    async def spread(node: Node) -> None:
        ref = await node.ports.blobs.put_bytes(rng.randbytes(1 << 20))
        await node.replication.append(BlobHeld(digest=ref.digest, size=ref.size))
        others = [peer for peer in node.membership.alive if peer != node.me]
        await asyncio.gather(*(node.keeper.copy_out(ref, [peer], 1, announce=True) for peer in others))

    await asyncio.gather(*(world.ask(name, spread) for name in NAMES))
    await end(world, [job])


@fault(20)
async def join_storm(rng: random.Random) -> None:
    """Many nodes start at once with one address, and dial each other over a bad network; what anybody has stated is
    repeated to everybody all the time, in any order."""
    world = World(rng, quality=Quality(delay_seconds=(0.001, 0.3), loss=0.1))
    await world.start_node("n0")
    names = [f"n{number}" for number in range(1, 12)]
    await asyncio.gather(*(world.start_node(name, seeds=["n0"]) for name in names))
    await world.formed(seconds=60)
    await world.until(
        lambda: all(len(machine.node.ports.transport.links) == len(names) for machine in world.up),
        60,
        "one link for each pair",
    )
    job = await world.submit("n3", min_nodes=4)

    async def repeat(node: Node) -> None:
        events = [entry.event for entry in node.feeds.entries()]
        for peer in node.ports.transport.links:
            node.ports.transport.send(peer, FeedDelta(tuple(rng.choices(events, k=min(40, len(events))))))

    for _ in range(10):
        await asyncio.gather(*(world.ask(name, repeat) for name in names))
        await asyncio.sleep(rng.uniform(0, 1))
    await end(world, [job])
    assert all(machine.node.contacts.offence(other.id) is None for machine in world.up for other in world.up)
