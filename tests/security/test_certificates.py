"""Certificates that end while nodes talk: links that go on with a new one, links that end with the old one, and what
those whose certificate is not good are told."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hivenode.errors import Refused, Unavailable
from hivenode.net.messages import Certificate, Ping
from hivenode.net.transport import LinkEnd, Refusal, Refusing
from hivenode.trust.credentials import Credentials
from tests.net.nodes import AUTHORITY, STRANGERS, credentials_of, linked, node


def shortly(number: int, seconds: float) -> Credentials:
    """Credentials whose certificate ends in so many seconds."""
    found = credentials_of(number)
    pem = AUTHORITY.certify(found.identity.public_key, now=datetime.now(UTC), lifetime=timedelta(seconds=seconds))
    return replace(found, certificate_pem=pem)


class Book:
    """What a node was told of those it turned away."""

    def __init__(self) -> None:
        self.refused: list[Refusal] = []

    def __call__(self, refusal: Refusal) -> None:
        self.refused.append(refusal)


async def vouch(peer: str) -> str:
    for number in range(1, 9):
        found = credentials_of(number)
        if found.identity.node_id == peer:
            return found.certificate_pem
    raise Refused(f"Node {peer} is not a member.", fix="Invite it.")


async def test_a_link_outlives_its_certificate_only_if_a_new_one_is_shown(tmp_path: Path) -> None:
    renewing, careless = shortly(2, 3), shortly(3, 3)
    async with (
        node(1, tmp_path) as a,
        node(2, tmp_path, credentials=renewing) as b,
        node(3, tmp_path, credentials=careless) as c,
    ):
        await linked(a, b)
        await linked(a, c)
        b.transport.renew(credentials_of(2))
        assert await a.handler.one("down") == (c.id, LinkEnd.identity)
        assert time.time() >= careless.paper.ends
        failed = await c.handler.one("down")
        assert failed[0] == a.id
        # Long past the end of the first certificate the same link is there, and carries messages.
        assert list(a.transport.links) == [b.id]
        assert b.transport.send(a.id, Ping(sequence=7))
        assert (await a.handler.one("message"))[1] == Ping(sequence=7)
        assert len(a.handler.all("up")) == 2


async def test_a_certificate_shown_on_a_link_must_be_the_peers_own_and_the_authoritys(tmp_path: Path) -> None:
    for wrong in (credentials_of(3), credentials_of(2, STRANGERS)):
        async with node(1, tmp_path) as a, node(2, tmp_path) as b:
            await linked(a, b)
            b.transport.send(a.id, Certificate(der=wrong.certificate_der))
            assert await a.handler.one("down") == (b.id, LinkEnd.protocol)


async def test_a_node_whose_certificate_has_expired_is_told_so_and_gets_a_new_one(tmp_path: Path) -> None:
    old = credentials_of(2, now=datetime.now(UTC) - timedelta(days=40))
    book = Book()
    async with (
        node(1, tmp_path, on_refused=book, certify=vouch) as a,
        node(2, tmp_path, credentials=old) as b,
    ):
        b.want(a)
        failed = await b.handler.one("failed")
        assert failed[:3] == (a.id, a.address, LinkEnd.identity)
        assert "expired 10 days ago" in failed[3]
        assert "clock" not in failed[3].partition("by this machine's clock")[2]  # the clocks agree: no talk of them
        assert (book.refused[0].node, book.refused[0].why) == (b.id, Refusing.expired)
        assert not a.transport.links
        # Nothing but renewing is open to it.
        ref = await a.blobs.put_bytes(b"secret")
        with pytest.raises(Unavailable):
            await b.transport.fetch(a.id, ref, b.blobs)
        b.transport.renew(old.renewed(await b.transport.appeal(a.id, a.address)))
        await b.handler.one("up")


async def test_an_expired_certificate_is_renewed_only_for_members(tmp_path: Path) -> None:
    gone = credentials_of(9, now=datetime.now(UTC) - timedelta(days=40))
    revoked = credentials_of(4)
    async with (
        node(1, tmp_path, certify=vouch, allowed=lambda peer: peer != revoked.identity.node_id) as a,
        node(9, tmp_path, credentials=gone) as b,
        node(4, tmp_path, credentials=revoked) as c,
    ):
        with pytest.raises(Refused, match="is not a member"):
            await b.transport.appeal(a.id, a.address)
        with pytest.raises(Refused, match="not a member any more"):
            await c.transport.appeal(a.id, a.address)
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        with pytest.raises(Unavailable, match="makes no certificates"):
            await b.transport.appeal(a.id, a.address)
        with pytest.raises(Unavailable, match="nothing listens"):
            await b.transport.appeal("", "127.0.0.1:1")


@pytest.mark.parametrize(("minutes", "words"), [(61, "61 minutes ahead of ours"), (-61, "61 minutes behind ours")])
async def test_a_clock_that_is_off_is_named_on_both_ends(tmp_path: Path, minutes: int, words: str) -> None:
    """The one whose clock is wrong holds the other's certificate, or its own, to be expired or not valid yet."""
    wrong = 60.0 * minutes
    now = datetime.now(UTC)
    # Valid for the next half hour; and, for a clock that is behind, only since half an hour ago.
    life = timedelta(minutes=30)
    made = now if minutes > 0 else now + timedelta(hours=23, minutes=30)

    def paper(number: int) -> Credentials:
        found = credentials_of(number)
        return replace(found, certificate_pem=AUTHORITY.certify(found.identity.public_key, now=made, lifetime=life))

    book = Book()
    async with (
        node(1, tmp_path, credentials=paper(1), wall=lambda: time.time() + wrong, on_refused=book) as off,
        node(2, tmp_path, credentials=paper(2)) as right,
    ):
        off.want(right)
        failed = await off.handler.one("failed")
        assert failed[2] is LinkEnd.identity
        opposite = words.replace("ahead of", "behind") if minutes > 0 else words.replace("behind", "ahead of")
        assert opposite in failed[3]
        right.want(off)
        failed = await right.handler.one("failed")
        assert failed[2] is LinkEnd.identity
        assert words in failed[3]
        assert any(opposite in refusal.detail for refusal in book.refused)


async def test_whoever_is_turned_away_is_noted_with_the_reason(tmp_path: Path) -> None:
    revoked, book = credentials_of(2), Book()
    async with (
        node(1, tmp_path, on_refused=book, allowed=lambda peer: peer != revoked.identity.node_id) as a,
        node(2, tmp_path, credentials=revoked) as b,
        node(3, tmp_path, authority=STRANGERS) as stranger,
    ):
        b.want(a)
        await b.handler.one("failed")
        assert (book.refused[0].node, book.refused[0].why) == (b.id, Refusing.revoked)
        before = len(book.refused)
        stranger.transport.seed([a.address])
        await stranger.handler.one("failed")
        await stranger.handler.until(lambda: len(book.refused) > before)
        assert book.refused[-1].why is Refusing.hive
        assert book.refused[-1].node == ""
        assert book.refused[-1].address == "127.0.0.1"
