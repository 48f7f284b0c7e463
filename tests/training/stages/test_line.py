"""Lines between workers, over TLS on loopback: what a peer may send, and what ends them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from hivenode.errors import Unavailable
from hivenode.net.local import Peer
from hivenode.training.exchange import Seat
from hivenode.training.stages.line import MAX_WAITING_LONGEST, Line, Subject, Tag

LIMIT = 1024


@pytest.fixture
def pair() -> Iterator[tuple[Line, Line]]:
    lines = [Line(Seat(f"node{rank}".ljust(32, "x"), rank, "127.0.0.1")) for rank in range(2)]
    peers = [
        Peer(f"node{r}".ljust(32, "x"), r, "127.0.0.1", line.port, line.certificate) for r, line in enumerate(lines)
    ]
    for line in lines:
        line.limit = LIMIT
    other = threading.Thread(target=lines[1].connect, args=(peers,))
    other.start()
    lines[0].connect(peers)
    other.join()
    yield lines[0], lines[1]
    for line in lines:
        line.close()


def test_messages_wait_until_they_are_asked_for(pair: tuple[Line, Line]) -> None:
    sender, receiver = pair
    for number in (2, 1):
        sender.send(1, Tag(Subject.activation, 0, number), bytes([number]) * 8)
    assert [receiver.receive(0, Tag(Subject.activation, 0, number), 8)[0] for number in (1, 2)] == [1, 2]


@pytest.mark.parametrize(("tags", "length"), [
    ([Tag(Subject.activation, 0)], LIMIT + 1),
    ([Tag(Subject.activation, 0)] * 2, 8),
    ([Tag(Subject.activation, 0, number) for number in range(MAX_WAITING_LONGEST + 1)], LIMIT),
])  # fmt: skip
def test_a_peer_that_sends_too_much_ends_the_line(pair: tuple[Line, Line], tags: list[Tag], length: int) -> None:
    sender, receiver = pair
    for tag in tags:
        sender.send(1, tag, bytes(length))
    with pytest.raises(Unavailable, match="not of the protocol"):
        receiver.receive(0, Tag(Subject.gradient, 0), 8)


def test_another_length_than_is_due_ends_the_line(pair: tuple[Line, Line]) -> None:
    sender, receiver = pair
    sender.send(1, Tag(Subject.activation, 0), bytes(8))
    with pytest.raises(Unavailable, match="8 bytes where 16 are due"):
        receiver.receive(0, Tag(Subject.activation, 0), 16)
