"""Signed feeds: one append-only, hash-chained, numbered list of events per author. Pure.

A node writes only its own feed. Anyone may pass anyone's events on: what makes an event valid is its place in the
chain and its author's signature, never who delivered it. Two different events under one number are a fork (a node
restored from an old backup, or one key on two machines): the author is quarantined, neither branch grows here, and of
the one held nothing counts from the lowest number on under which two are known. Nodes that hold different branches
show each other samples of them until they agree on that number.

Of a revoked author only the events up to the number in its revocation count. Later ones are not taken in, and those
that were taken before the revocation arrived are kept on disk but are no part of `entries` and `heads`.

What was sealed is gone from here: of each author a cut remains, on which its next event follows. All that was sealed
counts, and whatever is offered again from below a cut is passed over, since it can no longer be judged.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from hivenode.errors import Corrupted, InvalidInput, Refused
from hivenode.net.messages import Event
from hivenode.spec.events import Body, NodeAdmitted
from hivenode.store.ports import Record
from hivenode.trust.authority import Grant, open_grant
from hivenode.trust.identity import Identity, verify

GENESIS = bytes(32)
QUARANTINED = 2**53
UNKNOWN_BYTES = 512
"""Of a body, in fields that this version does not know."""
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be."""

_encode = msgspec.msgpack.Encoder().encode
_decode_event = msgspec.msgpack.Decoder(Event).decode
_bodies: msgspec.msgpack.Decoder[Body] = msgspec.msgpack.Decoder(Body)


@dataclass(frozen=True, slots=True)
class Entry:
    """One accepted event, decoded. `body` is None when this version does not know its kind."""

    event: Event
    body: Body | None
    encoded: bytes


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """A place in a feed: number, SHA-256 and clock of its last event."""

    seq: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    tip: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    hlc: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, slots=True)
class Examined:
    """What some offered events are to us."""

    fresh: tuple[Entry, ...]
    gap: bool
    """Earlier ones are missing: ask for them."""
    forks: tuple[str, ...]
    """Authors quarantined just now."""
    offence: str
    """What no honest node would have sent; empty when all is well."""


def encode_body(body: Body) -> bytes:
    return _encode(body)


def decode_body(data: bytes) -> Body | None:
    """None for a kind or shape this version does not know; such events are kept and passed on, not folded.

    What it knows must be nearly all of it: nesting in fields unknown here could be so deep that whether it can be
    decoded depends on how deep the caller's own stack is, and that must be the same on every node.
    """
    try:
        body = _bodies.decode(data)
    except UNREADABLE:
        return None
    return body if len(data) - len(_encode(body)) <= UNKNOWN_BYTES else None


def signed_part(hive_id: str, event: Event) -> bytes:
    """What an event's signature is over."""
    return _encode((hive_id, event.author, event.seq, event.prev, event.hlc, event.body))


