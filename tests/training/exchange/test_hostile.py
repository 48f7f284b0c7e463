"""Whoever misbehaves on a worker's port, with a trusted certificate or without one, hurts at most itself."""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

from hivenode.net.local import Peer
from hivenode.training.exchange import WorkerKey
from hivenode.training.exchange.channel import Channel
from hivenode.training.exchange.clock import now
from hivenode.training.exchange.link import CONTROL, HEADER, HEARTBEAT, MAX_CONTROL, MAX_FRAME
from hivenode.training.exchange.meeting import MAX_GREETING, Meeting, listen
from tests.training.exchange.test_exchange import Crew, crew, name, ones  # noqa: F401 (a fixture)

FOREIGN = {
    "a giant control message": HEADER.pack(CONTROL, 0, 0, 0, 0, 0, 2**32 - 1),
    "control one byte too long": HEADER.pack(CONTROL, 0, 0, 0, 0, 0, MAX_CONTROL + 1),
    "giant numbers": HEADER.pack(1, 0, 0, 1, 0, 1, 2**32 - 4),
    "numbers one too long": HEADER.pack(1, 0, 0, 1, 0, 1, MAX_FRAME + 4),
    "numbers without a number": HEADER.pack(1, 0, 0, 1, 0, 0, 8) + bytes(8),
    "numbers far beyond the vector": HEADER.pack(1, 0, 0, 1, 2**64 - 1, 100, 400) + bytes(400),
    "no such frame": HEADER.pack(255, 0, 0, 0, 0, 0, 4) + bytes(4),
    "a heartbeat with a body": HEADER.pack(HEARTBEAT, 0, 0, 0, 0, 0, 4) + bytes(4),
    "nested arrays": HEADER.pack(CONTROL, 0, 0, 0, 0, 0, MAX_CONTROL) + b"\x91" * MAX_CONTROL,
    "giant counts": HEADER.pack(CONTROL, 0, 0, 0, 0, 0, 6) + b"\xdf\xff\xff\xff\xff\x00",
    "random bytes": random.Random(3).randbytes(5000),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_peer_that_speaks_something_else_is_put_out(crew: Crew, foreign: bytes) -> None:  # noqa: F811
    peers = crew.hire(2)
    key, listener = WorkerKey.create(), listen("127.0.0.1", (0, 0))
    peers.append(Peer(name(2), 2, "127.0.0.1", listener.getsockname()[1], key.certificate))
    linked = threading.Semaphore(0)
    kept: list[Channel] = []

    def meet(rank: int, out: Channel, into: Channel) -> None:
        kept.extend((out, into))
        with contextlib.suppress(OSError):
            out.send(foreign)
        linked.release()

    meeting = Meeting(2, key, listener, peers[:2], meet, now() + 10)
    meeting.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    futures = crew.all(lambda exchange: exchange.connect(peers))
    assert linked.acquire(timeout=10)
    assert linked.acquire(timeout=10)
    for future in futures:
        assert set(future.result().members) >= {name(0), name(1)}
    for _ in range(5):  # the round in which it is put out is void for the others
        again = crew.all(ones)
        if all(future.exception() is None for future in again):
            break
    assert [future.result() for future in again] == [2.0, 2.0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10, "kilobytes"
    meeting.close()
    for connection in kept:
        connection.close()


@pytest.fixture
def dribblers() -> Iterator[list[socket.socket]]:
    found: list[socket.socket] = []
    yield found
    for connection in found:
        connection.close()


def test_dribblers_do_not_keep_the_peers_waiting_for_ever(dribblers: list[socket.socket]) -> None:
    """As many as are greeted at once, each sending a byte now and then: they are out when the time is over."""
    keys = [WorkerKey.create(), WorkerKey.create()]
    listeners = [listen("127.0.0.1", (0, 0)) for _ in keys]
    peers = [
        Peer(name(rank), rank, "127.0.0.1", listener.getsockname()[1], key.certificate)
        for rank, (key, listener) in enumerate(zip(keys, listeners, strict=True))
    ]
    linked, over = threading.Semaphore(0), threading.Event()
    kept: list[Channel] = []

    def meet(rank: int, out: Channel, into: Channel) -> None:
        kept.extend((out, into))
        linked.release()

    upper = Meeting(1, keys[1], listeners[1], peers[:1], meet, now() + 30, greeting_seconds=0.6)
    upper.start()
    dribblers += [socket.create_connection(("127.0.0.1", peers[1].port)) for _ in range(2 * MAX_GREETING)]

    def dribble() -> None:
        record = iter(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))
        for byte in record:
            for connection in dribblers:
                with contextlib.suppress(OSError):
                    connection.send(bytes([byte]))
            if over.wait(0.1):
                return

    dribbling = threading.Thread(target=dribble)
    dribbling.start()
    lower = Meeting(0, keys[0], listeners[0], peers[1:], meet, now() + 30)
    lower.start()
    assert linked.acquire(timeout=20)
    assert linked.acquire(timeout=20)
    over.set()
    dribbling.join()
    for meeting in (lower, upper):
        meeting.close()
    for connection in kept:
        connection.close()
