"""What any transport must do: the same behaviours on the real one (loopback, TLS) and on its simulated twin.

Each behaviour is a function of a `Bench`, and never sees which transport it has.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from hivenode.net.messages import Event, FeedDelta, Gossip, Heartbeat, Message, Ping
from hivenode.net.peers import PeerTransport
from hivenode.net.simulated import Quality
from hivenode.net.transport import LinkEnd
from hivenode.spec.values import Epoch
from tests.net.benches import Bench, Peer, RealPeer, SimulatedBench, SimulatedPeer, real
from tests.simulation.loop import run
from tests.simulation.net import Rig

Behaviour = Callable[[Bench], Awaitable[None]]
Stage = Callable[[Behaviour], None]


@pytest.fixture(params=["real", "simulated"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    """Runs a behaviour."""

    async def in_reality(behaviour: Behaviour) -> None:
        async with real(tmp_path) as bench:
            await behaviour(bench)

    async def in_simulation(behaviour: Behaviour, rng: random.Random) -> None:
        await behaviour(SimulatedBench(Rig(rng, Quality(delay_seconds=(0.001, 0.05)))))

    if request.param == "real":
        return lambda behaviour: asyncio.run(in_reality(behaviour))
    return lambda behaviour: run(lambda rng: in_simulation(behaviour, rng), seed=3)


def numbers(messages: Sequence[Message]) -> list[int]:
    return [message.sequence for message in messages if isinstance(message, Ping)]


async def linked(bench: Bench, a: Peer, b: Peer) -> None:
    await a.want(b)
    await bench.until(lambda: b.id in a.links() and a.id in b.links() and a.id in b.ups() and b.id in a.ups())


def test_dialling_each_other_at_once_leaves_exactly_one_link(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        peers = [await bench.node(n) for n in range(4)]
        for one in peers:
            for other in peers:
                if one is not other:
                    await one.want(other)
        await bench.until(lambda: all(len(one.links()) == len(one.ups()) == 3 for one in peers))
        for number in range(10):  # whatever was under way is over once messages have crossed several times
            for one in peers:
                for other in peers:
                    if one is not other:
                        assert await one.send(other, Ping(sequence=number)) == [True]
            await bench.until(
                lambda n=number: all(len(one.messages(o)) == n + 1 for one in peers for o in peers if one is not o)
            )
        for one in peers:
            assert sorted(one.ups()) == sorted(set(one.ups()))
            assert one.downs() == one.failures() == []

    stage(behaviour)


def test_messages_of_one_priority_arrive_in_order_both_ways(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await linked(bench, a, b)
        for number in range(100):
            await a.send(b, Ping(sequence=number), Gossip(gossip=()), Heartbeat(epoch=Epoch(number + 1, a.id)))
            await b.send(a, Ping(sequence=1000 + number))
        await bench.until(lambda: len(b.messages(a)) == 300 and len(a.messages(b)) == 100)
        assert numbers(b.messages(a)) == list(range(100))
        assert [m.epoch.counter for m in b.messages(a) if isinstance(m, Heartbeat)] == list(range(1, 101))
        assert numbers(a.messages(b)) == list(range(1000, 1100))

    stage(behaviour)


def test_a_full_queue_refuses_and_what_was_accepted_arrives(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await linked(bench, a, b)
        event = Event(a.id, 1, bytes(32), 0, bytes(60_000), bytes(64))
        accepted = await a.send(b, *[FeedDelta(events=(event,))] * 2000)
        assert accepted.index(False) == sum(accepted) < 1000, "accepted up to a bound, and nothing more"
        await bench.until(lambda: len(b.messages(a)) == sum(accepted))
        assert await a.send(b, Ping(sequence=1)) == [True]

    stage(behaviour)


def test_a_dropped_link_is_local_here_and_closed_there_and_what_was_sent_before_arrives(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await linked(bench, a, b)
        await a.send(b, *[Ping(sequence=n) for n in range(50)])
        await a.drop(b, LinkEnd.local)
        await bench.until(lambda: a.downs() and b.downs())
        assert a.downs() == [(b.id, LinkEnd.local)]
        assert b.downs() == [(a.id, LinkEnd.closed)]
        assert numbers(b.messages(a)) == list(range(50))

    stage(behaviour)


def test_a_stopped_node_says_goodbye_and_is_then_refused(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await linked(bench, a, b)
        await b.stop()
        await bench.until(lambda: a.downs() and a.failures())
        assert a.downs() == [(b.id, LinkEnd.closed)]
        assert set(a.failures()) == {(b.id, LinkEnd.refused)}

    stage(behaviour)


def test_a_wanted_link_comes_back_with_the_next_life_of_the_peer(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await linked(bench, a, b)
        await b.stop()
        await bench.until(a.downs)
        again = await bench.node(2)
        await bench.until(lambda: a.ups() == [b.id, b.id] and again.ups() == [a.id])
        await a.send(again, Ping(sequence=7))
        await bench.until(lambda: numbers(again.messages(a)) == [7])

    stage(behaviour)


def test_a_dropped_link_that_is_wanted_is_dialled_anew(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await linked(bench, a, b)
        await b.drop(a, LinkEnd.local)
        await bench.until(lambda: a.ups() == [b.id, b.id])
        assert a.downs() == [(b.id, LinkEnd.closed)]

    stage(behaviour)


def test_a_silent_link_that_is_dialled_again_gives_way_to_the_fresh_one(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await linked(bench, a, b)
        await a.redial(b)  # too young
        await bench.quiet(2 * bench.young_seconds)
        assert a.downs() == b.downs() == []
        await a.redial(b)
        await bench.until(lambda: a.ups() == [b.id, b.id] and b.ups() == [a.id, a.id])
        assert a.downs() == [(b.id, LinkEnd.reset)]
        assert len(b.downs()) == 1
        assert await a.send(b, Ping(sequence=1)) == await b.send(a, Ping(sequence=2)) == [True]
        await bench.until(lambda: numbers(b.messages(a)) == [1] and numbers(a.messages(b)) == [2])
        assert a.failures() == b.failures() == []

    stage(behaviour)


def test_a_link_on_which_something_comes_in_meanwhile_stays(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await linked(bench, a, b)
        await bench.quiet(2 * bench.young_seconds)
        await a.redial(b)
        await b.send(a, Ping(sequence=1))
        await bench.quiet(2 * bench.young_seconds)
        assert numbers(a.messages(b)) == [1]
        assert len(a.ups()) == len(b.ups()) == 1
        assert a.downs() == b.downs() == []

    stage(behaviour)


def test_two_that_dial_again_at_once_leave_one_link(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await a.want(b)
        await b.want(a)
        await bench.until(lambda: b.id in a.ups() and a.id in b.ups())
        for number in range(1, 5):
            await bench.quiet(2 * bench.young_seconds)
            await a.redial(b)
            await b.redial(a)
            await bench.until(lambda n=number: len(a.ups()) == len(b.ups()) == n + 1)
        await bench.quiet(bench.young_seconds)
        assert len(a.ups()) == len(b.ups()) == 5
        assert await a.send(b, Ping(sequence=1)) == await b.send(a, Ping(sequence=2)) == [True]
        await bench.until(lambda: numbers(b.messages(a)) == [1] and numbers(a.messages(b)) == [2])

    stage(behaviour)


def test_nobody_known_is_sent_nothing(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        assert await a.send(b, Ping(sequence=1)) == [False]
        await a.know(b)
        await a.forget(b)
        assert await a.send(b, Ping(sequence=1)) == [False]

    stage(behaviour)


def test_what_is_said_to_a_known_peer_dials_it_and_arrives_in_order(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await a.know(b)
        assert await a.send(b, *[Ping(sequence=n) for n in range(20)]) == [True] * 20
        await bench.until(lambda: len(b.messages(a)) == 20)
        assert numbers(b.messages(a)) == list(range(20))
        assert await b.send(a, Ping(sequence=99)) == [True], "the answer goes back over the same link"
        await bench.until(lambda: numbers(a.messages(b)) == [99])
        for one in (a, b):
            assert one.links() == one.ups() == one.failures() == [], "a passing link is not spoken of"

    stage(behaviour)


def test_what_waits_for_a_dial_is_bounded(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await a.know(b)
        taken = await a.send(b, *[Ping(sequence=n) for n in range(1000)])
        assert taken == [True] * 32 + [False] * 968
        await bench.until(lambda: len(b.messages(a)) == 32)

    stage(behaviour)


def test_both_sides_speaking_first_at_once_share_one_link(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1, idle_seconds=3600.0), await bench.node(2, idle_seconds=3600.0)
        await a.know(b)
        await b.know(a)
        for number in range(10):
            await a.send(b, Ping(sequence=number))
            await b.send(a, Ping(sequence=number))
        await bench.until(lambda: len(a.messages(b)) == len(b.messages(a)) == 10)
        assert numbers(a.messages(b)) == numbers(b.messages(a)) == list(range(10))
        assert a.failures() == b.failures() == []

    stage(behaviour)


def test_an_idle_passing_link_ends_without_a_word_and_the_next_message_dials_again(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await a.know(b)
        for number in range(3):
            await a.send(b, Ping(sequence=number))
            await bench.until(lambda n=number: len(b.messages(a)) == n + 1)
            await bench.until(lambda: not live(a) and not live(b))
        for one in (a, b):
            assert one.ups() == one.downs() == one.failures() == []

    stage(behaviour)


def test_a_kept_link_that_nobody_wants_any_more_is_idle_on_both_sides_then_closed_and_not_dialled_again(
    stage: Stage,
) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await linked(bench, a, b)
        await a.know(b)
        await bench.until(lambda: a.downs() and b.downs())
        assert await b.send(a, Ping(sequence=1)) == [True], "what is under way is still carried"
        await bench.until(lambda: numbers(a.messages(b)) == [1] and not live(a) and not live(b))
        assert a.downs() == [(b.id, LinkEnd.idle)]
        assert b.downs() == [(a.id, LinkEnd.idle)]
        await bench.quiet(3 * bench.idle_seconds)
        assert a.links() == b.links() == []
        assert len(a.ups()) == len(b.ups()) == 1

    stage(behaviour)


def test_a_link_that_one_end_wants_outlasts_idleness(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await linked(bench, a, b)
        await b.want(a)
        await b.send(a, Ping(sequence=1))
        await bench.until(lambda: a.messages(b))
        await a.forget(b)
        await bench.quiet(4 * bench.idle_seconds)
        assert a.links() == [b.id]
        assert b.links() == [a.id]
        assert a.downs() == b.downs() == []
        await b.forget(a)
        await bench.until(lambda: a.downs() and b.downs())
        assert a.downs() == [(b.id, LinkEnd.idle)]

    stage(behaviour)


def test_a_passing_link_becomes_a_kept_one_for_both_when_one_end_wants_it(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        for wants, other in ((1, 2), (4, 3)):
            a, b = await bench.node(min(wants, other)), await bench.node(max(wants, other))
            await a.know(b)
            await a.send(b, Ping(sequence=1))
            await bench.until(lambda a=a, b=b: b.messages(a))
            one, two = (a, b) if wants < other else (b, a)
            await one.want(two)
            await bench.until(lambda one=one, two=two: one.ups() == [two.id] and two.ups() == [one.id])
            await bench.quiet(3 * bench.idle_seconds)
            assert one.links() == [two.id]
            assert two.links() == [one.id]
            assert a.downs() == b.downs() == []

    stage(behaviour)


def test_a_refused_dial_on_demand_is_told_from_one_without_an_answer(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1, attempt_seconds=1.0), await bench.node(2)
        await a.know(b)
        await b.stop()
        await a.send(b, Ping(sequence=1))
        await bench.until(a.failures)
        assert a.failures() == [(b.id, LinkEnd.refused)]
        assert a.links() == []
        await a.redial(b)
        await bench.until(lambda: len(a.failures()) == 2)
        b.address = bench.silent(2)
        await a.know(b)
        await a.send(b, Ping(sequence=2))
        await bench.until(lambda: len(a.failures()) == 3)
        assert a.failures()[2] == (b.id, LinkEnd.unreachable)
        again = await bench.node(2)
        await a.know(again)
        await a.send(again, Ping(sequence=3))
        await bench.until(lambda: again.messages(a))
        assert numbers(again.messages(a)) == [3], "what could not be said then is not said now"

    stage(behaviour)


def test_a_link_to_a_seed_is_kept_for_a_while_and_for_good_by_whoever_wants_it(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b, c = await bench.node(1), await bench.node(2), await bench.node(3)
        await a.seed(b, c)
        await bench.until(lambda: a.id in b.links() and a.id in c.links() and len(a.links()) == 2)
        await c.want(a)
        await bench.until(lambda: a.downs() and b.downs())
        assert a.downs() == [(b.id, LinkEnd.idle)]
        assert b.downs() == [(a.id, LinkEnd.idle)]
        await bench.until(lambda: a.id not in live(b))
        assert a.links() == [c.id]
        assert c.links() == [a.id]

    stage(behaviour)


def test_a_passing_link_that_breaks_is_told(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        a, b = await bench.node(1), await bench.node(2)
        await a.know(b)
        await a.send(b, Ping(sequence=1))
        await bench.until(lambda: b.messages(a))
        await b.stop()
        await bench.until(a.downs)
        assert a.downs() == [(b.id, LinkEnd.closed)]

    stage(behaviour)


def test_the_pool_is_bounded_and_the_link_unused_for_longest_gives_way(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        one = await bench.node(0, pool=3, idle_seconds=3600.0)
        others = [await bench.node(n, idle_seconds=3600.0) for n in range(1, 9)]
        for number, other in enumerate(others):
            await one.know(other)
            assert await one.send(other, Ping(sequence=number)) == [True]
            assert len(live(one)) <= 3
        await bench.until(lambda: all(other.messages(one) for other in others))
        assert len(live(one)) <= 3
        assert others[-1].id in live(one)
        assert others[0].id not in live(one)
        assert one.downs() == one.failures() == []
        assert all(other.downs() == [] for other in others)

    stage(behaviour)


def test_links_that_are_wanted_do_not_count_against_the_pool(stage: Stage) -> None:
    async def behaviour(bench: Bench) -> None:
        one = await bench.node(0, pool=1, idle_seconds=3600.0)
        others = [await bench.node(n, idle_seconds=3600.0) for n in range(1, 5)]
        for other in others[:3]:
            await linked(bench, one, other)
        await one.know(others[3])
        assert await one.send(others[3], Ping(sequence=1)) == [True]
        await bench.until(lambda: others[3].messages(one))
        assert len(one.links()) == 3

    stage(behaviour)


def live(peer: Peer) -> list[str]:
    """All live links, passing ones too. Only the bound on them cannot be seen from outside."""
    assert isinstance(peer, RealPeer | SimulatedPeer)
    transport = peer.transport
    return list(transport._links.uses if isinstance(transport, PeerTransport) else transport._uses)
