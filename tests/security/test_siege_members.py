"""A member of a real hive that lies: in well-formed messages, about others, about itself, about epochs and blobs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from itertools import chain, islice, repeat

import msgspec
import pytest
import pytest_asyncio

from hivenode.hive import statements
from hivenode.hive.feeds import Feeds
from hivenode.hive.inbox import AUTHOR_BYTES, cost
from hivenode.net.messages import (
    Adopt,
    Alive,
    Assign,
    Call,
    Dead,
    Endpoint,
    Event,
    Failure,
    FeedDelta,
    FeedHeads,
    Gossip,
    Have,
    Heartbeat,
    HeartbeatAck,
    Hold,
    Left,
    LogsRequest,
    Ping,
    ProfileRequest,
    Progress,
    PushPull,
    Reply,
    Request,
    Start,
    Statement,
    Stop,
    Suspect,
    VoteReply,
    VoteRequest,
)
from hivenode.spec.events import BlobHeld, JobCancelled, JobSubmitted
from hivenode.spec.values import BlobRef, Epoch, Plan, Share, Strategy
from tests.security.siege import Attacker, Siege, siege
from tests.security.wire import Wire

MOST = 2**63 - 1
SECONDS = 3.0
"""How long a flood goes on."""


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hive(tmp_path_factory: pytest.TempPathFactory):
    async with siege(tmp_path_factory.mktemp("siege")) as one:
        yield one


async def heard(wire: Wire, sequence: int = 4711) -> None:
    """Wait until all that was written before has been read."""
    wire.say(Ping(sequence=sequence))
    while (answer := await wire.message()) is not None:
        if getattr(answer, "sequence", None) == sequence:
            return


async def lives(wire: Wire, *nodes: str) -> dict[str, int]:
    """The incarnations of members, as they are introduced to whoever links."""
    found: dict[str, int] = {}
    while not set(nodes) <= set(found):
        told = await wire.message()
        assert told is not None, "the link ended"
        if isinstance(told, PushPull | Gossip):
            heard = told.members if isinstance(told, PushPull) else told.gossip
            found.update({alive.node: alive.incarnation for alive in heard if isinstance(alive, Alive)})
    return found


async def node_of(hive: Siege, name: str) -> str:
    status = await hive.ash.api("GET", "/v1/status")
    return next(member["node"] for member in status["members"] if member["name"] == name)


async def test_what_others_did_not_sign_is_an_offence(hive: Siege) -> None:
    birch, ash = await node_of(hive, "birch"), await node_of(hive, "ash")

    def forged(mallory: Attacker, now: dict[str, int]) -> dict[str, Statement]:
        sign, junk = mallory.credentials.identity.sign, os.urandom(64)
        moved = statements.alive(sign, birch, MOST, "birch", ("10.0.0.1:1",), "9")
        return {
            "another's life": moved,
            "another's life, unsigned": msgspec.structs.replace(moved, signature=junk),
            "another's goodbye": Left(birch, MOST, junk),
            "another's goodbye, of now": statements.left(sign, birch, now[birch]),
            "an accusation in another's name": Dead(ash, now[ash], birch, junk),
            "a suspicion in another's name": Suspect(ash, now[ash], birch, junk),
        }

    for number, name in enumerate(forged(await hive.attacker(), {ash: 0, birch: 0})):
        mallory = await hive.attacker()
        async with hive.attack(name), await mallory.link() as wire:
            statement = forged(mallory, await lives(wire, ash, birch))[name]
            wire.say((Gossip((statement,)), PushPull((statement,), False), Ping(1, (statement,)))[number % 3])
            await wire.ended()
        await hive.named(mallory, "did not sign")


async def test_a_flood_of_forged_statements_ends_with_the_first(hive: Siege) -> None:
    mallory, birch = await hive.attacker(), await node_of(hive, "birch")
    many = Gossip(tuple(Left(birch, MOST - number, os.urandom(64)) for number in range(256)))
    async with hive.attack("forged statements by the hundred"), await mallory.link() as wire:
        for _ in range(200):
            wire.say(many)
        await wire.gone()
    await hive.named(mallory, "did not sign")


async def test_accusing_everybody_convinces_nobody(hive: Siege) -> None:
    mallory = await hive.attacker()
    sign = mallory.credentials.identity.sign
    nodes = [await node_of(hive, "ash"), await node_of(hive, "birch")]
    incarnations = [0, 1 << 32, (1 << 32) + 1, (1 << 32) + 2, MOST]
    async with hive.attack("accusations with a good signature"), await mallory.link() as wire:
        for _ in range(10):
            for node in nodes:
                for incarnation in incarnations:
                    wire.say(Gossip((statements.suspect(sign, node, incarnation, mallory.id),)))
                    wire.say(PushPull((statements.dead(sign, node, incarnation, mallory.id),), False))
            await heard(wire)
    for machine in (hive.ash, hive.birch):
        gone = [line for line in machine.lines if line.get("state") in ("dead", "left")]
        assert not [line for line in gone if line.get("member") in ("ash", "birch")], gone


async def test_moving_every_moment_costs_little(hive: Siege) -> None:
    mallory = await hive.attacker()
    sign = mallory.credentials.identity.sign
    async with hive.attack("its own life, a hundred a message", lines=2000), await mallory.link() as wire:
        began, number = time.monotonic(), 0
        while time.monotonic() - began < SECONDS and await wire.flushed():
            lives = [
                statements.alive(sign, mallory.id, number + i, "m", (f"127.0.0.1:{1 + (number + i) % 60000}",), "9")
                for i in range(1, 101)
            ]
            number += 100
            wire.say(Gossip(tuple(lives)))
        wire.say(Gossip((statements.left(sign, mallory.id, MOST),)))
        await heard(wire)


async def test_epochs_out_of_nowhere_change_no_coordinator(hive: Siege) -> None:
    mallory = await hive.attacker()
    async with hive.attack("giant epochs"), await mallory.link() as wire:
        for counter in (2**48, 2**47, 2**30, 2**21):
            for epoch in (Epoch(counter, mallory.id), Epoch(counter, await node_of(hive, "birch"))):
                wire.say(Heartbeat(epoch))
                wire.say(HeartbeatAck(epoch))
                wire.say(VoteRequest(epoch, False))
                wire.say(VoteRequest(epoch, True))
                wire.say(VoteReply(epoch, False, True, epoch))
        await heard(wire)


async def test_events_that_cannot_be_are_an_offence(hive: Siege) -> None:
    birch = await node_of(hive, "birch")

    def wrong(mallory: Attacker) -> dict[str, FeedDelta]:
        (good,) = mallory.state(JobSubmitted(job="j-1", name="x", spec=b"{}")).events
        elsewhere = Feeds("b" * 32, mallory.credentials.authority_key)
        (foreign,) = elsewhere.compose(mallory.credentials.identity, mallory.clock.now, [JobCancelled("j-1", "")])
        return {
            "an event with a wrong signature": FeedDelta((msgspec.structs.replace(good, signature=os.urandom(64)),)),
            "an event that was changed": FeedDelta((msgspec.structs.replace(good, body=good.body + b"x"),)),
            "an event of another hive": FeedDelta((msgspec.structs.replace(foreign.event, seq=2, prev=good.prev),)),
            "an event in another's name": FeedDelta((Event(birch, 1, bytes(32), 1, b"", os.urandom(64)),)),
            "another's clock put forward": FeedDelta((Event(birch, 2, bytes(32), MOST, b"", os.urandom(64)),)),
        }

    async def complaints() -> list[str]:
        """Those that are not about members that have gone: attackers that had been let in do."""
        health = (await hive.ash.api("GET", "/v1/status"))["health"]
        return [line for line in health if "its jobs go on elsewhere" not in line]

    well = await complaints()
    for name in wrong(await hive.attacker()):
        mallory = await hive.attacker()
        async with hive.attack(name), await mallory.link() as wire:
            wire.say(wrong(mallory)[name])
            await wire.gone()
        await hive.named(mallory, "signature" if "begin" not in name else "begin")
        assert await complaints() == well, name


async def test_events_said_again_or_from_the_future_change_nothing(hive: Siege) -> None:
    mallory = await hive.attacker()
    async with hive.attack("events again and again"), await mallory.link() as wire:
        said = mallory.state(BlobHeld(digest="0" * 64, size=1))
        for _ in range(300):
            wire.say(said)
            wire.say(FeedDelta(said.events[::-1]))
        await heard(wire)
    future = await hive.attacker()
    async with hive.attack("a clock at the end of time"), await future.link() as wire:
        future.clock.follow(MOST - 100)
        wire.say(future.state(JobSubmitted(job="j-future", name="x", spec=b"{}")))
        await heard(wire)
    complaints = " ".join((await hive.ash.api("GET", "/v1/status"))["health"])
    assert f"The clock of {hive.attackers[future.id]} is" in complaints
    job = await hive.ash.api("POST", "/v1/jobs", {"spec": {"name": "after", "placement": {"min_nodes": 9}}})
    assert abs(job["summary"]["submitted_at"] - time.time()) < 3600, "our own clock was not carried away"


async def pour(wire: Wire, mallory: Attacker, deltas: Iterator[FeedDelta]) -> None:
    """Each delta as soon as the one before is stored: what came faster would be dropped, and cost nothing."""
    for delta in deltas:
        wire.say(msgspec.structs.replace(delta, more=True))  # whoever takes it in answers what it holds now
        last = delta.events[-1].seq
        while not (isinstance(told := await wire.message(), FeedHeads) and told.heads.get(mallory.id, 0) >= last):
            assert told is not None, "the link ended"


async def test_a_member_that_states_without_end_is_taken_in_slowly_and_named(hive: Siege) -> None:
    """Twice as much as it may at once is signed beforehand, so that it is fast enough on a busy machine too. With tiny
    events it would still be slowed down by our own checking: `tests/hive/test_intake.py` has those in virtual time."""
    mallory = await hive.attacker()
    body = JobSubmitted(job="j-flood", name="x", spec=b"x" * 60_000)  # counts for nothing: no JSON object
    ready = [mallory.state(body)]
    while len(ready) * cost(ready[0].events[0]) < 2 * AUTHOR_BYTES:
        ready.append(mallory.state(body))
    name = hive.attackers[mallory.id]
    async with hive.attack("valid events without end"), await mallory.link() as wire:
        deltas = chain(ready, (mallory.state(body) for _ in repeat(None)))
        flood = asyncio.create_task(pour(wire, mallory, deltas))
        try:
            await hive.ash.until("/v1/status", lambda s: f"{name} states more than" in " ".join(s["health"]))
        finally:
            flood.cancel()
        for delta in islice(deltas, len(ready)):  # and more, whether it is taken or not
            wire.say(delta)
            await wire.flushed()


async def test_tiny_events_by_the_thousand_cost_little(hive: Siege) -> None:
    mallory = await hive.attacker()
    body = JobSubmitted(job="j-flood", name="x", spec=b"")
    deltas = [mallory.state(*[body] * 400) for _ in range(20)]
    async with hive.attack("tiny events by the thousand"), await mallory.link() as wire:
        for delta in deltas:
            wire.say(delta)
            await heard(wire)


async def test_absurd_requests_are_refused_in_good_order(hive: Siege) -> None:
    mallory, ash = await hive.attacker(), await node_of(hive, "ash")
    mine, nan = Epoch(1, mallory.id), float("nan")
    none = Plan(Strategy.single_node, (), nan, "", False, (0, 0, 0, 0), ())
    bad = Plan(Strategy.federated, (Share(ash, 4096, nan, -1.0, -(2**60)),), nan, "", True, (-1, 0, 0, 0), ())
    requests: list[Request] = [
        Assign("j-1", 2**53, mine, b"", none),
        Assign("j-1", 1, mine, b"[" * 65_000, bad),
        Assign("j-1", 1, mine, b'{"name": "x", "training": {"epochs": 1e999}}', bad),
        Assign("j-1", 1, Epoch(2**48, mallory.id), b"{}", bad),
        Assign("j-1", 1, Epoch(1, ash), b"{}", bad),
        Start("j-1", 1, mine, mine, tuple(Endpoint(mallory.id, 0, "nonsense", "x" * 4096) for _ in range(20))),
        Adopt("j-1", 2**53, mine, mine),
        Stop("j-1", mine, "x" * 2000),
        Have(("0" * 64,) * 16),
        LogsRequest("j-1", 2**53),
        LogsRequest("---"),
        ProfileRequest(),
        Hold(BlobRef("0" * 64, 2**50), announce=True),
    ]
    async with hive.attack("absurd requests"), await mallory.link() as wire:
        answers = await ask(wire, requests)
    refused = [type(request) for request, answer in zip(requests, answers, strict=True) if isinstance(answer, Failure)]
    assert refused == [Assign] * 5 + [Hold]
    assert not any(isinstance(answer, Failure) and answer.code == "error" for answer in answers), answers


async def ask(wire: Wire, requests: list[Request]) -> list[object]:
    """The answers in the order of the requests."""
    for number, request in enumerate(requests):
        wire.say(Call(number, request))
    answers: dict[int, object] = {}
    while len(answers) < len(requests):
        answer = await wire.message()
        assert answer is not None, "the link ended"
        if isinstance(answer, Reply):
            answers[answer.id] = answer.response
    return [answers[number] for number in range(len(requests))]


async def test_a_thousand_requests_at_once_are_worked_on_a_few_at_a_time(hive: Siege) -> None:
    mallory = await hive.attacker()
    async with hive.attack("a thousand requests"), await mallory.link() as wire:
        answers = await ask(wire, [LogsRequest("j-1") for _ in range(1000)])
    busy = [answer for answer in answers if isinstance(answer, Failure)]
    assert busy, "more than 32 are not under way for one peer"
    assert all("32 requests of yours are under way" in answer.message for answer in busy)


async def test_nothing_is_kept_that_is_no_business_of_the_hive(hive: Siege) -> None:
    mallory = await hive.attacker()
    async with hive.attack("bytes to keep, as many as there is disk"), await mallory.link() as wire:
        wire.say(mallory.state(BlobHeld(digest="1" * 64, size=2**50)))
        answers = await ask(wire, [Hold(BlobRef(f"{number:064x}", 2**40)) for number in range(40)])
    assert all(isinstance(answer, Failure) for answer in answers)
    kept = [path for path in hive.ash.home.glob("hives/*/blobs/**/*") if path.is_file()]
    assert not kept


async def test_progress_of_jobs_that_are_none_is_not_kept(hive: Siege) -> None:
    mallory = await hive.attacker()
    async with hive.attack("progress of a thousand jobs"), await mallory.link() as wire:
        for number in range(1000):
            wire.say(Progress(f"j-{number}", 1, mallory.id, 1, 1, 1, 1, float("nan"), None, float("inf"), 1, "\x1b[2J"))
        await heard(wire)


async def test_replies_to_questions_nobody_asked_are_ignored(hive: Siege) -> None:
    mallory = await hive.attacker()
    async with hive.attack("unasked replies"), await mallory.link() as wire:
        for number in range(400):
            wire.say(Reply(number, Failure("x", "x" * 2000, "x" * 2000)))
        await heard(wire)
        await asyncio.sleep(0)
