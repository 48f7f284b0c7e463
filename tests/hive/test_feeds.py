"""Feeds: only the author's own words, in order, once; forks and forgeries found out."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from hivenode.errors import Corrupted
from hivenode.hive.feeds import QUARANTINED, Entry, Feeds, decode_body, signed_part
from hivenode.spec.events import BlobHeld, Body, NodeAdmitted
from hivenode.spec.values import Role
from hivenode.store.ports import Record
from hivenode.trust.authority import Authority
from hivenode.trust.identity import Identity

AUTHORITY = Authority.from_seed(bytes(32))


class Author:
    """A node that writes: identity, grant, and its own copy of the feeds."""

    def __init__(self, number: int, authority: Authority = AUTHORITY) -> None:
        self.identity = Identity.from_seed(bytes([number]) * 32)
        self.feeds = Feeds(authority.hive_id, authority.public_key)
        self.clock = itertools.count(1000 * number)
        grant = authority.grant(self.identity.public_key, f"n{number}", tuple(Role), serial=1)
        self.say(NodeAdmitted(grant=grant))

    @property
    def id(self) -> str:
        return self.identity.node_id

    def compose(self, *bodies: Body) -> list[Entry]:
        return self.feeds.compose(self.identity, lambda: next(self.clock), bodies)

    def say(self, *bodies: Body) -> list[Entry]:
        entries = self.compose(*bodies)
        for entry in entries:
            self.feeds.accept(entry)
        return entries

    def events(self) -> list:
        return [entry.event for entry in self.feeds.entries() if entry.event.author == self.id]


def blob(number: int) -> BlobHeld:
    return BlobHeld(digest=f"{number:064x}", size=number)


def reader() -> Feeds:
    return Feeds(AUTHORITY.hive_id, AUTHORITY.public_key)


def take(feeds: Feeds, events: list) -> list[Entry]:
    found = feeds.examine(events)
    for entry in found.fresh:
        feeds.accept(entry)
    return list(found.fresh)


def test_a_feed_travels_whole_and_duplicates_change_nothing() -> None:
    author, other = Author(1), reader()
    author.say(blob(1), blob(2))
    assert len(take(other, author.events())) == 3
    assert take(other, author.events()) == []
    assert other.heads == {author.id: 3}
    assert [entry.body for entry in other.entries()][1:] == [blob(1), blob(2)]


def test_events_after_a_gap_are_not_taken_but_asked_for() -> None:
    author, other = Author(1), reader()
    author.say(blob(1), blob(2))
    first, _, third = author.events()
    found = other.examine([first, third])
    assert [entry.event for entry in found.fresh] == [first]
    assert found.gap


@pytest.mark.parametrize("field", ["body", "hlc", "signature"])
def test_a_changed_event_is_an_offence(field: str) -> None:
    author, other = Author(1), reader()
    author.say(blob(1))
    first, second = author.events()
    changed = {"body": first.body, "hlc": second.hlc + 1, "signature": bytes(64)}[field]
    found = other.examine([first, msgspec.structs.replace(second, **{field: changed})])
    assert len(found.fresh) == 1
    assert "wrong signature" in found.offence


def test_nobody_can_write_in_anothers_name() -> None:
    author, forger, other = Author(1), Author(2), reader()
    take(other, author.events())
    forged = forger.compose(blob(9))[0].event
    found = other.examine([msgspec.structs.replace(forged, author=author.id)])
    assert not found.fresh
    assert found.offence


def test_a_feed_of_another_hive_is_refused() -> None:
    foreign = Author(1, Authority.from_seed(bytes([7]) * 32))
    found = reader().examine(foreign.events())
    assert not found.fresh
    assert found.offence


def test_a_feed_must_begin_with_its_own_grant() -> None:
    author = Author(1)
    stranger = Identity.from_seed(bytes([9]) * 32)
    bare = Feeds(AUTHORITY.hive_id, AUTHORITY.public_key)
    own_grant = author.events()[0].body
    event = bare.compose(stranger, lambda: 1, [msgspec.msgpack.decode(own_grant, type=NodeAdmitted)])[0].event
    assert "begins with the grant of" in reader().examine([event]).offence
    other = bare.compose(stranger, lambda: 1, [blob(1)])[0].event
    assert "does not begin with a grant" in reader().examine([other]).offence


def test_a_fork_quarantines_its_author_and_keeps_what_came_before() -> None:
    author, other = Author(1), reader()
    twin = Author(1)
    author.say(blob(1))
    twin.say(blob(2))
    take(other, author.events())
    found = other.examine(twin.events())
    assert found.forks == (author.id,)
    assert other.forked == {author.id: 2}
    author.say(blob(3))
    assert take(other, author.events()) == []
    assert other.heads == {author.id: QUARANTINED}
    assert [entry.event.seq for entry in other.entries()] == [1]


def test_what_another_lacks_comes_in_bounded_pieces_until_it_has_all() -> None:
    author, second, other = Author(1), Author(2), reader()
    author.say(*(blob(n) for n in range(200)))
    take(author.feeds, second.events())
    rounds, more = 0, True
    while more:
        events, more = author.feeds.missing(other.heads, 4096)
        assert sum(len(event.body) for event in events) < 8192
        take(other, list(events))
        rounds += 1
    assert rounds > 3
    assert other.heads == author.feeds.heads
    assert not other.behind(author.feeds.heads)


def test_the_journal_is_judged_like_any_stranger() -> None:
    author = Author(1)
    author.say(blob(1))
    records = [Record(e.event.author, e.event.seq, e.encoded) for e in author.feeds.entries()]
    again = reader()
    again.load(records)
    assert again.heads == author.feeds.heads
    broken = Record(records[1].author, 2, records[1].data[:-1] + bytes([records[1].data[-1] ^ 1]))
    with pytest.raises(Corrupted, match="Event 2"):
        reader().load([records[0], broken])


def test_an_event_of_a_later_version_is_kept_and_passed_on() -> None:
    author, other = Author(1), reader()
    unknown = msgspec.msgpack.encode({"type": "moon.landed", "x": 1})
    entry = author.compose(blob(1))[0]
    bare = msgspec.structs.replace(entry.event, body=unknown, signature=bytes(64))
    event = msgspec.structs.replace(bare, signature=author.identity.sign(signed_part(AUTHORITY.hive_id, bare)))
    fresh = take(other, [*author.events(), event])
    assert fresh[-1].body is None
    assert other.missing({}, 10_000)[0][-1] == event


def revocation(node: Author, through: int, serial: int = 2, roles: tuple[Role, ...] = ()) -> NodeAdmitted:
    """The authority's word on a node; with roles it is no revocation."""
    key = node.identity.public_key
    return NodeAdmitted(grant=AUTHORITY.grant(key, "x", roles, serial, through=through, reason="sold"))


