"""A member of a real hive that sends whatever Hypothesis thinks of: messages with values at the edges, damaged ones,
bytes that are no frames. Whoever breaks the protocol is cut off and named, and nobody else notices."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hivenode.net.codec import ProtocolError, encode
from hivenode.net.messages import Message, Ping
from tests.fuzz.messages import NODES, messages
from tests.security.siege import MORE_BYTES, Attacker, Siege, siege
from tests.security.wire import BINARY, CLOSE, PING, PONG, Wire, frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

RELAXED = settings(
    max_examples=10,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # what failed is printed; to shrink it against a real daemon would take minutes
)
MANY = int(os.environ.get("HIVENODE_FUZZ_EXAMPLES", "1000"))
"""Of the long runs."""
MOMENT = 0.3
"""Seconds that the node has to end a link with bytes of which it may wait for more."""
LAST = itertools.count(2**40)
"""Numbers of the pings that ask whether all is read."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hive(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Siege]:
    async with siege(tmp_path_factory.mktemp("siege")) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def steady(hive: Siege) -> AsyncIterator[Siege]:
    """All the attempts of a test together cost no more memory than one attack may."""
    await attempt(hive, [], [])
    before = hive.rss
    yield hive
    assert hive.rss - before < MORE_BYTES, f"{(hive.rss - before) >> 20} MB more"


Damage = list[tuple[int, int, int]]
"""Where, how (1 replace, 2 insert, 3 remove, 4 cut off, 5 repeat) and with what byte."""
DAMAGE = st.lists(st.tuples(st.integers(0, 1 << 17), st.integers(1, 5), st.integers(0, 255)), max_size=4)


def damaged(data: bytes, damage: Damage) -> bytes:
    changed = bytearray(data)
    for place, way, value in damage:
        at = place % (len(changed) + 1)
        match way:
            case 1:
                changed[at : at + 1] = bytes([value])
            case 2:
                changed[at:at] = bytes([value]) * (1 + value % 7)
            case 3:
                del changed[at : at + 1 + value % 7]
            case 4:
                del changed[at:]
            case _:
                changed[at:at] = changed[at : at + value]
    return bytes(changed)


def payloads(heard: list[Message], names: list[str]) -> list[bytes]:
    """What these messages are on the wire, about nodes that there are; without those that fit into no frame."""
    found = []
    for message in heard:
        try:
            data = encode(message)
        except ProtocolError:
            continue
        for unknown, known in zip(NODES, names, strict=False):
            data = data.replace(unknown.encode(), known.encode())
        found.append(data)
    return found


async def known_names(hive: Siege, mallory: Attacker) -> list[str]:
    status = await hive.ash.api("GET", "/v1/status")
    honest = [member["node"] for member in status["members"] if member["name"] in ("ash", "birch")]
    return [*honest, mallory.id]


async def ended_or_read(wire: Wire) -> bool:
    """Whether the other side ended the link instead of reading everything to the end."""
    number = next(LAST)
    wire.say(Ping(sequence=number))
    while (answer := await wire.message()) is not None:
        if getattr(answer, "sequence", None) == number:
            return False
    return True


async def attempt(hive: Siege, heard: list[Message], damage: list[Damage]) -> None:
    """Send well-framed payloads, some damaged. Either all is read, or the link is ended and the offender named."""
    mallory = await hive.attacker()
    data = payloads(heard, await known_names(hive, mallory))
    async with hive.attack("fuzz", epoch=False), await mallory.link() as wire:
        for number, payload in enumerate(data):
            wire.raw(frame(BINARY, damaged(payload, damage[number] if number < len(damage) else [])))
        ended = await ended_or_read(wire)
    if ended:
        await named(hive, mallory)


async def named(hive: Siege, mallory: Attacker) -> None:
    peers = await hive.ash.until(
        "/v1/peers", lambda p: any(k["node"] == mallory.id and k["last_error"] for k in p["known"]), 10
    )
    (known,) = (known for known in peers["known"] if known["node"] == mallory.id)
    assert "broke the protocol" in known["last_error"]
    assert not known["linked"]


TRAFFIC = given(heard=st.lists(messages(), min_size=1, max_size=6), damage=st.lists(DAMAGE, max_size=6))


@RELAXED
@TRAFFIC
async def test_messages_of_any_kind_and_damaged_ones(steady: Siege, heard: list[Message], damage: list[Damage]) -> None:
    await attempt(steady, heard, damage)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(RELAXED, max_examples=MANY)
@TRAFFIC
async def test_many_more_of_them(steady: Siege, heard: list[Message], damage: list[Damage]) -> None:
    await attempt(steady, heard, damage)


async def raw(hive: Siege, heard: list[Message], damage: Damage, tail: bytes) -> None:
    """Send bytes in which the frames themselves are damaged. The node may wait for the rest of one, or read a goodbye;
    what it ends for a breach, it names."""
    mallory = await hive.attacker()
    whole = b"".join(frame(BINARY, data) for data in payloads(heard, await known_names(hive, mallory)))
    code = 0
    async with hive.attack("fuzz of frames", epoch=False), await mallory.link() as wire:
        wire.raw(damaged(whole, damage) + tail)
        try:
            async with asyncio.timeout(MOMENT):
                while True:
                    opcode, payload = await wire.frame()
                    if opcode == PING:
                        wire.raw(frame(PONG, payload))
                    if opcode == CLOSE:
                        code = int.from_bytes(payload[:2], "big")
                        break
        except TimeoutError:
            pass
    if code in (1002, 1007, 1009):
        await named(hive, mallory)


BYTES = given(heard=st.lists(messages(), max_size=4), damage=DAMAGE, tail=st.binary(max_size=300))


@RELAXED
@BYTES
async def test_bytes_of_any_kind(steady: Siege, heard: list[Message], damage: Damage, tail: bytes) -> None:
    await raw(steady, heard, damage, tail)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(RELAXED, max_examples=MANY)
@BYTES
async def test_many_more_bytes(steady: Siege, heard: list[Message], damage: Damage, tail: bytes) -> None:
    await raw(steady, heard, damage, tail)
