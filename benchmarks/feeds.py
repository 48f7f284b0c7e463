"""What a year of jobs costs a node, with old events sealed and without.

    python benchmarks/feeds.py [--days 365] [--jobs 100] [--json]

Three members; every job leaves twelve events, as a small data-parallel job does. Both journals are real ones, on
disk. A start is measured in a process of its own: opening the journal, checking every event, folding. A node that was a
month away is one that gets the latest seal and all events beyond it in pieces of 64 KiB, and checks them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from hivenode.catalog.models import Catalogue
from hivenode.hive.feeds import Entry
from hivenode.hive.snapshots import finish, judge, open_file, read
from hivenode.spec.events import (
    AttemptEnded,
    BlobHeld,
    Body,
    CheckpointSaved,
    ExperienceRecorded,
    JobPlanned,
    JobSubmitted,
    MembersChanged,
    ModelRegistered,
)
from hivenode.spec.values import BlobRef, Candidate, Epoch, Plan, Share, Strategy
from hivenode.store.journal import SqliteJournal
from hivenode.store.ports import Record
from tests.hive.replicas import AUTHORITY, Replica, digest

DAY = 86_400_000 << 16
SEAL_EVENTS, AFTER, KEEP = 10_000, 7 * DAY, 90 * DAY
SPEC = json.dumps(
    {"name": "digits", "model": {"source": "zoo:cnn"}, "training": {"epochs": 10}, "x": "." * 300}
).encode()


def job_events(members: list[Replica], number: int, rng: random.Random) -> Iterator[tuple[Replica, list[Body]]]:
    """Who says what about one job, in order."""
    submitter, leader, other = rng.choice(members), members[0], members[1]
    job, epoch = f"j-{number:08d}", Epoch(1 + number // 5000, leader.id)
    shares = tuple(Share(m.id, rank, 1 / 3, 0.01, 1 << 28) for rank, m in enumerate(members))
    candidates = tuple(Candidate(s, True, "predicted from measured speed", 3, 12.5, 0.1, 7, -1.5) for s in Strategy)
    plan = Plan(Strategy.data_parallel, shares, 12.5, "the fastest", False, (0, 0, 1, 0), candidates)
    blob = lambda what: BlobRef(digest(f"{job} {what}"), 1 << 20)  # noqa: E731
    yield submitter, [JobSubmitted(job, f"digits-{number % 50}", SPEC)]
    yield leader, [JobPlanned(job, 1, epoch, plan, "first plan")]
    for step in (20, 40, 60):
        yield other, [CheckpointSaved(job, 1, step, blob(step), (other.id, leader.id))]
    yield other, [MembersChanged(job, 1, epoch, 70, (leader.id, other.id), (members[2].id,))]
    model = blob("model")
    for member in members:
        yield member, [BlobHeld(model.digest, model.size)]
    metrics = {"accuracy": 0.97, "loss": 0.1}
    yield (
        leader,
        [
            ModelRegistered(f"digits-{number % 50}", job, 1, epoch, model, "zoo:cnn", metrics),
            AttemptEnded(job, 1, epoch, epoch, "finished", 100, 13.0, metrics),
            ExperienceRecorded(job, 1, (0, 0, number % 4, 0), 1, 12.5, 10.0 + rng.random() * 5, 1.0),
        ],
    )


class Year:
    """Writes both journals, day by day."""

    def __init__(self, root: Path) -> None:
        self.members = [Replica(number) for number in (1, 2, 3)]
        self.subject = self.members[0]
        self.plain = SqliteJournal.open(root / "plain.db")
        self.sealed = SqliteJournal.open(root / "sealed.db")
        self.rng = random.Random(1)
        self.events = self.seals = self.jobs = self.most_journal = 0
        self.seal_seconds: list[float] = []

    async def say(self, member: Replica, now: int, *bodies: Body) -> list[Entry]:
        """By a member; the others take it in as checked already."""
        fresh = member.say(now, *bodies)
        for other in self.members:
            if other is not member:
                other._keep(fresh)
        records = [Record(e.event.author, e.event.seq, e.encoded) for e in fresh]
        await asyncio.gather(self.plain.append(records), self.sealed.append(records))
        self.events += len(fresh)
        return fresh

    async def day(self, number: int, jobs: int) -> None:
        for which in range(jobs):
            now = number * DAY + which * (DAY // jobs)
            for member, bodies in job_events(self.members, self.jobs, self.rng):
                now += 1000 << 16
                await self.say(member, now, *bodies)
            self.jobs += 1
        horizon = number * DAY - AFTER
        if horizon > 0 and self.subject.feeds.older(horizon) > SEAL_EVENTS:
            await self.seal((number + 1) * DAY - (1 << 16), horizon)

    async def seal(self, now: int, horizon: int) -> None:
        began = time.perf_counter()
        body = self.subject.propose(now, self.seals + 1, horizon, max(0, horizon - KEEP))
        self.seal_seconds.append(time.perf_counter() - began)
        mine = [e for e in self.subject.feeds.entries() if e.body is body]
        for other in self.members[1:]:
            other._keep(mine)
            assert other.confirm(now + 1)
        for other in self.members[1:]:
            other.send(self.subject)
        assert self.subject.close(now + 2)
        for other in self.members:
            while any(one.send(other) for one in self.members):
                pass
        floor = {author: cut.seq for author, cut in self.subject.feeds.cuts(horizon).items()}
        records = [Record(e.event.author, e.event.seq, e.encoded) for e in self.subject.feeds.entries()]
        for journal in (self.plain, self.sealed):
            await journal.append(records)
        self.most_journal = max(self.most_journal, self.sealed.size)
        assert all(member.settle() for member in self.members)
        await self.sealed.seal(self.subject.file, floor)
        self.seals += 1


def start(path: Path) -> dict[str, float]:
    """What a daemon does with its journal before it serves anything."""
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    journal = SqliteJournal.open(path)
    node = Replica(1)
    if (file := journal.snapshot()) is not None:
        snapshot = finish(read(open_file(file)[1], node.views.folds, AUTHORITY.public_key))
        node.begin(snapshot, file)
        del file, snapshot
        node.file = b""
    node.feeds.load(journal.records())
    checked = time.perf_counter()
    entries = list(node.feeds.entries())
    node.views.add(entries)
    done = time.perf_counter()
    models = len(Catalogue(node.ledger.models).versions)
    return {
        "seconds": done - began,
        "fold_per_second": len(entries) / (done - checked),
        "events": len(entries),
        "models": models,
        "megabytes": (psutil.Process().memory_info().rss - before) / 1e6,
    }


def catch_up(source: Replica) -> dict[str, float]:
    """A node without anything new takes the latest seal and the events beyond it."""
    node = Replica(3)
    began = time.perf_counter()
    certificate, data = open_file(source.file)
    snapshot = finish(read(data, node.views.folds, AUTHORITY.public_key))
    finish(judge(certificate, snapshot, AUTHORITY.hive_id))
    node.begin(snapshot, source.file)
    taken = time.perf_counter()
    size, more = 0, True
    while more:
        events, more = source.feeds.missing(node.feeds.heads, 64 * 1024)
        size += sum(len(e.body) + 180 for e in events)
        node.take(list(events))
    done = time.perf_counter()
    assert node.dump() == source.dump()
    return {
        "seal_seconds": taken - began,
        "seal_bytes": len(source.file),
        "event_seconds": done - taken,
        "event_bytes": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(start(options.open)))
        return
    with tempfile.TemporaryDirectory() as root:
        figures = asyncio.run(measure(Path(root), options.days, options.jobs))
        figures |= measure_starts(Path(root))
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name}: {json.dumps(value)}")


async def measure(root: Path, days: int, jobs: int) -> dict[str, object]:
    year = Year(root)
    for number in range(1, days + 1):
        await year.day(number, jobs)
    while year.sealed._db.execute("PRAGMA freelist_count").fetchone()[0]:
        await year.sealed.set_cell("idle", b"")
    sizes = {"plain_bytes": year.plain.size, "sealed_bytes": year.sealed.size, "most_sealed_bytes": year.most_journal}
    await year.plain.close()
    await year.sealed.close()
    figures: dict[str, object] = {"events": year.events, "seals": year.seals, **sizes}
    figures["longest_snapshot_seconds"] = max(year.seal_seconds, default=0.0)
    figures["catch_up"] = catch_up(year.subject)
    return figures


def measure_starts(root: Path) -> dict[str, object]:
    figures: dict[str, object] = {}
    for kind in ("plain", "sealed"):
        command = [sys.executable, __file__, "--open", str(root / f"{kind}.db")]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        figures[f"start_{kind}"] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    main()