def counted(feeds: Feeds) -> list[tuple[str, int]]:
    return [(entry.event.author, entry.event.seq) for entry in feeds.entries()]


def test_of_a_revoked_author_the_same_events_count_in_whatever_order_they_came() -> None:
    founder, author = Author(1), Author(2)
    author.say(blob(1), blob(2))
    founder.say(revocation(author, through=2))
    early, late = reader(), reader()
    take(early, author.events())
    changed = [early.accept(entry) for entry in early.examine(founder.events()).fresh]
    assert changed == [False, True], "event 3 was folded and counts no more"
    take(late, founder.events())
    found = late.examine(author.events())
    assert not found.offence
    assert not found.gap
    take(late, author.events())
    assert counted(early) == counted(late) == sorted((one.id, seq) for one in (founder, author) for seq in (1, 2))
    assert early.heads == late.heads == {founder.id: 2, author.id: 2}
    assert not late.behind({author.id: 3})
    events, more = early.missing({}, 1 << 20)
    assert not more
    assert all(event.author != author.id or event.seq <= 2 for event in events)


def test_a_revocation_holds_after_a_restart_and_a_later_grant_lifts_it() -> None:
    founder, author, held = Author(1), Author(2), reader()
    author.say(blob(1), blob(2))
    take(held, author.events())
    founder.say(revocation(author, through=1))
    take(held, founder.events())
    everything = [entry for one in (author, founder) for entry in one.feeds.entries()]
    again = reader()
    again.load(
        Record(e.event.author, e.event.seq, e.encoded)
        for e in sorted(everything, key=lambda e: (e.event.author, e.event.seq))
    )
    assert again.heads == held.heads == {founder.id: 2, author.id: 1}
    founder.say(revocation(author, 0, serial=3, roles=(Role.worker,)))
    assert [again.accept(entry) for entry in again.examine(founder.events()).fresh] == [True]
    assert again.heads[author.id] == 3


