"""Signed feeds: one append-only, hash-chained, numbered list of events per author. Pure.

A node writes only its own feed. Anyone may pass anyone's events on: what makes an event valid is its place in the
chain and its author's signature, never who delivered it. Two different events under one number are a fork (a node
restored from an old backup, or one key on two machines): the author is quarantined and neither branch grows here.

Of a revoked author only the events up to the number in its revocation count. Later ones are not taken in, and those
that were taken before the revocation arrived are kept on disk but are no part of `entries` and `heads`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from hivenode.errors import Corrupted, InvalidInput, Refused
from hivenode.net.messages import Event
from hivenode.spec.events import Body, NodeAdmitted
from hivenode.store.ports import Record
from hivenode.trust.authority import Grant, open_grant
from hivenode.trust.identity import Identity, verify

GENESIS = bytes(32)
QUARANTINED = 2**53

_encode = msgspec.msgpack.Encoder().encode
_decode_event = msgspec.msgpack.Decoder(Event).decode
_bodies: msgspec.msgpack.Decoder[Body] = msgspec.msgpack.Decoder(Body)


@dataclass(frozen=True, slots=True)
class Entry:
    """One accepted event, decoded. `body` is None when this version does not know its kind."""

    event: Event
    body: Body | None
    encoded: bytes

    @property
    def key(self) -> tuple[int, str, int]:
        """The total order of all events in all feeds: clock, author, number."""
        return (self.event.hlc, self.event.author, self.event.seq)


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
    """None for a kind or shape this version does not know; such events are kept and passed on, not folded."""
    try:
        return _bodies.decode(data)
    except msgspec.MsgspecError:
        return None


def _signed_part(hive_id: str, event: Event) -> bytes:
    return _encode((hive_id, event.author, event.seq, event.prev, event.hlc, event.body))


class Feeds:
    """All feeds a node holds.

    Args:
        hive_id: events are signed for one hive and refused in another.
        authority_key: the hive authority's raw public key, by which grants are checked.
    """

    def __init__(self, hive_id: str, authority_key: bytes) -> None:
        self._hive_id = hive_id
        self._authority_key = authority_key
        self._feeds: dict[str, list[Entry]] = {}
        self._tips: dict[str, bytes] = {}
        self._grants: dict[str, Grant] = {}
        self._latest: dict[str, Grant] = {}
        self._forked: dict[str, int] = {}

    @property
    def heads(self) -> dict[str, int]:
        """Version vector: highest number held, of those that count, of each author; `QUARANTINED` for one whose feed
        forked, of which nothing more is wanted."""
        authors = sorted(self._feeds.keys() | self._forked.keys())
        return {author: QUARANTINED if author in self._forked else self.counted(author) for author in authors}

    @property
    def forked(self) -> Mapping[str, int]:
        """Quarantined authors and the number at which their feed forked."""
        return self._forked

    def grant(self, node: str) -> Grant | None:
        """The grant a node's feed begins with."""
        return self._grants.get(node)

    def entries(self) -> Iterable[Entry]:
        """All that count."""
        for author in sorted(self._feeds):
            yield from self._feeds[author][: self._limit(author)]

    def counts(self, event: Event) -> bool:
        """False for what a revoked author says after the end that its revocation sets."""
        limit = self._limit(event.author)
        return limit is None or event.seq <= limit

    def compose(self, identity: Identity, clock: Callable[[], int], bodies: Sequence[Body]) -> list[Entry]:
        """The next events of our own feed; they become part of it with `accept`, once they are durable."""
        author = identity.node_id
        seq, prev = len(self._feeds.get(author, ())), self._tips.get(author, GENESIS)
        entries: list[Entry] = []
        for body in bodies:
            seq += 1
            bare = Event(author, seq, prev, clock(), encode_body(body), bytes(64))
            event = msgspec.structs.replace(bare, signature=identity.sign(_signed_part(self._hive_id, bare)))
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
            if author in self._forked or not self.counts(event):
                continue
            held, tip = staged.get(author) or (len(self._feeds.get(author, ())), self._tips.get(author, GENESIS))
            if event.seq > held + 1:
                gap = True
                continue
            encoded = _encode(event)
            if event.seq <= held and self._encoded(author, event.seq, fresh) == encoded:
                continue
            body = decode_body(event.body)
            try:
                grant = grants.get(author) or self._grants.get(author) or self._first_grant(event, body)
                if not verify(grant.public_key, event.signature, _signed_part(self._hive_id, event)):
                    raise Refused(f"An event of {author} has a wrong signature.", fix="Look at who sent it.")
            except Refused as error:
                offence = error.sentence
                break
            if event.seq <= held or event.prev != tip:
                self._forked[author] = event.seq
                forks.append(author)
                continue
            grants[author] = grant
            fresh.append(Entry(event, body, encoded))
            staged[author] = (event.seq, hashlib.sha256(encoded).digest())
        return Examined(tuple(fresh), gap, tuple(forks), offence)

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
            grant = open_grant(entry.body.grant, self._authority_key)
        except Refused:
            return False  # a forged grant grants nothing; the feed that carries it is otherwise valid
        held = self._latest.get(grant.node)
        if held is not None and held.serial >= grant.serial:
            return False
        before = self.counted(grant.node)
        self._latest[grant.node] = grant
        return self.counted(grant.node) != before

    def _limit(self, author: str) -> int | None:
        grant = self._latest.get(author)
        return grant.through if grant is not None and grant.revokes else None

    def counted(self, author: str) -> int:
        """How many events of an author count."""
        held, limit = len(self._feeds.get(author, ())), self._limit(author)
        return held if limit is None else min(held, limit)

    def _append(self, entry: Entry) -> None:
        event = entry.event
        feed = self._feeds.setdefault(event.author, [])
        if event.seq != len(feed) + 1:
            raise Corrupted(
                f"Event {event.seq} of {event.author} does not follow {len(feed)}.", fix="Restart the daemon."
            )
        if event.seq == 1 and isinstance(entry.body, NodeAdmitted):
            self._grants[event.author] = open_grant(entry.body.grant, self._authority_key)
        feed.append(entry)
        self._tips[event.author] = hashlib.sha256(entry.encoded).digest()

    def load(self, records: Iterable[Record]) -> None:
        """Take in what the journal holds. Each record is judged like an event from elsewhere.

        Raises:
            Corrupted: a stored event is not valid.
        """
        for record in records:
            try:
                found = self.examine([_decode_event(record.data)])
            except msgspec.MsgspecError as error:
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
        """Events that a node with these heads lacks, in chain order, up to a size; and whether more remain."""
        events: list[Event] = []
        size = 0
        for author in sorted(self._feeds):
            for entry in self._feeds[author][heads.get(author, 0) : self._limit(author)]:
                size += len(entry.encoded) + 8
                if events and (size > limit_bytes or len(events) >= 512):
                    return tuple(events), True
                events.append(entry.event)
        return tuple(events), False

    def behind(self, heads: Mapping[str, int]) -> bool:
        """Whether a node with these heads has something we lack."""
        for author, seq in heads.items():
            limit = self._limit(author)
            there = seq if limit is None else min(seq, limit)
            wanted = author not in self._forked and seq != QUARANTINED
            if wanted and there > len(self._feeds.get(author, ())):
                return True
        return False

    def _encoded(self, author: str, seq: int, fresh: Sequence[Entry]) -> bytes:
        feed = self._feeds.get(author, [])
        if seq <= len(feed):
            return feed[seq - 1].encoded
        return next(e.encoded for e in fresh if e.event.author == author and e.event.seq == seq)

    def _first_grant(self, event: Event, body: Body | None) -> Grant:
        if event.seq != 1 or not isinstance(body, NodeAdmitted):
            raise Refused(f"The feed of {event.author} does not begin with a grant.", fix="Invite that node again.")
        grant = open_grant(body.grant, self._authority_key)
        if grant.node != event.author:
            raise Refused(
                f"The feed of {event.author} begins with the grant of {grant.node}.", fix="Invite that node again."
            )
        return grant
