"""Whole nodes seal old events: under crashes at every point, and for a node that was away a month."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest

from hivenode.hive import replication
from hivenode.hive.sealer import DAY
from hivenode.hive.snapshots import open_file, sealed_file
from hivenode.net.messages import FeedDelta, FeedHeads, FeedSummary, Message, SealOffered
from hivenode.node import Node
from hivenode.spec.events import BlobHeld, JobCancelled, JobSubmitted, SealClosed, SealProposed
from hivenode.store.simulated import _Batch
from tests.hive.replicas import digest
from tests.simulation.loop import run
from tests.simulation.world import World

Write = Callable[[_Batch], Awaitable[None]]
NAMES = ("ann", "bob", "cid", "dan")
SETTINGS: dict[str, dict[str, object]] = {
    "feeds": {"seal_events": 60, "seal_after_days": 7, "patience_days": 30, "keep_jobs_days": 20}
}


async def hive(rng: random.Random, names: tuple[str, ...] = NAMES) -> World:
    world = World(rng, settings=SETTINGS)
    for name in names:
        await world.start_node(name)
    await world.formed()
    return world


def pass_days(world: World, days: float) -> None:
    """All wall clocks move on; nothing else happens meanwhile."""
    for machine in world.machines.values():
        machine.skew_seconds += days * DAY


async def work(world: World, name: str, label: str, jobs: int = 8) -> None:
    """A node submits and cancels small jobs and says what it keeps, as a day of use leaves it in the feeds."""
    bodies = []
    for number in range(jobs):
        job = f"j-{label}-{number}"
        bodies += [
            JobSubmitted(job=job, name="small", spec=b"{}"),
            BlobHeld(digest=digest(f"{label} {number}"), size=1),
            JobCancelled(job=job, reason="enough"),
        ]

    async def state(node: Node) -> None:
        await node.replication.append(*bodies)

    await world.ask(name, state)


def sealed(world: World, name: str) -> int:
    return world.machines[name].node.replication.seal_number


async def until_sealed(world: World, number: int, seconds: float = 400) -> None:
    await world.until(
        lambda: all(sealed(world, machine.name) >= number for machine in world.up), seconds, f"seal {number}"
    )


@pytest.mark.parametrize("seed", range(3))
def test_old_events_are_sealed_and_the_facts_stay(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        for day in range(10):
            await work(world, rng.choice(NAMES), f"d{day}")
            pass_days(world, 1)
        await world.settled()
        before = {name: len(list(world.machines[name].node.feeds.entries())) for name in NAMES}
        jobs = world.machines["ann"].node.ledger.jobs
        await until_sealed(world, 1)
        await world.settled()
        world.check_facts()
        for name in NAMES:
            node = world.machines[name].node
            assert len(list(node.feeds.entries())) < before[name] - 60
            assert node.ledger.jobs == jobs
        for name in NAMES:
            world.kill(name)
            await world.restart(name)
        await world.formed()
        await world.settled()
        world.check_facts()
        assert world.machines["bob"].node.ledger.jobs == jobs
        assert all(sealed(world, name) == 1 for name in NAMES)

    run(main, seed=seed)


POINTS = {
    "cuts": b"seal.cuts",
    "proposed": b"seal.proposed",
    "confirmed": b"seal.confirmed",
    "closed": b"seal.closed",
    "sealed": b"snapshot",
    "file": b"seal.file",
}


def watch_writes(world: World, point: bytes) -> list[str]:
    """Names of the machines that begin to write such a thing, as they do."""
    seen: list[str] = []
    for machine in world.machines.values():
        write = machine.disk.write

        async def noting(batch: _Batch, name: str = machine.name, write: Write = write) -> None:
            told = batch.cell.encode() if batch.cell else b"snapshot" if batch.snapshot else b"".join(
                record.data for record in batch.records
            )  # fmt: skip
            if point in told:
                seen.append(name)
            await write(batch)

        machine.disk.write = noting  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_of_a_seal_loses_nothing(point: str, seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng, NAMES[:3])
        for day in range(9):
            await work(world, rng.choice(NAMES[:3]), f"d{day}")
            pass_days(world, 1)
        await world.settled()
        jobs = world.machines["ann"].node.ledger.jobs
        seen = watch_writes(world, POINTS[point])
        await world.until(lambda: seen, 400, point)
        victim = seen[rng.randrange(len(seen))]
        world.crash_host(victim)
        await asyncio.sleep(rng.uniform(0, 30))
        await world.restart(victim)
        await world.formed()
        await until_sealed(world, 1, 900)
        await world.settled()
        world.check_facts()
        assert len({dump(world, name) for name in NAMES[:3]}) == 1
        for name in NAMES[:3]:
            held = world.machines[name].node.ledger.jobs
            assert {job: held[job].ending for job in jobs} == {job: jobs[job].ending for job in jobs}

    run(main, seed=seed)


def test_a_closing_that_comes_before_a_confirmation_is_not_held_against_the_seal() -> None:
    """They stand in the feeds of two nodes, which may reach a third in any order."""

    async def main(rng: random.Random) -> None:
        world = await hive(rng, NAMES[:3])
        for day in range(9):
            await work(world, "ann", f"d{day}")
            pass_days(world, 1)
        await world.settled()
        confirmer, late = (name for name in NAMES[:3] if name != world.coordinator())
        node, held = world.machines[late].node, True
        received = node.replication.received

        def without(peer: str, message: FeedHeads | FeedSummary | FeedDelta) -> None:
            if held and isinstance(message, FeedDelta):
                kept = tuple(event for event in message.events if event.author != world.machines[confirmer].id)
                message = FeedDelta(events=kept, more=message.more)
            received(peer, message)

        node.replication.received = without  # type: ignore[method-assign]
        await world.until(lambda: any(isinstance(e.body, SealClosed) for e in node.feeds.entries()), 400, "closed")
        await until_sealed(world, 1)  # it is offered the whole seal meanwhile
        held = False
        await world.settled()
        world.check_facts()

    run(main, seed=1)


def dump(world: World, name: str) -> bytes:
    return b"|".join(piece for fold in world.machines[name].node.views.folds for piece in fold.dump(0))


def equal(world: World, names: Sequence[str]) -> bool:
    """The same feeds up to the same seal, and byte-equal views."""
    nodes = [world.machines[name].node for name in names]
    heads = {str((node.feeds.heads, node.replication.seal_number)) for node in nodes}
    return len(heads) == 1 and len({dump(world, name) for name in names}) == 1


@pytest.mark.parametrize("seed", range(2))
def test_a_node_a_month_away_catches_up_and_what_it_said_meanwhile_is_kept(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        await work(world, "dan", "before")
        await world.settled()
        world.network.partition(["dan"])
        await work(world, "dan", "alone")
        for day in range(40):
            await work(world, rng.choice(NAMES[:3]), f"d{day}", jobs=30)
            pass_days(world, 1)
        await work(world, "dan", "lately")
        await world.until(lambda: all(sealed(world, name) >= 1 for name in NAMES[:3]), 600, "sealed without it")
        assert sealed(world, "dan") == 0
        alone = world.machines["dan"].node.feeds.heads[world.machines["dan"].id]
        if seed % 2:
            world.kill("dan")
            await world.restart("dan")
        world.network.heal()
        await world.until(lambda: equal(world, NAMES), 600, "all equal")
        world.check_facts()
        dan = world.machines["dan"]
        assert dan.node.feeds.heads[dan.id] >= alone
        for name in NAMES:
            jobs = world.machines[name].node.ledger.jobs
            assert all(jobs[f"j-alone-{n}"].ending == "cancelled" for n in range(8))
        held = world.machines["ann"].node.feeds
        assert held.floors[dan.id].seq < alone, "what it said alone was in no seal"
        number = sealed(world, "ann")
        for day in range(9):
            await work(world, rng.choice(NAMES), f"later{day}")
            pass_days(world, 1)
        await until_sealed(world, number + 1, 900)
        await world.until(lambda: equal(world, NAMES), 600, "all equal")
        world.check_facts()
        world.kill("dan")
        await world.restart("dan")
        await world.formed()
        assert sealed(world, "dan") >= number + 1

    run(main, seed=seed)


def test_a_node_back_from_an_old_backup_of_itself_does_not_fork() -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        await work(world, "dan", "before")
        await world.settled()
        backup = world.machines["dan"].disk.backup()
        for day in range(10):
            await work(world, rng.choice(NAMES), f"d{day}")
            pass_days(world, 1)
        await work(world, "dan", "after")
        await until_sealed(world, 1)
        await world.settled()
        world.crash_host("dan")
        world.machines["dan"].disk.restore(backup)
        await world.restart("dan")
        await work(world, "dan", "again")
        await world.until(lambda: equal(world, NAMES), 600, "all equal")
        world.check_facts()
        for machine in world.up:
            assert not machine.node.feeds.forked
            assert "j-again-0" in machine.node.ledger.jobs

    run(main)


@pytest.mark.parametrize("seed", range(2))
def test_nobody_follows_a_coordinator_that_proposes_a_wrong_snapshot(seed: int) -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        liar = world.coordinator()
        others = [name for name in NAMES if name != liar]
        for day in range(10):
            await work(world, rng.choice(NAMES), f"d{day}")
        node = world.machines[liar].node
        maker = node.sealer._maker
        make = maker.of

        async def lie(body: SealProposed) -> object:
            made = await make(body)
            return made and dataclasses.replace(
                made, snapshot=dataclasses.replace(made.snapshot, digest=digest("a lie"))
            )

        make_from = maker.take

        async def lie_from(*args: Any) -> object:
            made = await make_from(*args)
            maker.drop()
            return made and dataclasses.replace(
                made, snapshot=dataclasses.replace(made.snapshot, digest=digest("a lie"))
            )

        maker.of = lie  # type: ignore[method-assign, assignment]
        maker.take = lie_from  # type: ignore[method-assign, assignment]
        pass_days(world, 10)
        alarmed = lambda name: "seal" in world.machines[name].node.sealer.alarms  # noqa: E731
        await world.until(lambda: all(alarmed(name) for name in others), 400, "all others see it")
        await asyncio.sleep(300)
        assert [sealed(world, name) for name in NAMES] == [0] * 4
        assert all(any("same version" in said for said in world.machines[n].node.health()) for n in others)
        world.kill(liar)
        await world.restart(liar)
        await until_sealed(world, 1, 900)
        await world.until(lambda: equal(world, NAMES), 600, "all equal")
        world.check_facts()

    run(main, seed=seed)


def test_a_forged_snapshot_from_a_member_is_refused() -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        await world.stop("dan")
        for day in range(10):
            await work(world, rng.choice(NAMES[:3]), f"d{day}")
        pass_days(world, 40)
        await until_sealed(world, 1, 900)
        rogue = world.machines["ann"]
        await world.until(lambda: rogue.node.sealer._file, 60, "it can be fetched")
        ref = rogue.node.sealer._file
        assert ref is not None
        genuine = rogue.disk.blobs[ref.digest]
        certificate, data = open_file(genuine)
        forgeries = [
            genuine.replace(digest("d0 0").encode(), digest("another").encode()),
            sealed_file(msgspec.structs.replace(certificate, confirmations=()), data),
            genuine[:-1],
            b"",
        ]
        await world.stop("bob")
        await world.stop("cid")
        assert digest("d0 0").encode() in genuine
        rogue.node.sealer._file = None
        await world.restart("dan", ["ann"])
        for forged in forgeries:
            node, said = rogue.node, digest(str(len(forged)))

            async def offer(node: Node = node, forged: bytes = forged, said: str = said) -> None:
                blob = await node.ports.blobs.put_bytes(forged)
                node.ports.transport.send(world.machines["dan"].id, SealOffered(number=1, digest=said, blob=blob))

            victim = world.machines["dan"].node
            for _ in range(20):  # it hangs up on whoever sends such a thing, so the next one may get lost
                await world.ask("ann", offer)
                await asyncio.sleep(3)
            assert "refused" in victim.sealer.alarms
            assert sealed(world, "dan") == 0
            assert not victim.holders.of(digest("another"))

    run(main)


def test_two_sides_that_sealed_different_facts_say_so_and_merge_nothing() -> None:
    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        await work(world, "ann", "together")
        await world.settled()
        sides = (["ann", "bob"], ["cid", "dan"])
        world.network.partition(*sides)
        for side in sides:
            await world.formed(side, 120)
        for day in range(45):
            for side in sides:
                await work(world, rng.choice(side), f"{side[0]}{day}", jobs=2)
            pass_days(world, 1)
        await until_sealed(world, 1, 900)
        digests = {machine.node.replication.sealed.digest for machine in world.up}  # type: ignore[union-attr]
        assert len(digests) == 2
        before = {name: sealed(world, name) for name in NAMES}
        world.network.heal()
        alarmed = lambda machine: "conflict" in machine.node.sealer.alarms  # noqa: E731
        await world.until(lambda: all(alarmed(machine) for machine in world.up), 300, "everyone sees it")
        await asyncio.sleep(300)
        assert {name: sealed(world, name) for name in NAMES} == before
        assert all(any("joins anew" in said for said in m.node.health()) for m in world.up)

    run(main)


def test_where_there_are_many_authors_vectors_are_only_sent_when_their_hashes_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replication, "MANY_AUTHORS", 2)

    async def main(rng: random.Random) -> None:
        world = await hive(rng)
        await world.settled()
        await asyncio.sleep(60)
        sent: list[str] = []
        for machine in world.up:
            send = machine.node.replication._send

            def noting(peer: str, message: Message, send: Callable[[str, Message], bool] = send) -> bool:
                sent.append(type(message).__name__)
                return send(peer, message)

            machine.node.replication._send = noting
        await asyncio.sleep(120)
        assert set(sent) == {"FeedSummary"}
        world.network.partition(["dan"])
        await work(world, "ann", "news")
        world.network.heal()
        await world.until(lambda: equal(world, NAMES), 120, "all equal")

    run(main)
