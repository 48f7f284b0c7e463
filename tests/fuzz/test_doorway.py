"""Whatever arrives on a connection of a member: the link ends in order, nothing is left behind, nothing goes wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivenode.net.codec import ProtocolError, decode, encode
from hivenode.net.messages import Certificate, Keep, Message
from tests.fuzz.doorway import Looks, seeds
from tests.fuzz.messages import messages
from tests.security.wire import UPGRADE

RELAXED = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def looks() -> Iterator[Looks]:
    one = Looks()
    yield one
    one.close()


def payloads(heard: list[Message]) -> list[bytes]:
    found = []
    for message in heard:
        try:
            found.append(encode(message))
        except ProtocolError:
            continue
    return found


@RELAXED
@given(heard=st.lists(messages(), max_size=4))
def test_proper_messages_are_heard(looks: Looks, heard: list[Message]) -> None:
    proper = payloads([message for message in heard if not isinstance(message, Certificate)])  # one of no node ends it
    handled = sum(not isinstance(decode(payload), Keep) for payload in proper)
    for cut in (seeds(proper, looks.hello)[way] for way in (0, 1, 2, 8, 9)):
        assert looks.attempt(cut) == handled


@RELAXED
@given(
    heard=st.lists(messages(), max_size=4),
    way=st.integers(0, 9),
    damage=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6),
    cuts=st.lists(st.integers(0, 1 << 12), max_size=4),
    tail=st.binary(max_size=200),
)
def test_damaged_ones_and_bytes_of_any_kind(
    looks: Looks, heard: list[Message], way: int, damage: list[tuple[int, int]], cuts: list[int], tail: bytes
) -> None:
    cut = [bytearray(part) for part in seeds(payloads(heard), looks.hello)[way]]
    for place, value in damage:
        part = cut[place % len(cut)]
        if len(part) > 1:
            part[1 + place % (len(part) - 1)] = value
    split: list[bytes] = []
    for number, part in enumerate(cut):
        at = cuts[number] % (len(part) + 1) if number < len(cuts) else len(part)
        split += [bytes(part[:at]), bytes(part[at:])] if 0 < at < len(part) else [bytes(part)]
    looks.everything([*split, tail])


@pytest.mark.parametrize("header", [b"Upgrade: websocket", b"Sec-WebSocket-Key: ", b"Host: x"])
def test_headers_that_are_no_text_are_no_defect(looks: Looks, header: bytes) -> None:
    assert looks.attempt([b"\0" + UPGRADE.encode().replace(header, header + b"\x80")]) == 0
