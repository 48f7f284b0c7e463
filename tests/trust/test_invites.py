from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivenode.errors import Corrupted, Exhausted, InvalidInput, Refused
from hivenode.spec.values import Role
from hivenode.trust.authority import Authority
from hivenode.trust.invites import OPEN_INVITES, Invite, InviteBook, read_token

HIVE = Authority.from_seed(b"hive").hive_id
ADDRESSES = ("192.168.1.5:7447", "[fd00::1]:7447")
ROLES = (Role.worker,)


def issue(book: InviteBook, *, uses: int = 1, expires_at: float = 100.0, now: float = 0.0, seed: int = 1) -> Invite:
    rng = random.Random(seed)
    return book.issue(HIVE, ADDRESSES, ROLES, uses=uses, expires_at=expires_at, rng_bytes=rng.randbytes, now=now)


def test_a_token_is_one_word_and_reads_back() -> None:
    invite = issue(InviteBook(None))
    token = invite.token()
    assert token.startswith("HIVE1-")
    assert token.isalnum() is False
    assert token.replace("-", "").isalnum()
    assert read_token(token) == invite


def test_a_token_survives_mail_programs() -> None:
    invite = issue(InviteBook(None))
    token = invite.token()
    assert read_token(f"  {token[:40]}\n   {token[40:].lower()}\n") == invite


@given(st.data())
def test_every_single_typo_is_noticed(data: st.DataObject) -> None:
    token = issue(InviteBook(None)).token()
    place = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567-018"))
    if token[place] != letter:
        with pytest.raises(InvalidInput):
            read_token(token[:place] + letter + token[place + 1 :])


def test_what_is_wrong_with_a_token_is_said() -> None:
    token = issue(InviteBook(None)).token()
    for text, reason in (
        (token[:-8], "incomplete"),
        (token[:50] + "0" + token[51:], "'0' at character 51"),
        (token[:50] + ("A" if token[50] != "A" else "B") + token[51:], "checksum"),
        (token.replace("HIVE1", "HIVE2"), "another version"),
        ("hello", "begins with HIVE1-"),
        ("", "begins with HIVE1-"),
        ("HIVE1-", "incomplete"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            read_token(text)


def test_the_secret_is_not_in_the_book_nor_in_a_traceback() -> None:
    book = InviteBook(None)
    invite = issue(book)
    assert invite.secret not in book.state()
    assert invite.secret.hex() not in repr(invite)
    assert repr(invite.secret) not in repr(invite)


def test_an_invite_gives_its_roles_as_often_as_it_says() -> None:
    book = InviteBook(None)
    invite = issue(book, uses=2)
    assert book.redeem(invite.id, invite.secret, "a", 1.0) == ROLES
    assert book.redeem(invite.id, invite.secret, "b", 2.0) == ROLES
    with pytest.raises(Refused, match="used 2 times"):
        book.redeem(invite.id, invite.secret, "c", 3.0)


def test_the_same_node_again_is_not_a_second_use_even_after_a_restart() -> None:
    book = InviteBook(None)
    invite = issue(book)
    book.redeem(invite.id, invite.secret, "a", 1.0)
    again = InviteBook(book.state())
    assert again.redeem(invite.id, invite.secret, "a", 2.0) == ROLES
    with pytest.raises(Refused, match="used"):
        again.redeem(invite.id, invite.secret, "b", 3.0)


def test_an_expired_invite_is_refused_by_name() -> None:
    book = InviteBook(None)
    invite = issue(book, expires_at=100.0)
    with pytest.raises(Refused, match="expired"):
        book.redeem(invite.id, invite.secret, "a", 100.0)


def test_a_wrong_secret_looks_like_an_unknown_invite_and_costs_no_use() -> None:
    book = InviteBook(None)
    invite = issue(book)
    errors = []
    for id, secret in ((invite.id, bytes(16)), ("unknown", invite.secret), (invite.id, b"")):
        with pytest.raises(Refused) as caught:
            book.redeem(id, secret, "a", 1.0)
        errors.append(caught.value.sentence.replace(id, "ID"))
    assert len(set(errors)) == 1
    assert book.redeem(invite.id, invite.secret, "b", 1.0) == ROLES


def test_the_book_is_bounded_and_expired_invites_make_room() -> None:
    book = InviteBook(None)
    for seed in range(OPEN_INVITES):
        issue(book, seed=seed, expires_at=50.0 if seed < 3 else 1e9)
    with pytest.raises(Exhausted):
        issue(book, seed=1000, now=10.0)
    issue(book, seed=1001, now=60.0)
    assert len(msgspec.msgpack.decode(book.state())) == OPEN_INVITES


def test_a_damaged_book_is_an_error_not_an_empty_one() -> None:
    with pytest.raises(Corrupted):
        InviteBook(b"\xff\xff")
