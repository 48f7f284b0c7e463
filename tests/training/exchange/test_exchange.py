"""The exchange as strategies call it, over real sockets: several workers as threads of one process."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import numpy as np
import pytest

from hivenode.errors import Conflict, InvalidInput, Unavailable
from hivenode.net.local import Peer
from hivenode.training.exchange import Absurd, Exchange, Excluded, NonFinite, Seat, View, ViewChanged, WorkerKey
from hivenode.training.exchange.channel import Channel, LinkBroken
from hivenode.training.exchange.clock import now
from hivenode.training.exchange.codecs import Fp16
from hivenode.training.exchange.meeting import Meeting, listen


def name(rank: int) -> str:
    return f"node{rank}".ljust(32, "x")


T = TypeVar("T")


class Crew:
    """Workers and a thread for each."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.pool = ThreadPoolExecutor(16)
        self.members: list[Exchange] = []
        self.views: dict[int, list[View]] = {}
        self.told = threading.Condition()

    def hire(self, count: int, **options: float) -> list[Peer]:
        for _ in range(count):
            rank = len(self.members)
            self.views[rank] = []
            exchange = Exchange(
                Seat(name(rank), rank, "127.0.0.1"),
                WorkerKey.create(),
                on_view=lambda view, rank=rank: self._tell(rank, view),  # type: ignore[misc]
                **options,  # type: ignore[arg-type]
            )
            self._stack.callback(exchange.close)
            self.members.append(exchange)
        return [
            Peer(name(rank), rank, "127.0.0.1", exchange.port, exchange.certificate)
            for rank, exchange in enumerate(self.members)
        ]

    def _tell(self, rank: int, view: View) -> None:
        with self.told:
            self.views[rank].append(view)
            self.told.notify_all()

    def all(self, call: Callable[[Exchange], T], ranks: list[int] | None = None) -> list[Future[T]]:
        chosen = self.members if ranks is None else [self.members[rank] for rank in ranks]
        futures = [self.pool.submit(call, exchange) for exchange in chosen]
        for future in futures:
            future.exception(timeout=30)
        return futures

    def close(self) -> None:
        self.pool.shutdown()


@pytest.fixture
def crew() -> Iterator[Crew]:
    with ExitStack() as stack:
        crew = Crew(stack)
        stack.callback(crew.close)
        yield crew


def ones(exchange: Exchange) -> float:
    vector = np.full(100, 1.0, np.float32)
    return exchange.all_reduce(vector, 1.0).total_weight


def test_one_worker_alone_gets_back_what_it_gave(crew: Crew) -> None:
    peers = crew.hire(1)
    assert crew.members[0].connect(peers).members == (name(0),)
    vector = np.array([0.1, -0.0, 3e38], np.float32)
    before = vector.tobytes()
    reduced = crew.members[0].all_reduce(vector, 7.0)
    assert vector.tobytes() == before
    assert (reduced.round, reduced.contributors, reduced.total_weight) == (1, (name(0),), 7.0)
    crew.members[0].barrier()


def test_who_cannot_be_reached_is_left_out_of_the_first_view(crew: Crew) -> None:
    peers = crew.hire(2, connect_seconds=1.0)
    absent = listen("127.0.0.1", (0, 0))
    with absent:
        peers.append(Peer(name(2), 2, "127.0.0.1", absent.getsockname()[1], WorkerKey.create().certificate))
        views = [future.result() for future in crew.all(lambda exchange: exchange.connect(peers))]
    assert {view.members for view in views} == {(name(0), name(1))}
    assert [future.result() for future in crew.all(ones)] == [2.0, 2.0]


def test_who_can_only_dial_is_met_by_dialling(crew: Crew) -> None:
    """As behind an address translation: nobody reaches rank 2, and rank 0 cannot be reached either."""
    peers = crew.hire(3)
    with listen("127.0.0.1", (0, 0)) as nowhere:
        dead = nowhere.getsockname()[1]
    hidden = [*peers[:2], Peer(name(2), 2, "127.0.0.1", dead, peers[2].certificate)]
    from_1 = [Peer(name(0), 0, "127.0.0.1", dead, peers[0].certificate), *hidden[1:]]
    told = [hidden, from_1, peers]
    futures = crew.all(lambda exchange: exchange.connect(told[crew.members.index(exchange)]))
    assert [future.result().members for future in futures] == [(name(0), name(1), name(2))] * 3
    assert [future.result() for future in crew.all(ones)] == [3.0] * 3