class Feeds:
    """All feeds a node holds.

    Args:
        hive_id: events are signed for one hive and refused in another.
        authority_key: the hive authority's raw public key, by which grants are checked.
    """

    def __init__(self, hive_id: str, authority_key: bytes) -> None:
        self._hive_id = hive_id
        self.authority_key = authority_key
        self._feeds: dict[str, list[Entry]] = {}
        self._tips: dict[str, bytes] = {}
        self._grants: dict[str, Grant] = {}
        self._latest: dict[str, Grant] = {}
        self._forked: dict[str, int] = {}
        self._evidence: dict[str, Event] = {}
        self._floors: dict[str, Cut] = {}
        self._heads: Mapping[str, int] = {}
        """As last asked for."""
        self._stirred: dict[str, None] = {}
        """Authors of whom something has changed since."""
        self._digest = b""
        self._digest_of: Mapping[str, int] | None = None
        """The heads at which it was taken; they are never changed in place."""

    @property
    def heads(self) -> Mapping[str, int]:
        """Version vector: highest number held, of those that count, of each author; `QUARANTINED` for one whose feed
        forked, of which nothing more is wanted."""
        if self._stirred:
            heads = dict(self._heads)
            for author in self._stirred:
                if author in self._forked:
                    heads[author] = QUARANTINED
                elif author in self._floors or author in self._feeds:
                    heads[author] = self.counted(author)
            self._heads = heads if len(heads) == len(self._heads) else dict(sorted(heads.items()))
            self._stirred.clear()
        return self._heads

    def head(self, author: str) -> int:
        """What `heads` says of one author, 0 for one that is not in there."""
        return QUARANTINED if author in self._forked else self.counted(author)

    @property
    def forked(self) -> Mapping[str, int]:
        """Quarantined authors and the lowest number under which two events of theirs are known."""
        return self._forked

    @property
    def grants(self) -> Mapping[str, Grant]:
        """The latest of each node that has come here, also one in a part of a feed that does not count: a feed that
        forked at its first event takes its author's own out of the views."""
        return self._latest

    @property
    def digest(self) -> bytes:
        """SHA-256 over the last event that counts of each author. Two nodes with equal heads have equal ones, unless
        they hold different branches of a feed."""
        heads = self.heads
        if self._digest_of is not heads:
            tips = [(author, self._tip(author)) for author in sorted(heads)]
            self._digest, self._digest_of = hashlib.sha256(_encode(tips)).digest(), heads
        return self._digest

    @property
    def floors(self) -> Mapping[str, Cut]:
        """Where each feed was cut by the latest seal."""
        return self._floors

    def entries(self) -> Iterable[Entry]:
        """All that count, from beyond the seal."""
        for author in sorted(self._feeds):
            yield from self._feeds[author][: self._reach(author)]

    def counts(self, event: Event) -> bool:
        """False for what a revoked author says after the end that its revocation sets, and for what is said in a feed
        from where it forked."""
        limit = self._limit(event.author)
        return limit is None or event.seq <= limit

    def compose(self, identity: Identity, clock: Callable[[], int], bodies: Sequence[Body]) -> list[Entry]:
        """The next events of our own feed; they become part of it with `accept`, once they are durable."""
        author = identity.node_id
        seq, prev = self._held(author), self._tips.get(author, GENESIS)
        entries: list[Entry] = []
        for body in bodies:
            seq += 1
            bare = Event(author, seq, prev, clock(), encode_body(body), bytes(64))
            event = msgspec.structs.replace(bare, signature=identity.sign(signed_part(self._hive_id, bare)))
            encoded = _encode(event)
            try:  # what others could not read must never become part of the chain
                _decode_event(encoded)
                _bodies.decode(event.body)
            except msgspec.MsgspecError as error:
                raise InvalidInput(
                    f"This cannot be stated as an event: {error}.",
                    fix="Make it smaller; docs/protocol.md has bounds.",
                ) from error
            entries.append(Entry(event, body, encoded))
            prev = hashlib.sha256(entries[-1].encoded).digest()
        return entries

    def examine(self, events: Sequence[Event]) -> Examined:
        """Judge events from elsewhere. Those in `fresh` follow what we hold: make them durable, then `accept` them.
        A wrong event ends the examination; what came before it still counts."""
        staged: dict[str, tuple[int, bytes]] = {}
        fresh: list[Entry] = []
        grants: dict[str, Grant] = {}
        gap, forks, offence = False, [], ""
        for event in events:
            author = event.author
            if not self.counts(event) or event.seq <= self._floor(author):
                continue
            held, tip = staged.get(author) or (self._held(author), self._tips.get(author, GENESIS))
            if event.seq > held + 1:
                gap = True
                continue
            encoded = _encode(event)
            if event.seq <= held and self._encoded(author, event.seq, fresh) == encoded:
                continue
            body = decode_body(event.body)
            try:
                grant = grants.get(author) or self._grants.get(author) or self._first_grant(event, body)
                if not verify(grant.public_key, event.signature, signed_part(self._hive_id, event)):
                    raise Refused(f"An event of {author} has a wrong signature.", fix="Look at who sent it.")
            except Refused as error:
                offence = error.sentence
                break
            if event.seq <= held or event.prev != tip:
                self._forked[author] = event.seq
                self._stirred[author] = None
                self._evidence[author] = event
                forks.append(author)
                continue
            grants[author] = grant
            fresh.append(Entry(event, body, encoded))
            staged[author] = (event.seq, hashlib.sha256(encoded).digest())
        return Examined(tuple(fresh), gap, tuple(forks), offence)

    def authentic(self, event: Event) -> bool:
        """Whether its author, as far as known here, signed it; it may still not fit into the feed."""
        grant = self._grants.get(event.author)
        return grant is not None and verify(grant.public_key, event.signature, signed_part(self._hive_id, event))

    def accept(self, entry: Entry) -> bool:
        """Append an entry that is durable now. True when other entries held have ceased to count through it, or count
        again: what was folded of them has to be folded anew."""
        self._append(entry)
        return self._heed(entry)

    def _heed(self, entry: Entry) -> bool:
        """Take note of a grant."""
        if not isinstance(entry.body, NodeAdmitted):
            return False
        try:
            grant = open_grant(entry.body.grant, self.authority_key)
        except Refused:
            return False  # a forged grant grants nothing; the feed that carries it is otherwise valid
        held = self._latest.get(grant.node)
        if held is not None and held.serial >= grant.serial:
            return False
        before = self.counted(grant.node)
        self._latest[grant.node] = grant
        self._stirred[grant.node] = None
        return self.counted(grant.node) != before

    def _limit(self, author: str) -> int | None:
        grant, fork = self._latest.get(author), self._forked.get(author)
        ends = [grant.through] if grant is not None and grant.revokes else []
        if fork is not None:
            ends.append(fork - 1)
        return max(min(ends), self._floor(author)) if ends else None

    def counted(self, author: str) -> int:
        """The number of the last event of an author that counts."""
        held, limit = self._held(author), self._limit(author)
        return held if limit is None else min(held, limit)

    def _floor(self, author: str) -> int:
        cut = self._floors.get(author)
        return cut.seq if cut is not None else 0

    def _held(self, author: str) -> int:
        return self._floor(author) + len(self._feeds.get(author, ()))

    def _tip(self, author: str) -> bytes:
        """SHA-256 of the last event of an author that counts."""
        seq, floor = self.counted(author), self._floors.get(author)
        if seq == self._held(author):
            return self._tips.get(author, GENESIS)
        if floor is not None and seq == floor.seq:
            return floor.tip
        return hashlib.sha256(self._feeds[author][seq - self._floor(author) - 1].encoded).digest() if seq else GENESIS

    def _reach(self, author: str) -> int:
        """How many of the entries held count."""
        return self.counted(author) - self._floor(author)

    def _append(self, entry: Entry) -> None:
        event = entry.event
        if event.seq != self._held(event.author) + 1:
            raise Corrupted(
                f"Event {event.seq} of {event.author} does not follow {self._held(event.author)}.",
                fix="Restart the daemon.",
            )
        if event.seq == 1 and isinstance(entry.body, NodeAdmitted):
            self._grants[event.author] = open_grant(entry.body.grant, self.authority_key)
        self._feeds.setdefault(event.author, []).append(entry)
        self._stirred[event.author] = None
        self._tips[event.author] = hashlib.sha256(entry.encoded).digest()

    # --- sealing --------------------------------------------------------------------------------------------------

    def cuts(self, horizon: int) -> dict[str, Cut]:
        """Of each feed the longest part, from its beginning, that counts and was said up to the horizon. A feed that
        forked is cut no further than it is: others may hold its other branch."""
        cuts = dict(self._floors)
        for author, feed in self._feeds.items():
            last = None
            for entry in feed[: self._reach(author) if author not in self._forked else 0]:
                if entry.event.hlc > horizon:
                    break
                last = entry
            if last is not None:
                tip = hashlib.sha256(last.encoded).digest()
                cuts[author] = Cut(last.event.seq, tip, max(last.event.hlc, self._heard(author)))
        return {author: cuts[author] for author in sorted(cuts)}

    def _heard(self, author: str) -> int:
        cut = self._floors.get(author)
        return cut.hlc if cut is not None else 0

    def heard(self, author: str) -> int:
        """Hybrid clock of the last event held of an author, 0 if there is none."""
        feed = self._feeds.get(author)
        return feed[-1].event.hlc if feed else self._heard(author)

    def began(self, author: str, horizon: int) -> bool:
        """Whether an author is known here to have said something up to the horizon."""
        feed = self._feeds.get(author)
        return author in self._floors or (feed is not None and feed[0].event.hlc <= horizon)

    def older(self, horizon: int) -> int:
        """How many events beyond the seal were said up to the horizon."""
        return sum(1 for feed in self._feeds.values() for entry in feed if entry.event.hlc <= horizon)

    @property
    def size(self) -> int:
        """Events held."""
        return sum(len(feed) for feed in self._feeds.values())

    def agrees(self, cuts: Mapping[str, Cut]) -> str:
        """An author of whom we hold another event than the one at its cut, or "" if there is none."""
        for author, cut in cuts.items():
            floor, held = self._floors.get(author), self._held(author)
            if cut.seq > held or cut.seq < self._floor(author):
                continue
            if floor is not None and cut.seq == floor.seq:
                tip = floor.tip
            else:
                tip = hashlib.sha256(self._feeds[author][cut.seq - self._floor(author) - 1].encoded).digest()
            if tip != cut.tip:
                return author
        return ""

    def up_to(self, cuts: Mapping[str, Cut]) -> list[Entry] | None:
        """The entries from the present seal up to these cuts; None unless all are held."""
        found: list[Entry] = []
        for author in sorted(cuts):
            if self._held(author) < cuts[author].seq:
                return None
            found += self._feeds.get(author, [])[: max(0, cuts[author].seq - self._floor(author))]
        return found if not self.agrees(cuts) else None

    def begin(self, cuts: Mapping[str, Cut], grants: Iterable[Grant]) -> None:
        """Go on from a seal: what lies below its cuts is dropped, and its grants are known."""
        for author, cut in cuts.items():
            feed = self._feeds.get(author, [])
            rest = feed[max(0, cut.seq - self._floor(author)) :]
            self._floors[author] = cut
            self._stirred[author] = None
            if rest:
                self._feeds[author] = rest
            else:
                self._feeds.pop(author, None)
                self._tips[author] = cut.tip
        for grant in grants:
            self._grants.setdefault(grant.node, grant)
            held = self._latest.get(grant.node)
            if held is None or grant.serial > held.serial:
                self._latest[grant.node] = grant
                self._stirred[grant.node] = None

    def load(self, records: Iterable[Record]) -> None:
        """Take in what the journal holds. Each record is judged like an event from elsewhere.

        Raises:
            Corrupted: a stored event is not valid.
        """
        for record in records:
            try:
                found = self.examine([_decode_event(record.data)])
            except UNREADABLE as error:
                found = Examined((), False, (), str(error))
            if len(found.fresh) != 1:
                raise Corrupted(
                    f"Event {record.number} of {record.author} in the journal is not valid. {found.offence}",
                    fix="Move journal.db aside; the feeds come back from the other members.",
                )
            self._append(found.fresh[0])
        # Only now: the journal also holds what was taken in before its author was revoked.
        for feed in self._feeds.values():
            for entry in feed:
                self._heed(entry)

    def missing(self, heads: Mapping[str, int], limit_bytes: int) -> tuple[tuple[Event, ...], bool]:
        """Events that a node with these heads lacks, in the order of their clocks as far as each chain allows (so that
        it need not fold them anew with each piece), up to a size; and whether more remain."""
        lacking: list[tuple[int, str, int]] = []
        """A heap: of each author the next event to send, as its clock, author and place."""
        for author, _ in self.heads.items() - heads.items():
            feed, there, floor = self._feeds.get(author, []), heads.get(author, 0), self._floor(author)
            # Below the floor it lacks what is sealed, and could not chain these on.
            if floor <= there < floor + min(len(feed), self._reach(author)):
                lacking.append((feed[there - floor].event.hlc, author, there - floor))
        heapq.heapify(lacking)
        events: list[Event] = []
        size = 0
        while lacking:
            _, author, at = lacking[0]
            feed = self._feeds[author]
            if at + 1 < self._reach(author):
                heapq.heapreplace(lacking, (feed[at + 1].event.hlc, author, at + 1))
            else:
                heapq.heappop(lacking)
            entry = feed[at]
            size += len(entry.encoded) + 8
            if events and (size > limit_bytes or len(events) >= 512):
                return tuple(events), True
            events.append(entry.event)
        for event in self._proofs(heads):
            size += len(event.body) + 256
            if size <= limit_bytes and len(events) < 512:
                events.append(event)
        return tuple(events), False

    def _proofs(self, heads: Mapping[str, int]) -> Iterator[Event]:
        """Of forked authors, whom a node with these heads still believes, both branches: one of them it lacks."""
        for author, event in sorted(self._evidence.items()):
            if event.seq <= heads.get(author, 0) + 1 <= QUARANTINED:
                yield from self._sides(author)

    def _sides(self, author: str) -> Iterator[Event]:
        """Of a forked author, the event that showed it and our own beside it."""
        event, floor, feed = self._evidence.get(author), self._floor(author), self._feeds.get(author, [])
        if event is not None and event.seq > floor:
            yield event
            if feed:
                yield feed[min(event.seq - floor, len(feed)) - 1].event

    def samples(self, authors: Iterable[str], limit_bytes: int) -> tuple[Event, ...]:
        """For a node that counts other events under the same numbers. Of each author, in this order and up to a size:
        both sides of a fork that is known, the last event that counts, and others at doubling distances before it. The
        lowest that differs brings that node nearer to where the branches part, by half of what remains each time."""
        events: list[Event] = []
        size = 0
        for author in authors:
            floor, last, back = self._floor(author), self.counted(author), 0
            found = list(self._sides(author))
            while last - back > floor:
                found.append(self._feeds[author][last - back - floor - 1].event)
                back = 2 * back + 1
            for event in found:
                size += len(event.body) + 256
                if size > limit_bytes or len(events) == 512:
                    return tuple(events)
                events.append(event)
        return tuple(events)

    def behind(self, heads: Mapping[str, int]) -> bool:
        """Whether a node with these heads has something we lack."""
        for author, seq in heads.items() - self.heads.items():
            if seq <= self._held(author):
                continue
            limit = self._limit(author)
            there = seq if limit is None else min(seq, limit)
            wanted = author not in self._forked and seq != QUARANTINED
            if wanted and there > self._held(author):
                return True
        return False

    def _encoded(self, author: str, seq: int, fresh: Sequence[Entry]) -> bytes:
        feed, floor = self._feeds.get(author, []), self._floor(author)
        if seq <= floor + len(feed):
            return feed[seq - floor - 1].encoded
        return next(e.encoded for e in fresh if e.event.author == author and e.event.seq == seq)

    def _first_grant(self, event: Event, body: Body | None) -> Grant:
        if event.seq != 1 or not isinstance(body, NodeAdmitted):
            raise Refused(f"The feed of {event.author} does not begin with a grant.", fix="Invite that node again.")
        grant = open_grant(body.grant, self.authority_key)
        if grant.node != event.author:
            raise Refused(
                f"The feed of {event.author} begins with the grant of {grant.node}.", fix="Invite that node again."
            )
        return grant
