"""Links between real transports on loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hivenode.errors import Conflict, InvalidInput
from hivenode.net.link import LinkLimits
from hivenode.net.messages import Event, FeedDelta, Gossip, Heartbeat, Ping
from hivenode.net.transport import LinkEnd
from hivenode.spec.values import Epoch
from tests.net.nodes import PATIENCE, linked, node, pair_by_id, with_limits
from tests.net.proxy import proxy


async def test_two_nodes_link_and_talk_both_ways(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        assert a.transport.send(b.id, Ping(sequence=1))
        assert b.transport.send(a.id, Ping(sequence=2))
        assert await b.handler.one("message") == (a.id, Ping(sequence=1))
        assert await a.handler.one("message") == (b.id, Ping(sequence=2))
        assert list(a.transport.links) == [b.id]


async def test_three_nodes_form_a_full_mesh(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path, host="127.0.0.2") as b, node(3, tmp_path) as c:
        await linked(a, b)
        await linked(b, c)
        await linked(c, a)
        for one in (a, b, c):
            assert len(one.transport.links) == 2
            assert len(one.handler.all("up")) == 2


@pytest.mark.parametrize("round", range(5))
async def test_simultaneous_dials_leave_exactly_one_link(tmp_path: Path, round: int) -> None:
    async with node(round * 2, tmp_path) as a, node(round * 2 + 1, tmp_path) as b:
        a.want(b)
        b.want(a)
        await a.handler.one("up")
        await b.handler.one("up")
        # Whatever was under way is over once messages cross both ways, several times.
        for number in range(20):
            assert a.transport.send(b.id, Ping(sequence=number))
            assert b.transport.send(a.id, Ping(sequence=number))
            await a.handler.one("message", number + 1)
            await b.handler.one("message", number + 1)
        for one in (a, b):
            assert len(one.handler.all("up")) == 1
            assert one.handler.all("down") == []
            assert one.handler.all("failed") == []


async def test_the_dial_of_the_smaller_id_stays(tmp_path: Path) -> None:
    async with node(1, tmp_path) as one, node(2, tmp_path) as two:
        small, large = pair_by_id(one, two)
        small.want(large)
        large.want(small)
        await small.handler.one("up")
        await large.handler.one("up")
        # The link is the one that a dial to the listening port of the other made, whoever it was; it is the same on
        # both sides: a message over it arrives, and closing it on one side ends it on the other.
        small.transport.drop(large.id, LinkEnd.local)
        assert await large.handler.one("down") == (small.id, LinkEnd.closed)
        assert await small.handler.one("down") == (large.id, LinkEnd.local)


async def test_a_stopped_node_says_goodbye_and_what_was_sent_before_arrives(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, proxy(a.address, receive_buffer=4096) as between:
        patient = with_limits(link=LinkLimits(goodbye_seconds=PATIENCE), stop_seconds=PATIENCE)
        async with node(2, tmp_path, limits=patient) as b:
            b.transport.want(a.id, (between.address,))
            await b.handler.one("up")
            # More than fits into the buffers of the connection.
            for number in range(1, 70):
                event = Event(b.id, number, bytes(32), 0, bytes(60_000), bytes(64))
                assert b.transport.send(a.id, FeedDelta(events=(event,)))
        assert await a.handler.one("down") == (b.id, LinkEnd.closed)
        arrived = [m.events[0].seq for m in a.handler.messages if isinstance(m, FeedDelta)]
        assert arrived == list(range(1, 70))
        a.transport.want(b.id, (b.address,))
        assert (await a.handler.one("failed"))[2] is LinkEnd.refused


async def test_what_was_sent_before_a_link_is_dropped_arrives(tmp_path: Path) -> None:
    patient = with_limits(link=LinkLimits(goodbye_seconds=PATIENCE))
    async with (
        node(1, tmp_path) as a,
        proxy(a.address, receive_buffer=4096) as between,
        node(2, tmp_path, limits=patient) as b,
    ):
        b.transport.want(a.id, (between.address,))
        await b.handler.one("up")
        b.transport.forget(a.id)
        for number in range(1, 70):
            event = Event(b.id, number, bytes(32), 0, bytes(60_000), bytes(64))
            assert b.transport.send(a.id, FeedDelta(events=(event,)))
        b.transport.drop(a.id, LinkEnd.local)
        assert not b.transport.send(a.id, Ping(sequence=1))
        assert await a.handler.one("down", 2) == (b.id, LinkEnd.closed)
        arrived = [m.events[0].seq for m in a.handler.messages if isinstance(m, FeedDelta)]
        assert arrived == list(range(1, 70))


async def test_urgent_messages_overtake_and_order_within_a_priority_holds(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        gossip = [Gossip(gossip=()) for _ in range(3)]
        pings = [Ping(sequence=n) for n in range(50)]
        # All queued in one go of the loop, so that the writer finds them together.
        for message in [*gossip, *pings, Heartbeat(epoch=Epoch(7, a.id))]:
            assert a.transport.send(b.id, message)
        await b.handler.one("message", 54)
        arrived = b.handler.messages
        assert arrived[0] == Heartbeat(epoch=Epoch(7, a.id))
        assert [m.sequence for m in arrived if isinstance(m, Ping)] == list(range(50))


async def test_a_full_queue_refuses_instead_of_growing(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        accepted = 0
        while a.transport.send(b.id, Ping(sequence=accepted)):
            accepted += 1
            assert accepted < 5000
        await b.handler.one("message", accepted)  # what was accepted arrives
        assert a.transport.send(b.id, Ping(sequence=0))


async def test_a_link_comes_back_after_the_other_node_restarts(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a:
        async with node(2, tmp_path) as b:
            await linked(a, b)
            port = b.transport.port
        await a.handler.one("down")
        async with node(2, tmp_path, port=port) as again:
            await a.handler.one("up", 2)
            await again.handler.one("up")


async def test_a_seed_that_is_oneself_is_recognised_and_a_real_one_found(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        a.transport.seed([a.address, b.address])
        assert (await a.handler.one("up"))[0] == b.id
        assert list(a.transport.links) == [b.id]
        assert a.handler.all("failed") == []


async def test_a_seed_where_nobody_listens_is_named_and_tried_again(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a:
        async with node(2, tmp_path) as b:
            address, port = b.address, b.transport.port
        a.transport.seed([address])
        failed = await a.handler.one("failed")
        assert failed[:3] == ("", address, LinkEnd.refused)
        async with node(2, tmp_path, port=port) as b:
            assert (await a.handler.one("up"))[0] == b.id


async def test_ipv6_addresses_work(tmp_path: Path) -> None:
    try:
        probe = await asyncio.start_server(lambda r, w: None, "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    probe.close()
    async with node(1, tmp_path, host="::1") as a, node(2, tmp_path) as b:
        b.transport.want(a.id, (f"[::1]:{a.transport.port}",))
        await a.handler.one("up")
        await b.handler.one("up")
    async with node(1, tmp_path, host="::") as a, node(2, tmp_path) as b:
        b.transport.want(a.id, (f"127.0.0.1:{a.transport.port}",))
        await b.handler.one("up")


async def test_a_wanted_peer_is_found_behind_its_second_address(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        async with node(3, tmp_path) as gone:
            dead = gone.address
        a.transport.want(b.id, ("not an address", dead, b.address))
        await a.handler.one("up")
        assert [failed[2] for failed in a.handler.all("failed")] == [LinkEnd.unreachable, LinkEnd.refused]


async def test_a_taken_port_is_a_conflict_that_names_it(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a:
        with pytest.raises(Conflict, match=str(a.transport.port)):
            async with node(2, tmp_path, port=a.transport.port):
                pass


async def test_listening_everywhere_uses_one_port_for_all_families(tmp_path: Path) -> None:
    for host in ("", "0.0.0.0"):
        async with node(1, tmp_path, host=host) as a, node(2, tmp_path) as b:
            b.transport.want(a.id, (f"127.0.0.1:{a.transport.port}",))
            await b.handler.one("up")


async def test_listening_on_another_machines_address_is_refused_with_a_sentence(tmp_path: Path) -> None:
    for host in ("203.0.113.77", "no.such.host.invalid"):
        with pytest.raises(InvalidInput, match=host):
            async with node(1, tmp_path, host=host):
                pass


async def test_a_forgotten_peer_is_not_dialled_again(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b, node(3, tmp_path) as c:
        await linked(a, b)
        a.transport.forget(b.id)
        assert await a.handler.one("down") == (b.id, LinkEnd.idle)
        assert a.transport.send(b.id, Ping(sequence=1)), "the connection stands until it has been idle"
        b.transport.drop(a.id, LinkEnd.protocol)
        await a.handler.one("down", 2)
        a.transport.redial(b.id)
        await linked(a, c)
        assert list(a.transport.links) == [c.id]
