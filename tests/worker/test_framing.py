"""The local channel: what one side says the other hears, and nothing else gets through."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivenode.errors import Corrupted, InvalidInput
from hivenode.net.framing import Channel, encode, read_from_worker
from hivenode.net.local import MAX_LOCAL_FRAME, Cancel, Log, PeerLost, Predict, Ready


def hear(raw: bytes) -> Channel:
    ours, theirs = socket.socketpair()
    ours.sendall(raw)
    ours.close()
    return Channel(theirs)


async def test_both_directions() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    worker = Channel(theirs)
    said = [Ready(1, 2, "c", 3), Log("info", "hello", {"a": 1})]
    for message in said:
        worker.send(message)
    assert [await read_from_worker(reader) for _ in said] == said
    orders = [Cancel("stop"), PeerLost("n" * 32), Predict(1, "m", [[1.0, 2.0]])]
    writer.write(b"".join(encode(order) for order in orders))
    assert [worker.receive() for _ in orders] == orders
    worker.close()
    assert await read_from_worker(reader) is None
    writer.close()


def test_the_end_of_the_channel_is_none_and_inside_a_frame_an_error() -> None:
    frame = encode(Cancel("stop"))
    channel = hear(frame)
    assert channel.receive() == Cancel("stop")
    assert channel.receive() is None
    for cut in (1, 4, len(frame) - 1):
        with pytest.raises(Corrupted):
            hear(frame[:cut]).receive()


@pytest.mark.parametrize("raw", [struct.pack("!I", MAX_LOCAL_FRAME + 1), encode(Ready(1, 2, "", 3))])
def test_too_long_or_not_for_this_side(raw: bytes) -> None:
    with pytest.raises(Corrupted):
        hear(raw).receive()


@given(body=st.binary(max_size=200))
async def test_garbage_from_a_worker_is_an_error_the_daemon_knows(body: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(struct.pack("!I", len(body)) + body)
    reader.feed_eof()
    with pytest.raises(Corrupted):
        await read_from_worker(reader)


def test_a_message_over_the_bound_is_not_sent() -> None:
    with pytest.raises(InvalidInput):
        encode(Predict(1, "m", [[0.5] * (MAX_LOCAL_FRAME // 8)]))
