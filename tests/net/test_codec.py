"""Frames: plain msgpack on the wire, and nothing but valid messages out of it."""

from __future__ import annotations

import random

import msgpack
import pytest

from hivenode.net.codec import ProtocolError, decode, encode
from hivenode.net.messages import MAX_FRAME, Call, Event, FeedDelta, FeedHeads, Hold, LogsReply, Ping, Reply
from hivenode.spec.values import BlobRef

NODE = "a" * 32
DIGEST = "0" * 64


def event(body: bytes) -> Event:
    return Event(author=NODE, seq=1, prev=bytes(32), hlc=5, body=body, signature=bytes(64))


@pytest.mark.parametrize(
    "message",
    [
        Ping(sequence=3),
        FeedHeads(heads={NODE: 7}, reply=True),
        FeedDelta(events=(event(b"body"),)),
        Call(id=9, request=Hold(blob=BlobRef(DIGEST, 5))),
        Reply(id=9, response=LogsReply(lines=("{}",), next=1, more=False)),
    ],
)
def test_a_message_survives_the_wire(message: Ping) -> None:
    assert decode(encode(message)) == message


def test_the_wire_is_plain_msgpack() -> None:
    raw = msgpack.unpackb(encode(Call(id=9, request=Hold(blob=BlobRef(DIGEST, 5)))))
    assert raw == {"t": "call", "id": 9, "request": {"t": "hold", "blob": [DIGEST, 5]}}
    assert decode(msgpack.packb({"t": "ping", "sequence": 4, "gossip": [], "from_a_newer_build": True})) == Ping(4)


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (b"", "0 bytes"),
        (b"\x90" * 1000, "Expected `object`"),
        (msgpack.packb({"t": "no such message"}), "no such message"),
        (msgpack.packb({"t": "ping"}), "sequence"),
        (msgpack.packb({"t": "ping", "sequence": -1}), "sequence"),
        (msgpack.packb({"t": "heads", "heads": {"short": 1}}), "heads"),
        (msgpack.packb({"t": "delta", "events": [[NODE, 1, b"short", 5, b"", bytes(64)]]}), "events"),
        (b"\x82\xa1t\xa4ping\xa8sequence\xdf\xff\xff\xff\xff", "9 bytes|malformed|truncated|Expected"),
        (msgpack.packb({"t": "ping", "sequence": 1, "x": b"\xff"}) + b"\x00", "trailing"),
        (b"\x83\xa1t\xa4ping\xa8sequence\x01\xa1x" + b"\x91" * 100_000 + b"\x01", "not a valid message"),
        (bytes(MAX_FRAME + 1), "exceeds"),
    ],
)
def test_a_bad_frame_is_refused_with_the_reason(frame: bytes, named: str) -> None:
    with pytest.raises(ProtocolError, match=named):
        decode(frame)


def test_random_bytes_never_raise_anything_else() -> None:
    rng = random.Random(5)
    good = encode(FeedDelta(events=(event(b"body"),)))
    for _ in range(3000):
        frame = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        try:
            decode(bytes(frame[: rng.randint(0, len(frame))]))
        except ProtocolError:
            continue


def test_an_oversize_message_cannot_be_sent() -> None:
    with pytest.raises(ProtocolError, match=r"FeedDelta of \d+ bytes exceeds"):
        encode(FeedDelta(events=(event(bytes(70_000)), event(bytes(70_000)))))
