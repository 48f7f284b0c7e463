"""Events from elsewhere are taken in many at a time, and one peer's bad ones cost the others nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import pytest

from hivenode.hive.clock import HybridClock
from hivenode.hive.feeds import Entry
from hivenode.hive.inbox import AUTHOR_BYTES, AUTHOR_BYTES_PER_SECOND, PEER_DELTAS, Inbox, cost
from hivenode.hive.replication import Replication
from hivenode.net.messages import Event, FeedDelta, FeedHeads, FeedSummary, Message
from hivenode.spec.events import BlobHeld, JobSubmitted
from hivenode.store.ports import Record
from hivenode.store.simulated import SimulatedDisk, SimulatedJournal
from hivenode.tasks import TaskGroup
from tests.hive.replicas import Replica, digest
from tests.simulation.loop import run


class Counting(SimulatedJournal):
    writes = 0

    async def append(self, records: Sequence[Record]) -> None:
        self.writes += 1
        await super().append(records)


class Taker:
    """The intake of one node, and what comes of it."""

    def __init__(self, rng: random.Random, fanout: int = 0) -> None:
        self.replica = Replica(1)
        self.journal = Counting(SimulatedDisk(rng, sync_seconds=(0.01, 0.02)))
        self.sent: list[tuple[str, Message]] = []
        self.offenders: list[str] = []
        self.news: list[Entry] = []
        self.failures: list[BaseException] = []
        self.tasks = TaskGroup(lambda name, error: self.failures.append(error))
        self.replication = Replication(
            identity=self.replica.identity,
            grant=self.replica.grant,
            feeds=self.replica.feeds,
            views=self.replica.views,
            journal=self.journal,
            clock=HybridClock(lambda: 1e9),
            links=lambda: ["x", "y", "z"],
            send=lambda peer, message: self.sent.append((peer, message)) is None,
            rng=rng,
            sync_seconds=1e6,
            wall=lambda: 1e9,
            on_change=self.news.extend,
            on_offender=lambda peer, reason: self.offenders.append(peer),
            on_trouble=lambda: None,
            fanout=lambda: fanout,
            expects_peers=True,
            tasks=self.tasks,
        )

    def held(self, author: Replica) -> int:
        return self.replica.feeds.heads.get(author.id, 0)


def said(author: Replica, events: int) -> list[Event]:
    """Its grant and so many facts."""
    return [e.event for e in author.say(1 << 30, *(BlobHeld(digest=digest(f"{n}"), size=1) for n in range(events)))]


def taking(work: Callable[[Taker], Awaitable[None]], fanout: int = 0) -> Taker:
    """Start, hand in, and let it be taken in."""

    async def main(rng: random.Random) -> Taker:
        taker = Taker(rng, fanout)
        await taker.replication.start()
        await work(taker)
        await asyncio.sleep(60)
        await taker.tasks.close()
        assert not taker.failures
        return taker

    return run(main)


def test_what_several_peers_sent_takes_one_write() -> None:
    authors = [Replica(number) for number in range(2, 12)]

    async def work(taker: Taker) -> None:
        for number, author in enumerate(authors):
            for event in said(author, 5):
                taker.replication.received(f"p{number}", FeedDelta((event,)))

    taker = taking(work)
    assert [taker.held(author) for author in authors] == [6] * 10
    assert len(taker.news) == 60 + 1, "and its own grant"
    assert taker.journal.writes <= 3


def test_the_same_over_several_paths_counts_once_and_the_order_of_peers_does_not_matter() -> None:
    author = Replica(2)
    events = said(author, 9)

    async def work(taker: Taker) -> None:
        for peer, some in (("x", events[5:]), ("y", events[2:7]), ("z", events[:5])):
            taker.replication.received(peer, FeedDelta(tuple(some)))

    taker = taking(work)
    assert taker.held(author) == 10
    assert [e.event.seq for e in taker.news if e.event.author == author.id] == list(range(1, 11))


def test_a_bad_event_is_laid_at_its_senders_door_and_the_others_are_taken_in() -> None:
    good, bad = Replica(2), Replica(3)
    forged = [msgspec.structs.replace(event, signature=bytes(64)) for event in said(bad, 3)]

    async def work(taker: Taker) -> None:
        taker.replication.received("x", FeedDelta(tuple(said(good, 3))))
        taker.replication.received("liar", FeedDelta(tuple(forged)))
        taker.replication.received("y", FeedDelta(tuple(said(Replica(4), 3))))

    taker = taking(work)
    assert taker.offenders == ["liar"]
    assert taker.held(good) == taker.held(Replica(4)) == 4
    assert taker.held(bad) == 0


def test_news_is_passed_on_once_and_not_to_whom_it_came_from() -> None:
    author = Replica(2)
    events = tuple(said(author, 3))

    async def work(taker: Taker) -> None:
        taker.replication.received("x", FeedDelta(events))
        taker.replication.received("y", FeedDelta(events))
        await asyncio.sleep(30)
        taker.replication.received("z", FeedDelta(events))

    taker = taking(work, fanout=3)
    passed = [
        peer
        for peer, message in taker.sent
        if isinstance(message, FeedDelta) and any(event.author == author.id for event in message.events)
    ]
    assert passed == ["z"]


def test_whoever_sends_faster_than_the_disk_takes_is_bounded_and_asked_again() -> None:
    inbox, event = Inbox(), said(Replica(2), 0)[0]
    assert [inbox.put("x", FeedDelta((event,))) for _ in range(PEER_DELTAS + 1)] == [True] * PEER_DELTAS + [False]
    assert inbox.put("y", FeedDelta((event,))), "another peer has room of its own"
    assert [peer for peer, _ in inbox.take(4)] == ["x", "y", "x", "x"], "in turn"
    assert inbox.put("x", FeedDelta((event,)))


@pytest.mark.parametrize(("size", "at_once"), [(0, 500), (1_000, 100), (60_000, 1)])
def test_who_states_without_end_is_taken_in_slowly_and_named_whatever_the_size(size: int, at_once: int) -> None:
    """As fast as it is stored, twice as much as it may at once; of tiny events it counts what each takes beside its
    body."""
    author, honest = Replica(2), Replica(3)
    body = JobSubmitted("j-flood", "x", b"x" * size)
    events = [entry.event for entry in author.say(1 << 30, body)]
    each = cost(events[-1])
    events += [entry.event for entry in author.say(1 << 30, *[body] * (2 * AUTHOR_BYTES // each))]

    async def flood(taker: Taker) -> None:
        began = asyncio.get_running_loop().time()
        for begin in range(0, len(events), at_once):
            taker.replication.received("x", FeedDelta(events=tuple(events[begin : begin + at_once])))
            await asyncio.sleep(0.05)
        taker.replication.received("x", FeedDelta(events=tuple(said(honest, 20))))
        await asyncio.sleep(0.05)
        may = AUTHOR_BYTES + AUTHOR_BYTES_PER_SECOND * (asyncio.get_running_loop().time() - began)
        assert AUTHOR_BYTES - each < taker.held(author) * each < may + each
        assert taker.replication.excessive == (author.id,)
        assert taker.held(honest) == 21, "who states little does not wait for it"

    taking(flood)


def test_where_events_are_missing_they_are_asked_for() -> None:
    author = Replica(2)
    events = said(author, 5)

    async def work(taker: Taker) -> None:
        taker.replication.received("x", FeedDelta((events[0], *events[3:])))

    taker = taking(work)
    assert taker.held(author) == 1
    asked = [peer for peer, m in taker.sent if isinstance(m, FeedHeads | FeedSummary)]
    assert asked == ["x"]
