"""Messages with extreme values, whole and damaged, repeated and out of order: the codec and the cores take them all."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivenode.net.codec import ProtocolError, encode
from hivenode.net.messages import Message
from tests.fuzz import targets
from tests.fuzz.messages import MOST, bodies, messages

RELAXED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def frames(heard: list[Message]) -> list[bytes]:
    """Of those that fit into one."""
    found = []
    for message in heard:
        try:
            found.append(encode(message))
        except ProtocolError as error:
            assert "exceeds" in str(error)  # noqa: PT017 (the only reason there may be)
    return found


@st.composite
def traffic(draw: st.DrawFn) -> list[Message]:
    """Some messages, with repetitions, in any order."""
    made = draw(st.lists(messages(), min_size=1, max_size=6))
    again = draw(st.lists(st.sampled_from(made), max_size=4))
    return draw(st.permutations([*made, *again]))


def whatever(heard: list[Message]) -> None:
    whole = frames(heard)
    read = targets.decoded(whole)
    assert len(read) == len(whole), "what can be written can be read"
    for core in targets.CORES:
        core(read)


@RELAXED
@given(heard=traffic())
def test_the_cores_take_whatever_the_codec_lets_through(heard: list[Message]) -> None:
    whatever(heard)


@pytest.mark.slow
@settings(RELAXED, max_examples=3000)
@given(heard=traffic())
def test_the_cores_take_much_more_of_it(heard: list[Message]) -> None:
    whatever(heard)


@RELAXED
@given(
    heard=traffic(), damage=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_damaged_frames_are_refused_or_are_other_messages(heard: list[Message], damage: list[tuple[int, int]]) -> None:
    damaged = []
    for frame in frames(heard):
        changed = bytearray(frame)
        for place, value in damage:
            changed[place % len(changed)] = value
        damaged.append(bytes(changed))
        damaged.append(bytes(changed[: damage[0][0] % len(changed)]))
    read = targets.decoded(damaged)
    for core in targets.CORES:
        core(read)


@RELAXED
@given(said=st.lists(st.tuples(st.integers(0, 3), st.integers(0, MOST), bodies()), max_size=12))
def test_whatever_members_state_folds_to_the_same_views(said: list[tuple[int, int, object]]) -> None:
    targets.folds((number, hlc, msgspec.msgpack.encode(body)) for number, hlc, body in said)


@RELAXED
@given(data=st.binary(max_size=2000))
def test_bytes_of_any_kind(data: bytes) -> None:
    targets.everything(data)