def test_two_that_cannot_reach_each_other_are_named(crew: Crew) -> None:
    """Rank 0 reaches both; 1 and 2 do not reach each other, whichever dials."""
    peers = crew.hire(3, connect_seconds=2.0)
    with listen("127.0.0.1", (0, 0)) as nowhere:
        dead = nowhere.getsockname()[1]
    hidden = [Peer(peer.node, peer.rank, peer.host, dead, peer.certificate) for peer in peers]
    told = [peers, [*peers[:2], hidden[2]], [peers[0], hidden[1], peers[2]]]
    futures = crew.all(lambda exchange: exchange.connect(told[crew.members.index(exchange)]))
    assert [future.result().members for future in futures[:2]] == [(name(0), name(1))] * 2
    excluded = futures[2].exception()
    assert isinstance(excluded, Excluded)
    assert f"{name(2)}: it and {name(1)} could not reach each other" in excluded.sentence
    assert "worker.ports" in excluded.fix
    assert [future.result() for future in crew.all(ones, [0, 1])] == [2.0, 2.0]


def test_another_certificate_than_the_one_handed_in_is_refused(crew: Crew) -> None:
    peers = crew.hire(3, connect_seconds=1.5)
    lied = [*peers[:2], Peer(name(2), 2, "127.0.0.1", peers[2].port, WorkerKey.create().certificate)]
    futures = crew.all(lambda exchange: exchange.connect(lied if exchange is not crew.members[2] else peers))
    assert [future.result().members for future in futures[:2]] == [(name(0), name(1))] * 2


def test_a_stranger_gets_in_nowhere(crew: Crew) -> None:
    peers = crew.hire(2)
    stranger = WorkerKey.create()

    def knock() -> None:
        raw = socket.create_connection(("127.0.0.1", peers[1].port), 5)
        channel = Channel(raw, stranger.context([peers[1].certificate]), server_side=False, until=now() + 5)
        with contextlib.closing(channel):
            channel.send(bytes(28))
            channel.fill(memoryview(bytearray(1)))

    with ThreadPoolExecutor(1) as pool:
        knocking = pool.submit(knock)
        crew.all(lambda exchange: exchange.connect(peers))
        # In TLS 1.3 the server's refusal reaches the client with the first read.
        with pytest.raises((LinkBroken, ConnectionError)):
            knocking.result(10)
    with pytest.raises((LinkBroken, ConnectionError)):
        knock()
    assert [future.result() for future in crew.all(ones)] == [2.0, 2.0]


