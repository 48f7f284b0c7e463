"""A year of jobs, made short: what a node keeps of them on its disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hivenode.catalog.models import Catalogue
from hivenode.hive.snapshots import finish, open_file, read
from hivenode.spec.events import (
    AttemptEnded,
    BlobHeld,
    Body,
    CheckpointSaved,
    ExperienceRecorded,
    JobPlanned,
    JobSubmitted,
    ModelRegistered,
)
from hivenode.spec.values import BlobRef, Epoch, Plan, Share, Strategy
from hivenode.store.journal import SqliteJournal
from hivenode.store.ports import Record
from tests.hive.replicas import AUTHORITY, Replica, digest
from tests.hive.test_seals import seal, spread

JOBS = 100
"""In one of twelve months."""
AFTER, KEEP = 20, 100
"""Of the last 20 jobs the events are kept, of the last 100 (and those) what became of them."""
TICK = 1000
"""Of the clock, from one job to the next."""


def story(job: str, leader: Replica, worker: Replica) -> list[tuple[Replica, list[Body]]]:
    """All that is said of a job that ends well."""
    epoch, model = Epoch(1, leader.id), BlobRef(digest(job), 1 << 20)
    plan = Plan(Strategy.single_node, (Share(worker.id, 0, 1.0, 0.1, 1),), 1.0, "the fastest", False, (0, 0, 1, 0), ())
    saved: list[Body] = [CheckpointSaved(job, 1, step, model, (worker.id, leader.id)) for step in range(10, 60, 10)]
    metrics = {"accuracy": 0.97}
    return [
        (leader, [JobSubmitted(job, "digits", b'{"name": "digits"}'), JobPlanned(job, 1, epoch, plan, "first plan")]),
        (worker, [*saved, BlobHeld(model.digest, model.size)]),
        (worker, [ModelRegistered("digits", job, 1, epoch, model, "zoo:cnn", metrics)]),
        (worker, [AttemptEnded(job, 1, epoch, epoch, "finished", 60, 13.0, metrics)]),
        (leader, [ExperienceRecorded(job, 1, (0, 0, 1, 0), 1, 12.5, 13.0, 1.0)]),
    ]


async def in_turn(journal: SqliteJournal, ask: str) -> int:
    """Asked after all that was to be done before."""
    answer = journal._writer.submit(lambda: journal._db.execute(ask).fetchone()[0])
    return int(await asyncio.wrap_future(answer))


async def test_a_year_of_jobs_leaves_its_models_and_little_more(tmp_path: Path) -> None:
    leader, worker = replicas = (Replica(1), Replica(2))
    sealed, whole = SqliteJournal.open(tmp_path / "sealed.db"), SqliteJournal.open(tmp_path / "whole.db")
    written: dict[str, int] = {}

    async def write() -> None:
        """What has been said since."""
        fresh = [entry for entry in leader.feeds.entries() if entry.event.seq > written.get(entry.event.author, 0)]
        records = [Record(entry.event.author, entry.event.seq, entry.encoded) for entry in fresh]
        written.update((record.author, record.number) for record in records)
        for journal in (sealed, whole):
            await journal.append(records)

    sizes, held = [], []
    for month in range(12):
        for number in range(month * JOBS, (month + 1) * JOBS):
            for later, (member, bodies) in enumerate(story(f"j-{number:08}", leader, worker)):
                member.say((number + 1) * TICK + 10 * later, *bodies)
        spread(*replicas)
        await write()
        now = ((month + 1) * JOBS + 1) * TICK
        seal(*replicas, now=now, horizon=now - AFTER * TICK, forget=max(0, now - KEEP * TICK))
        await write()
        await sealed.seal(leader.file, {author: cut.seq for author, cut in leader.feeds.floors.items()})
        while await in_turn(sealed, "PRAGMA freelist_count"):  # goes back to the file system bit by bit
            pass
        sizes.append(sealed.size)
        held.append(leader.feeds.size)

    assert max(held) <= (AFTER + 1) * 11 + 5, "events, and those of the latest seal"
    assert len(leader.ledger.jobs) <= KEEP + 1
    assert len(Catalogue(leader.ledger.models).versions) == 12 * JOBS
    a_month = whole.size / 12
    assert max(sizes) < 3 * a_month, (sizes, whole.size)
    assert (sizes[11] - sizes[5]) / 6 < a_month / 5, "what a month adds are its models"

    node = Replica(3)
    snapshot = finish(read(open_file(sealed.snapshot() or b"")[1], node.views.folds, AUTHORITY.public_key))
    node.begin(snapshot, b"")
    node.feeds.load(sealed.records())
    node.views.add(list(node.feeds.entries()))
    assert node.dump() == leader.dump(), "and nothing that follows from them is lost"
    for journal in (sealed, whole):
        await journal.close()
