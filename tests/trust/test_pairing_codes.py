"""Codes that people type, and the proof that two machines were given the same one."""

from __future__ import annotations

import random

import pytest

from hivenode.errors import InvalidInput, Refused
from hivenode.trust.pairing_codes import MESSAGE_BYTES, Exchange, make_code, proves, read_code

CODE = "12345678"


def swaps(code: str) -> set[str]:
    """All codes that differ by one digit, or by two neighbours swapped."""
    wrong = {code[:i] + d + code[i + 1 :] for i in range(len(code)) for d in "0123456789"}
    wrong |= {code[:i] + code[i + 1] + code[i] + code[i + 2 :] for i in range(len(code) - 1)}
    return wrong - {code}


def test_a_code_is_read_however_it_is_typed() -> None:
    rng = random.Random(1)
    for _ in range(200):
        code = make_code(rng.randrange)
        assert len(code) == 11
        assert read_code(code) == read_code(code.replace("-", "")) == read_code(f" {code.replace('-', ' ')} ")
    assert read_code(make_code(lambda below: 0)) == "00000000"
    assert len({make_code() for _ in range(100)}) == 100


def test_a_slip_of_the_finger_is_noticed_before_anything_is_sent() -> None:
    rng = random.Random(2)
    for _ in range(20):
        code = make_code(rng.randrange).replace("-", "")
        for wrong in swaps(code):
            with pytest.raises(InvalidInput, match="check digit"):
                read_code(wrong)
    for text in ("", "123", "HIVE1-ABCDEF", "1234567890", "１２３４５６７８９", "12345678x"):
        with pytest.raises(InvalidInput, match="not a pairing code"):
            read_code(text)


def test_two_machines_with_one_code_share_everything() -> None:
    joiner, member = Exchange(CODE, joiner=True), Exchange(CODE, joiner=False)
    assert len(joiner.message) == len(member.message) == MESSAGE_BYTES
    here, there = joiner.finish(member.message), member.finish(joiner.message)
    assert proves(here.joiner_proof, there.joiner_proof)
    assert proves(here.member_proof, there.member_proof)
    assert here.joiner_proof != here.member_proof
    assert here.open(there.seal(b"secret", joiner=False), joiner=False) == b"secret"
    assert there.open(here.seal(b"name", joiner=True), joiner=True) == b"name"
    with pytest.raises(Refused):  # what one said is not taken for the other's
        here.open(here.seal(b"name", joiner=True), joiner=False)


def test_with_different_codes_nothing_fits() -> None:
    joiner, member = Exchange(CODE, joiner=True), Exchange("12345679", joiner=False)
    here, there = joiner.finish(member.message), member.finish(joiner.message)
    assert not proves(here.joiner_proof, there.joiner_proof)
    assert not proves(here.member_proof, there.member_proof)
    with pytest.raises(Refused):
        here.open(there.seal(b"secret", joiner=False), joiner=False)


def test_no_two_exchanges_are_alike_and_none_says_anything_of_another() -> None:
    member = [Exchange(CODE, joiner=False) for _ in range(2)]
    joiner = Exchange(CODE, joiner=True)
    first, second = (one.finish(joiner.message) for one in member)
    assert member[0].message != member[1].message
    assert not proves(first.joiner_proof, second.joiner_proof)


@pytest.mark.parametrize(
    "message",
    [b"", b"A" + bytes(32), b"B" + bytes(32), b"B" + b"\xff" * 32, b"B" + (1).to_bytes(32, "little"), b"S" + bytes(32),
     bytes(MESSAGE_BYTES), bytes(1000)],
)  # fmt: skip
def test_a_malformed_message_is_refused(message: bytes) -> None:
    """Among them points off the curve and of small order, which would give the key away."""
    with pytest.raises(Refused, match="malformed"):
        Exchange(CODE, joiner=True).finish(message)


def test_a_message_sent_back_to_its_sender_is_refused() -> None:
    for side in (b"A", b"B"):
        exchange = Exchange(CODE, joiner=True)
        with pytest.raises(Refused):
            exchange.finish(side + exchange.message[1:])


def test_garbage_of_every_kind_is_refused_and_never_breaks_anything() -> None:
    rng = random.Random(3)
    for _ in range(100):
        exchange = Exchange(CODE, joiner=True)
        try:
            shared = exchange.finish(b"B" + rng.randbytes(32))
        except Refused:
            continue
        assert not proves(shared.member_proof, bytes(32))
