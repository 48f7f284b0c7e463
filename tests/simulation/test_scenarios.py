"""Whole nodes under faults. Whenever all is quiet, every node's leaders rise and no feed forks; at the end all views
are byte-equal, nothing acknowledged is lost, and each job was finished once, with every sample counted once."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from hivenode.net.simulated import Quality
from hivenode.node import Node
from hivenode.spec.values import Role
from tests.simulation.loop import run
from tests.simulation.nemesis import GOOD, Nemesis
from tests.simulation.world import ALL_ROLES, World

NAMES = ("ann", "bob", "cid", "dan", "eve")
SEEDS = range(4)
WORKER_ONLY = (Role.worker,)


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


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hive_forms_and_a_job_is_done(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        job = await world.submit("cid", min_nodes=3)
        await end(world, [job])
        held = world.job("ann", job)
        assert held is not None
        assert len(held.attempts) == 1
        assert world.registrations(job) == 1

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_worker_node_costs_no_new_attempt(seed: int) -> None:
    async def main(rng: random.Random) -> None:
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

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_coordinator_killed_while_training_is_replaced_and_the_attempt_adopted(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        job = await world.submit("ann", steps=400, min_nodes=4)
        await world.until(lambda: world.step(job) > 50, 60)
        first = world.coordinator()
        world.kill(first)
        await world.until(lambda: world.coordinator() not in ("", first), 30, "a new coordinator")
        await end(world, [job])
        held = world.job(world.up[0].name, job)
        assert held is not None
        assert [attempt.number for attempt in held.attempts.values()] == [1], "nothing starts anew that is alive"
        assert held.current is not None
        assert held.current.adopted
        await world.restart(first)
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.parametrize("after", [0.0, 0.01, 0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_a_coordinator_killed_mid_plan_leaves_a_job_that_is_done_once(seed: int, after: float) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        first = world.coordinator()
        submitter = next(name for name in NAMES if name != first)
        job = await world.submit(submitter, min_nodes=3)
        await asyncio.sleep(after)
        world.kill(first)
        await asyncio.sleep(rng.uniform(0, 20))
        await world.restart(first)
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_split_in_halves_both_go_on_and_healing_leaves_one_result(seed: int) -> None:
    async def main(rng: random.Random) -> None:
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

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_split_and_healed_while_training(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        job = await world.submit("ann", steps=1500, min_nodes=5)
        await world.until(lambda: world.step(job) > 20, 60)
        world.network.partition(rng.sample(NAMES, rng.randint(1, 4)))
        await asyncio.sleep(rng.uniform(0, 45))
        world.network.heal()
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("torn", [False, True])
def test_all_nodes_restart_at_once_and_nothing_known_is_forgotten(seed: int, torn: bool) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng, torn=torn)
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

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_paused_coordinator_comes_back_to_a_hive_that_has_another(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        job = await world.submit("ann", steps=600, min_nodes=4)
        await world.until(lambda: world.step(job) > 50, 60)
        first = world.coordinator()
        world.freeze(first)
        await world.until(lambda: world.coordinator(rest(world, first)) not in ("", first), 60, "a new coordinator")
        await asyncio.sleep(rng.uniform(0, 30))
        world.thaw(first)
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.parametrize("seed", range(12))
def test_the_late_orders_of_a_coordinator_paused_mid_plan_are_refused(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        first = world.coordinator()
        job = await world.submit(rest(world, first)[0], min_nodes=3)
        await asyncio.sleep(rng.uniform(0, 1.0))
        await world.pause(first, rng.uniform(5, 20))
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.parametrize("seed", range(12))
def test_orders_that_the_network_held_up_are_refused(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng, quality=Quality(delay_seconds=(0.02, 0.3)))
        first = world.coordinator()
        job = await world.submit(rest(world, first)[0], min_nodes=3, steps=800)
        await asyncio.sleep(rng.uniform(0, 1.5))
        world.network.isolate(first)
        await world.until(lambda: world.coordinator(rest(world, first)) not in ("", first), 60, "a new coordinator")
        await asyncio.sleep(rng.uniform(0, 10))
        world.network.heal()
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_short_pause_of_a_node_kills_nobody(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        await asyncio.sleep(60)
        victim = next(name for name in NAMES if name != world.coordinator())
        before = world.leader(victim)
        await world.pause(victim, 1.5)
        await asyncio.sleep(20)
        assert world.agreed()
        assert world.leader(victim) == before

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_coordinator_that_cannot_hear_or_not_be_heard_bounds_the_epochs(seed: int) -> None:
    async def main(rng: random.Random) -> None:
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
        assert after.counter <= before.counter + 4
        world.check_facts()

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_paused_node_refutes_and_is_back(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        await asyncio.sleep(30)
        victim = rng.choice(NAMES)
        await world.pause(victim, rng.uniform(8, 40))
        await world.formed(seconds=60)
        assert (await world.ask(victim, _health)) == ()

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_slow_node_gets_no_other_declared_dead(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = World(rng)
        names = [f"n{number}" for number in range(10)]
        for name in names:
            await world.start_node(name)
        await world.formed()
        well = {world.machines[name].id for name in names[1:]}
        world.loop.always(lambda: _nobody_lacks(world, well))
        until = world.loop.time() + 90
        while world.loop.time() < until:
            await world.pause(names[0], 2.0)
            await asyncio.sleep(0.05)

    run(main, seed=seed)


def _nobody_lacks(world: World, nodes: set[str]) -> None:
    for machine in world.up:
        assert nodes <= set(machine.node.membership.alive), f"{machine.name} has given up a node that is well"


async def _health(node: Node) -> tuple[str, ...]:
    return node.service.status().health


@pytest.mark.parametrize("seed", SEEDS)
def test_a_link_that_comes_and_goes_raises_few_epochs(seed: int) -> None:
    async def main(rng: random.Random) -> None:
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

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_key_on_two_machines_stops_one_of_them_and_forks_no_feed(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng, 3)
        await asyncio.sleep(30)
        twin = await world.start_node("twin", clone_of="ann")
        await world.until(lambda: twin.stopping or world.machines["ann"].stopping, 60, "one of the two stops")
        assert not (twin.stopping and world.machines["ann"].stopping)
        await world.stop("twin" if twin.stopping else "ann")
        await world.formed(seconds=60)
        job = await world.submit("bob", min_nodes=3)
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cancelled_job_stops_everywhere(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        job = await world.submit("ann", steps=5000, min_nodes=4)
        await asyncio.sleep(rng.choice([0.01, 0.5, 3.0]))
        await world.ask("bob", lambda node: node.service.cancel(job, "enough"))
        await world.until(lambda: world.ended(job) and not world.working(job), 30)
        await asyncio.sleep(30)
        assert world.working(job) == []
        held = world.job("ann", job)
        assert held is not None
        assert held.ending == "cancelled"
        world.check_facts()

    run(main, seed=seed)


def test_a_hive_of_sixteen_knows_soon_who_is_gone() -> None:
    async def main(rng: random.Random) -> None:
        world = World(rng)
        for number in range(16):
            await world.start_node(f"n{number}", seeds=["n0"] if number else [])
        await world.formed()
        world.kill("n7")
        await world.until(lambda: all("n7" not in world.sees(m.name) for m in world.up), 3, "a killed process is known")
        world.crash_host("n8")
        # SWIM's suspicion for 16 members, alone to the end: 6 * 4 * log10(16) probe intervals of 1 s, a probe before
        await world.until(lambda: world.agreed(), 1.2 * (6 * 4 * 1.21 + 2), "a silent host is known")
        job = await world.submit("n3", min_nodes=6)
        await end(world, [job])

    run(main, seed=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_most_nodes_are_lost_and_the_last_one_goes_on(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        job = await world.submit("ann", steps=600, min_nodes=5)
        await world.until(lambda: world.step(job) > 100, 60)
        for name in rng.sample(NAMES, 4):
            world.kill(name)
            await asyncio.sleep(rng.choice([0, 0.3, 3]))
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_a_quorum_a_minority_waits(seed: int) -> None:
    async def main(rng: random.Random) -> None:
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

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_nodes_join_while_the_hive_is_split(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng, 4)
        world.network.partition(["ann", "bob", "eve"])
        await world.formed(["ann", "bob"], 90)
        await world.start_node("eve", seeds=["bob"])
        await world.formed(["ann", "bob", "eve"], 60)
        job = await world.submit("eve", min_nodes=3)
        await asyncio.sleep(rng.uniform(0, 10))
        world.network.heal()
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_full_disk_on_one_node_harms_no_other(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        victim = rng.choice(rest(world, world.coordinator()))
        world.machines[victim].disk.full = True
        job = await world.submit(next(iter(rest(world, victim))), min_nodes=2)
        others = rest(world, victim)
        await world.until(lambda: all((j := world.job(n, job)) is not None and not j.open for n in others), 200)
        world.machines[victim].disk.full = False
        await end(world, [job])

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_home_restored_from_an_old_backup_forks_no_feed(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        backup = world.machines["cid"].disk.backup()
        jobs = [await world.submit("cid", min_nodes=2) for _ in range(2)]
        await world.until(lambda: all(world.ended(job) for job in jobs), 120)
        world.kill("cid")
        world.machines["cid"].disk.restore(backup)
        await asyncio.sleep(rng.uniform(0, 20))
        await world.restart("cid")
        jobs.append(await world.submit("cid", min_nodes=2))
        await end(world, jobs)

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_journal_is_made_whole_from_the_other_members(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        jobs = [await world.submit("cid", min_nodes=2)]
        await world.until(lambda: world.ended(jobs[0]), 120)
        world.kill("cid")
        cid = world.machines["cid"]
        cid.disk.damage(cid.id, 2)
        await world.restart("cid")
        jobs.append(await world.submit("cid", min_nodes=2))
        await end(world, jobs)

    run(main, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_clocks_that_are_hours_apart_change_nothing(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = World(rng)
        for name in NAMES:
            await world.start_node(name, skew_seconds=rng.choice([-3600.0, 0.0, 3600.0]))
        await world.formed()
        job = await world.submit("dan", min_nodes=3)
        await end(world, [job])

    run(main, seed=seed)


async def chaos(rng: random.Random, seconds: float = 120) -> str:
    """Two minutes of everything; returns the hash of the trace."""
    disk = rng.choice([(0.0005, 0.003), (0.005, 0.3)])
    world = World(rng, quality=GOOD, torn=True, sync_seconds=disk)
    for name in NAMES:
        await world.start_node(name, roles=WORKER_ONLY if name == "eve" else ALL_ROLES)
    await world.formed()
    await world.submit("ann", steps=300, min_nodes=2)
    nemesis = Nemesis(world, rng, every_seconds=rng.choice([1.0, 4.0, 10.0]))
    await nemesis.rage(seconds)
    await nemesis.repent()
    await end(world, world.submitted)
    return world.trace.digest


@pytest.mark.parametrize("seed", range(6))
def test_chaos_ends_in_order(seed: int) -> None:
    run(chaos, seed=seed)


@pytest.mark.parametrize("scenario", [chaos])
def test_the_same_seed_gives_the_same_trace_in_any_process(scenario: Callable[[random.Random], Awaitable[str]]) -> None:
    code = f"from tests.simulation.loop import run; from tests.simulation.test_scenarios import {scenario.__name__}; "
    code += f"print(run({scenario.__name__}, seed=3))"
    digests = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
            timeout=100,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert digests[0] == digests[1] != ""