def test_only_the_authority_can_revoke() -> None:
    mallory, author, other = Author(1), Author(2), reader()
    forger = Authority.from_seed(bytes([7]) * 32)
    mallory.say(NodeAdmitted(grant=forger.grant(author.identity.public_key, "x", (), 9)))
    take(other, [*author.events(), *mallory.events()])
    author.say(blob(1))
    take(other, author.events())
    assert other.heads == {author.id: 2, mallory.id: 2}


@pytest.mark.parametrize(
    "body",
    [
        b"\x83\xa4type\xafseal.confirmed\xa6number\x01\xa6dig\xd9\x40",
        b"\x82\xa4type\xa9blob.held\xa1\xff\x01",
        b"\x83\xa4type\xa9blob.held\xa4size\x01\xa1x" + b"\x91" * 90_000,
        b"\xc1",
        b"",
    ],
)
def test_a_body_that_cannot_be_read_stops_nobody(body: bytes) -> None:
    author, other = Author(1), reader()
    bare = msgspec.structs.replace(author.compose(blob(1))[0].event, body=body, signature=bytes(64))
    event = msgspec.structs.replace(bare, signature=author.identity.sign(signed_part(AUTHORITY.hive_id, bare)))
    assert take(other, [*author.events(), event])[-1].body is None


def test_whether_a_body_is_understood_does_not_depend_on_the_callers_stack() -> None:
    known = msgspec.msgpack.encode(blob(1))
    nested = bytes([known[0] + 1]) + known[1:] + b"\xa1x" + b"\x91" * 900 + b"\xc0"

    def deep(levels: int) -> object:
        return deep(levels - 1) if levels else decode_body(nested)

    assert deep(0) == deep(700) is None


@pytest.mark.parametrize(("one", "two"), [(1, 1), (40, 40), (40, 3), (2, 40)])
def test_who_holds_different_branches_finds_where_they_part(one: int, two: int) -> None:
    author, twin, first, second = Author(1), Author(1), reader(), reader()
    together = [blob(n) for n in range(5)]
    author.say(*together, *(blob(100 + n) for n in range(one)))
    twin.say(*together, *(blob(200 + n) for n in range(two)))
    take(first, author.events())
    take(second, twin.events())
    assert first.digest != second.digest
    rounds = 0
    while first.digest != second.digest:
        rounds += 1
        assert rounds < 12
        for here, there in ((first, second), (second, first)):
            if here.heads == there.heads:
                take(there, list(here.samples([author.id], 1 << 16)))
            else:
                take(there, list(here.missing(there.heads, 1 << 16)[0]))
    assert first.forked == second.forked == {author.id: 7}
    held = [[entry.encoded for entry in feeds.entries()] for feeds in (first, second)]
    assert held[0] == held[1]
    assert len(held[0]) == 6


def test_samples_are_bounded() -> None:
    author = Author(1)
    author.say(*(blob(n) for n in range(1000)))
    assert len(author.feeds.samples([author.id], 1 << 16)) == 10
    assert len(author.feeds.samples([author.id], 1000)) < 4


def test_both_branches_of_a_fork_reach_those_who_still_believe_one() -> None:
    author, twin, first, second = Author(1), Author(1), reader(), reader()
    author.say(blob(1), blob(3))
    twin.say(blob(2), blob(3))
    take(first, author.events())
    take(second, twin.events())
    assert first.examine(twin.events()).forks == (author.id,)
    take(second, list(first.missing(second.heads, 1 << 20)[0]))
    assert second.heads == {author.id: QUARANTINED}
    third = reader()
    take(third, author.events())
    take(third, list(first.missing(third.heads, 1 << 20)[0]))
    assert third.heads == {author.id: QUARANTINED}
