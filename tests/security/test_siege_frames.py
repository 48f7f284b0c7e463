"""A member of a real hive that breaks the protocol is cut off, kept out for a while and named; nobody else notices."""

from __future__ import annotations

import random
import time

import msgpack
import pytest
import pytest_asyncio

from hivenode.net.codec import encode
from hivenode.net.messages import MAX_FRAME, FeedHeads, Ping, PushPull
from tests.security.siege import Siege, siege
from tests.security.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Wire, frame

FLOOD_SECONDS = 20.0
"""Longest that a flood goes on if nobody ends it."""

BROKEN = {
    "nested arrays": frame(BINARY, b"\x90" * MAX_FRAME),
    "a mebibyte of empty arrays": frame(BINARY, b"\x90" * (1 << 20)),
    "arrays in arrays": frame(BINARY, b"\x91" * MAX_FRAME),
    "giant counts": frame(BINARY, b"\xdd\xff\xff\xff\xff" + b"\xdf\xff\xff\xff\xff" * 1000),
    "a giant string": frame(BINARY, b"\x81\xa1t\xdb\xff\xff\xff\xff"),
    "random bytes": frame(BINARY, random.Random(3).randbytes(4000)),
    "nothing": frame(BINARY, b""),
    "out of range": frame(BINARY, msgpack.packb({"t": "ping", "sequence": 2**64 - 1})),
    "trailing bytes": frame(BINARY, encode(Ping(sequence=1)) + b"x"),
    "text": frame(TEXT, b"hello"),
    "text that is not UTF-8": frame(TEXT, b"\xff\xfe"),
    "a giant length": frame(BINARY, b"", declared=2**63 - 1),
    "a long frame": frame(BINARY, bytes(4 * MAX_FRAME)),
    "compressed": frame(BINARY, encode(Ping(sequence=1)), rsv=4),
    "reserved bits": frame(BINARY, b"x", rsv=3),
    "a reserved opcode": frame(5, b"x"),
    "a long ping": frame(PING, bytes(126)),
    "a ping in pieces": frame(PING, b"x", fin=False),
    "a continuation of nothing": frame(CONTINUATION, b"x"),
    "two beginnings": frame(BINARY, b"x", fin=False) * 2,
    "a message without end": frame(BINARY, b"x", fin=False) + frame(CONTINUATION, bytes(1000), fin=False) * 200,
    "a close code that is none": frame(CLOSE, b"\x00\x01"),
}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hive(tmp_path_factory: pytest.TempPathFactory):
    async with siege(tmp_path_factory.mktemp("siege")) as one:
        yield one


async def test_whoever_sends_what_is_no_message_is_cut_off_and_named(hive: Siege) -> None:
    for name, bad in BROKEN.items():
        mallory = await hive.attacker()
        async with hive.attack(name), await mallory.link() as wire:
            wire.say(Ping(sequence=5))
            wire.raw(bad)
            code, _ = await wire.ended()
            assert code in (0, 1002, 1007, 1009), name
        peers = await hive.ash.api("GET", "/v1/peers")
        (known,) = (known for known in peers["known"] if known["node"] == mallory.id)
        assert "broke the protocol" in known["last_error"], name
        assert not known["linked"], name


async def test_an_offender_is_kept_out_for_a_while_and_the_doctor_knows(hive: Siege) -> None:
    mallory = await hive.attacker()
    async with hive.attack("one offence, then again"):
        async with await mallory.link() as wire:
            wire.raw(frame(TEXT, b"hello"))
            await wire.ended()
        with pytest.raises(AssertionError, match=r"503.*may try again"):
            await mallory.link()
        await hive.named(mallory, "unexpected TEXT frame")
        examined = await hive.ash.api("GET", f"/v1/doctor?peer={mallory.id}")
        assert "broke the protocol" in examined["peers"][0]["found"]
        assert "hivenode revoke" in examined["peers"][0]["fix"]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            wire = await mallory.link()
        except AssertionError:
            continue
        await wire.close()
        return
    pytest.fail("a first offence is forgiven after seconds")


async def flood(wire: Wire, data: bytes) -> float:
    """Write until the other side ends it; seconds it took."""
    began = time.monotonic()
    while await wire.flushed():
        wire.raw(data)
        assert time.monotonic() - began < FLOOD_SECONDS, "nobody ended it"
    return time.monotonic() - began


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_a_flood_of_pings_is_ended(hive: Siege, opcode: int) -> None:
    mallory = await hive.attacker()
    async with hive.attack(f"flood of opcode {opcode}"), await mallory.link() as wire:
        await flood(wire, frame(opcode, b"ping") * 1000)
    await hive.named(mallory, "Control messages came too fast")


async def test_frames_that_never_become_a_message_are_ended(hive: Siege) -> None:
    mallory = await hive.attacker()
    async with hive.attack("empty pieces without end"), await mallory.link() as wire:
        wire.raw(frame(BINARY, b"", fin=False))
        await flood(wire, frame(CONTINUATION, b"", fin=False) * 10_000)
    await hive.named(mallory, "are no messages")


@pytest.mark.parametrize("message", [PushPull(members=(), reply=True), FeedHeads(heads={}, reply=True)])
async def test_a_flood_of_questions_is_ended(hive: Siege, message: PushPull | FeedHeads) -> None:
    mallory = await hive.attacker()
    async with hive.attack(f"flood of {type(message).__name__}"), await mallory.link() as wire:
        await flood(wire, frame(BINARY, encode(message)) * 100)
    await hive.named(mallory, f"{type(message).__name__} messages came too fast")


async def test_one_that_never_reads_costs_a_bounded_queue(hive: Siege) -> None:
    mallory = await hive.attacker()
    async with hive.attack("a reader that never reads"), await mallory.link() as wire:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        began = time.monotonic()
        while time.monotonic() - began < 3.0 and await wire.flushed():
            wire.say(FeedHeads(heads={}, reply=True))
            wire.say(PushPull(members=(), reply=True))


async def test_a_byte_at_a_time_is_no_crime_and_no_harm(hive: Siege) -> None:
    mallory = await hive.attacker()
    async with hive.attack("a byte at a time"), await mallory.link() as wire:
        for byte in frame(BINARY, encode(Ping(sequence=77))):
            wire.raw(bytes([byte]))
            assert await wire.flushed()
        while (answer := await wire.message()) is not None:
            if getattr(answer, "sequence", 0) == 77:
                break
        assert answer is not None