def test_foreign_bytes_end_that_peer_only(crew: Crew) -> None:
    """Rank 2 has a trusted certificate and a proper greeting, but then speaks something else."""
    peers = crew.hire(2)
    key, listener = WorkerKey.create(), listen("127.0.0.1", (0, 0))
    peers.append(Peer(name(2), 2, "127.0.0.1", listener.getsockname()[1], key.certificate))
    linked = threading.Semaphore(0)
    outgoing: list[Channel] = []

    def meet(rank: int, out: Channel, into: Channel) -> None:
        outgoing.extend((out, into))
        out.send(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
        linked.release()

    meeting = Meeting(2, key, listener, peers[:2], meet, now() + 10)
    meeting.start()
    futures = crew.all(lambda exchange: exchange.connect(peers))
    assert linked.acquire(timeout=10)
    meeting.close()
    assert [future.result().members for future in futures] == [(name(0), name(1))] * 2
    assert [future.result() for future in crew.all(ones)] == [2.0, 2.0]
    for connection in outgoing:
        connection.close()


def test_what_the_daemon_says_is_lost_is_left_out(crew: Crew) -> None:
    peers = crew.hire(3)
    crew.all(lambda exchange: exchange.connect(peers))
    crew.members[0].lost(name(2))
    futures = crew.all(ones)
    for future in futures[:2]:
        changed = future.exception()
        assert isinstance(changed, ViewChanged)
        assert changed.view.members == (name(0), name(1))
        assert changed.lost == (name(2),)
    assert isinstance(futures[2].exception(), Excluded)
    assert [future.result() for future in crew.all(ones, [0, 1])] == [2.0, 2.0]
    with crew.told:  # by a thread of its own
        assert crew.told.wait_for(lambda: crew.views[0][-1].members == (name(0), name(1)), 20)


def test_a_vector_is_not_touched_by_a_round_that_is_void(crew: Crew) -> None:
    peers = crew.hire(3)
    crew.all(lambda exchange: exchange.connect(peers))
    vectors = {id(exchange): np.full(50_000, index, np.float32) for index, exchange in enumerate(crew.members)}

    def reduce(exchange: Exchange) -> None:
        if exchange is crew.members[1]:
            exchange.close()
        else:
            exchange.all_reduce(vectors[id(exchange)], 1.0)

    futures = crew.all(reduce)
    for rank in (0, 2):
        assert isinstance(futures[rank].exception(), ViewChanged)
        assert (vectors[id(crew.members[rank])] == rank).all()


def test_values_that_are_not_finite_are_refused_by_name(crew: Crew) -> None:
    peers = crew.hire(3)
    crew.all(lambda exchange: exchange.connect(peers))

    def reduce(exchange: Exchange) -> None:
        vector = np.zeros(1000, np.float32)
        if exchange is crew.members[1]:
            vector[700] = np.inf
        exchange.all_reduce(vector, 1.0)

    errors = [future.exception() for future in crew.all(reduce)]
    for error in errors:
        assert isinstance(error, NonFinite)
        assert error.node == name(1)
        assert error.round == 1
    assert [future.result() for future in crew.all(ones, [0, 2])] == [2.0, 2.0]


def test_vectors_of_different_lengths_are_an_error_on_all(crew: Crew) -> None:
    peers = crew.hire(2)
    crew.all(lambda exchange: exchange.connect(peers))
    futures = crew.all(lambda e: e.all_reduce(np.zeros(5 + crew.members.index(e), np.float32), 1.0))
    assert all(isinstance(future.exception(), InvalidInput) for future in futures)


def test_vectors_that_cannot_be_reduced_in_place_are_refused(crew: Crew) -> None:
    peers = crew.hire(1)
    crew.members[0].connect(peers)
    for wrong in (np.zeros(4), np.zeros((2, 2), np.float32), np.zeros(8, np.float32)[::2]):
        with pytest.raises(InvalidInput):
            crew.members[0].all_reduce(wrong, 1.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        crew.members[0].all_reduce(np.zeros(4, np.float32), -1.0)


def test_leaving_after_the_barrier_disturbs_nobody(crew: Crew) -> None:
    peers = crew.hire(3)
    crew.all(lambda exchange: exchange.connect(peers))
    crew.all(ones)

    def finish(exchange: Exchange) -> None:
        exchange.barrier()
        exchange.close()

    assert [future.exception() for future in crew.all(finish)] == [None] * 3
    assert {len(views) for views in crew.views.values()} == {1}


def test_workers_of_unequal_bandwidth_own_unequal_slices_of_the_same_mean(crew: Crew) -> None:
    peers = crew.hire(3, shares={name(0): 1.0, name(1): 5.0, name(2): 0.001})  # type: ignore[arg-type]
    crew.all(lambda exchange: exchange.connect(peers))
    vectors = [np.random.default_rng(rank).standard_normal(9001).astype(np.float32) for rank in range(3)]
    plain = (vectors[0] * np.float32(2) + vectors[1] * np.float32(2)) + vectors[2] * np.float32(2)
    expected = (plain / np.float32(6)).tobytes()
    crew.all(lambda exchange: exchange.all_reduce(vectors[crew.members.index(exchange)], 2.0))
    assert {vector.tobytes() for vector in vectors} == {expected}


def test_a_worker_that_comes_late_takes_over_the_state_and_takes_part(crew: Crew) -> None:
    """Nobody stops: the others go on calling while it joins, from all of them at once."""
    peers = crew.hire(3)
    crew.all(lambda exchange: exchange.connect(peers))
    weights = {id(exchange): np.zeros(100_001, np.float32) for exchange in crew.members}
    steps = dict.fromkeys(weights, 0)
    enough = threading.Event()

    def train(exchange: Exchange) -> int:
        mine = weights[id(exchange)]
        while True:
            vector = np.full(mine.size, 1.0 if exchange is not crew.members[-1] else 5.0, np.float32)
            vector[-1] = float(enough.is_set())
            state = [np.array([steps[id(exchange)]]), mine]
            try:
                exchange.all_reduce(vector, 1.0, state=lambda state=state: state)  # type: ignore[misc]
            except ViewChanged:
                continue
            steps[id(exchange)] += 1
            mine += vector
            if vector[-1] == 1.0:
                exchange.barrier()
                return len(exchange.view)

    futures = [crew.pool.submit(train, exchange) for exchange in list(crew.members)]
    everybody = crew.hire(1)
    newcomer = crew.members[3]
    for exchange in crew.members[:3]:
        exchange.admit(everybody[3])
    view, state = newcomer.join(everybody, 200_000)
    assert view.members == tuple(name(rank) for rank in range(4))
    steps[id(newcomer)] = int(state[:2].view(np.int64)[0])
    weights[id(newcomer)] = state[2:].copy()
    last = crew.pool.submit(train, newcomer)
    enough.set()
    assert [future.result(30) for future in [*futures, last]] == [4] * 4
    assert len(set(steps.values())) == 1
    assert len({values.tobytes() for values in weights.values()}) == 1
    assert weights[id(newcomer)][0] > steps[id(newcomer)] >= 1, "its own part is in the mean"


def test_a_worker_whose_certificate_nobody_was_told_does_not_join(crew: Crew) -> None:
    peers = crew.hire(2)
    crew.all(lambda exchange: exchange.connect(peers))
    everybody = crew.hire(1)
    with pytest.raises(Unavailable):
        crew.members[2].join(everybody, 10, seconds=0.5)
    assert [future.result() for future in crew.all(ones, [0, 1])] == [2.0, 2.0]


def test_who_comes_too_late_for_a_round_has_its_update_back(crew: Crew) -> None:
    peers = crew.hire(3, deadline_seconds=0.3, first_deadline_seconds=0.3)
    crew.all(lambda exchange: exchange.connect(peers))
    vectors = [np.full(1000, rank, np.float32) for rank in range(3)]
    done = [crew.pool.submit(crew.members[rank].all_reduce, vectors[rank], 1.0) for rank in (0, 2)]
    assert [future.result(20).contributors for future in done] == [(name(0), name(2))] * 2
    late = crew.members[1].all_reduce(vectors[1], 1.0)
    assert late.contributors == (name(0), name(2))
    assert late.late is not None
    assert set(late.late.tolist()) == {1.0}
    assert {vector.tobytes() for vector in vectors} == {np.full(1000, 1.0, np.float32).tobytes()}
    assert {future.result() for future in crew.all(ones)} == {3.0}


@pytest.mark.parametrize("count", [1, 5000, 300_001])
def test_a_codec_gives_all_the_same_bits(crew: Crew, count: int) -> None:
    peers = crew.hire(3)
    crew.all(lambda exchange: exchange.connect(peers))
    vectors = [np.random.default_rng(rank).standard_normal(count).astype(np.float32) for rank in range(3)]
    exact = (vectors[0] + vectors[1] + vectors[2]) / np.float32(3)
    futures = crew.all(lambda e: e.all_reduce(vectors[crew.members.index(e)], 1.0, Fp16()))
    assert len({vector.tobytes() for vector in vectors}) == 1
    assert np.abs(vectors[0] - exact).max() < 4e-3
    rest = np.concatenate([future.result().owed[1] for future in futures])  # type: ignore[index]
    assert np.abs(vectors[0] + rest - exact).max() < 2e-3


def test_codecs_that_differ_are_an_error_on_all(crew: Crew) -> None:
    peers = crew.hire(2)
    crew.all(lambda exchange: exchange.connect(peers))
    futures = crew.all(lambda e: e.all_reduce(np.zeros(5, np.float32), 1.0, Fp16() if e is crew.members[0] else None))
    assert all(isinstance(future.exception(), InvalidInput) for future in futures)


def test_values_that_are_absurd_are_refused_by_name(crew: Crew) -> None:
    peers = crew.hire(4, norm_limit=100.0)
    crew.all(lambda exchange: exchange.connect(peers))
    futures = crew.all(lambda e: e.all_reduce(np.full(9, 1.0 if e is not crew.members[2] else 1e6, np.float32), 1.0))
    for future in futures:
        error = future.exception()
        assert isinstance(error, Absurd)
        assert (error.node, error.round) == (name(2), 1)
    assert [future.result() for future in crew.all(ones, [0, 1, 3])] == [3.0] * 3


def test_no_free_port_is_said_at_once() -> None:
    with listen("127.0.0.1", (0, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=str(port)):
            Exchange(Seat(name(0), 0, "127.0.0.1", (port, port)), WorkerKey.create())


def test_nothing_is_left_running_after_close(crew: Crew) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    peers = crew.hire(3)
    crew.all(lambda exchange: exchange.connect(peers))
    crew.all(ones)
    for exchange in crew.members:
        exchange.close()
    names = {t.name for t in threading.enumerate() if t.ident not in before and t.name.startswith("exchange")}
    assert not names
