"""The shell around the feeds: makes events durable, passes them on, and fetches what is missing.

A node's own events are pushed to every link at once, and where there are links to some members only, whoever hears
something new passes it on to a few more. Every few seconds version vectors are compared with one random linked node,
which repairs whatever a push missed; where there are many authors, hashes of them first. Events are folded only after
they are on disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence

import msgspec

from hivenode.errors import HiveError, Refused, Unavailable
from hivenode.hive.clock import HybridClock, seconds
from hivenode.hive.feeds import QUARANTINED, Entry, Feeds
from hivenode.hive.inbox import Allowance, Inbox
from hivenode.hive.snapshots import Snapshot, finish, open_file, read
from hivenode.hive.views import Views
from hivenode.logs import get_logger
from hivenode.net.messages import Event, FeedDelta, FeedHeads, FeedSummary, Message
from hivenode.spec.events import Body, NodeAdmitted
from hivenode.store.ports import Journal, Record
from hivenode.tasks import TaskGroup
from hivenode.trust.identity import Identity

DELTA_BYTES = 64 * 1024
PROBE = "probe"
"""Cell written to find out whether the disk takes anything again."""
MAX_AHEAD_HOURS = 24.0
WHOLE_SECONDS = 3.0
"""How long the first statement after a start waits to hear from another member."""
TAKE_BACK_SECONDS = 60.0
"""How long it waits for events of our own of which another member has told."""
EVENTS_AT_ONCE = 512
"""Taken in with one write, of all that wait."""
MANY_AUTHORS = 64
"""With more of them a version vector is only sent once its hash is known to differ."""

log = get_logger("feeds")


class Replication:
    """Owns the feeds of one node.

    Args:
        on_change: called after new entries are durable and folded.
        on_offender: called with a peer that sent something no honest node sends, and the reason.
        fanout: to how many links what came from one of them is passed on; 0 where everybody is linked with everybody.
        on_trouble: called when events cannot be written any more, and when they can again.
        expects_peers: other members may hold events of ours that we lost (a journal cut off or replaced, a home
            restored from a backup). Before we state anything new we hear from one of them, or we would fork our own
            feed.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        grant: bytes,
        feeds: Feeds,
        views: Views,
        journal: Journal,
        clock: HybridClock,
        links: Callable[[], Sequence[str]],
        send: Callable[[str, Message], bool],
        rng: random.Random,
        sync_seconds: float,
        wall: Callable[[], float],
        on_change: Callable[[Sequence[Entry]], None],
        on_offender: Callable[[str, str], None],
        on_trouble: Callable[[], None],
        fanout: Callable[[], int],
        expects_peers: bool,
        tasks: TaskGroup,
    ) -> None:
        self._identity = identity
        self._grant = grant
        self.feeds = feeds
        self._views = views
        self._journal = journal
        self._clock = clock
        self._links = links
        self._send = send
        self._rng = rng
        self._sync_seconds = sync_seconds
        self._wall = wall
        self._on_change = on_change
        self._on_offender = on_offender
        self._on_trouble = on_trouble
        self._fanout = fanout
        self._summed: tuple[Mapping[str, int], str, FeedSummary] | None = None
        """The last summary, and what it was of."""
        self._tasks = tasks
        self._lock = asyncio.Lock()
        self._inbox = Inbox()
        self._arrived = asyncio.Event()
        self._allowance = Allowance()
        self._overflowing: dict[str, None] = {}
        self._known_elsewhere = 0
        self._whole = asyncio.Event()
        if not expects_peers:
            self._whole.set()
        self._forked = False
        """Whether less of some feed counts than is folded."""
        self.quarantined = False
        """Whether another member found two branches of our own feed."""
        self.ahead: dict[str, float] = {}
        """Authors whose events are not taken in because their clocks are ahead of ours, with hours."""
        self._excessive: tuple[str, ...] = ()
        self.trouble = ""
        """Why events cannot be written now; empty when they can."""
        self.sealed: Snapshot | None = None
        """The latest seal."""

    @property
    def excessive(self) -> tuple[str, ...]:
        """Authors that state so much that it is taken in slowly."""
        return self._allowance.exceeded(asyncio.get_running_loop().time())

    async def start(self) -> None:
        """Read the journal and fold it. Begins our own feed, if it is new, in the background."""
        if (file := self._journal.snapshot()) is not None:
            _, data = open_file(file)
            self._begin(finish(read(data, self._views.folds, self.feeds.authority_key)))
        self.feeds.load(self._journal.records())
        entries = list(self.feeds.entries())
        self._clock.follow(self.feeds.heard(self._identity.node_id))
        self._clock.observe(max((entry.event.hlc for entry in entries), default=0))
        self._views.add(entries)
        self._tasks.spawn(self._introduce(), "feeds: introduce ourselves")
        self._tasks.spawn(self._take_in(), "feeds: take in")
        self._tasks.spawn(self._compare(), "feeds: compare")

    def _begin(self, snapshot: Snapshot) -> None:
        self.sealed = snapshot
        self.feeds.begin(snapshot.header.cuts, snapshot.grants)
        self._clock.follow(self.feeds.heard(self._identity.node_id))
        self._views.rebase(snapshot.header.horizon, snapshot.marks, list(self.feeds.entries()))

    async def seal(self, snapshot: Snapshot, file: bytes) -> bool:
        """Put a snapshot in place of what it was made of: on disk first, then here. False if a later one is in place
        by now, or what is held contradicts it.

        Raises:
            Exhausted: the disk is full; nothing has changed.
        """
        return await asyncio.shield(self._tasks.spawn(self._seal(snapshot, file), "feeds: seal"))

    async def _seal(self, snapshot: Snapshot, file: bytes) -> bool:
        async with self._lock:
            header = snapshot.header
            if self.seal_number >= header.number or self.feeds.agrees(header.cuts):
                return False
            try:
                await self._journal.seal(file, {author: cut.seq for author, cut in header.cuts.items()})
            except HiveError as error:
                self._note_trouble(str(error))
                raise
            self._begin(snapshot)
            self._see_whole()
        log.info("sealed", number=header.number, bytes=len(file), events_left=self.feeds.size)
        return True

    @property
    def seal_number(self) -> int:
        return self.sealed.header.number if self.sealed is not None else 0

    @property
    def _seal_digest(self) -> str:
        return self.sealed.digest if self.sealed is not None else ""

    def heads(self, *, reply: bool = False) -> FeedHeads:
        """What we hold, for another member."""
        return FeedHeads(
            heads=dict(self.feeds.heads),
            reply=reply,
            seal=self.seal_number,
            digest=self._seal_digest,
            tips=self.feeds.digest,
        )

    def _summary(self) -> FeedSummary:
        heads, seal = self.feeds.heads, self._seal_digest
        if self._summed is None or self._summed[0] is not heads or self._summed[1] != seal:
            told = msgspec.msgpack.encode((sorted(heads.items()), self.feeds.digest, self.seal_number, seal))
            self._summed = (heads, seal, FeedSummary(digest=hashlib.sha256(told).digest()))
        return self._summed[2]

    async def append(self, *bodies: Body) -> None:
        """State facts: durable, folded and on their way to the others when this returns.

        Raises:
            Exhausted: the disk is full; nothing was stated.
        """
        await self._be_whole()
        # Once the disk has the events they must be taken in here too, whatever becomes of the caller.
        await asyncio.shield(self._tasks.spawn(self._state(bodies), "feeds: state"))

    async def _state(self, bodies: Sequence[Body]) -> None:
        async with self._lock:
            if self._identity.node_id not in self.feeds.heads:
                bodies = (NodeAdmitted(grant=self._grant), *bodies)
            fresh = self.feeds.compose(self._identity, self._clock.now, bodies)
            if self._identity.node_id in self.feeds.forked:
                raise Refused(
                    "There are two histories of what this node stated, so nothing it states counts any more.",
                    fix="Its home was restored from a backup or copied: give it a new one and invite it again.",
                )
            if not all(self.feeds.counts(entry.event) for entry in fresh):
                raise Refused(
                    "This node was revoked: nothing it states counts any more.",
                    fix="Ask an admin of the hive to let it in again.",
                )
            await self._keep(fresh)
        delta = FeedDelta(events=tuple(entry.event for entry in fresh))
        for peer in self._links():
            self._send(peer, delta)

    async def _be_whole(self) -> None:
        if self._whole.is_set() or await self._wait_whole(WHOLE_SECONDS):
            return
        others_have_more = self._known_elsewhere > self.feeds.head(self._identity.node_id)
        if others_have_more and await self._wait_whole(TAKE_BACK_SECONDS):
            return
        if self._identity.node_id in self._journal.damaged:
            raise Unavailable(
                "The end of this node's own feed was lost with a part of its journal.",
                fix="Start another member of the hive: this node takes its own events back from it.",
            )
        self._whole.set()  # nobody is there to ask, and nothing says that anything was lost

    async def _wait_whole(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._whole.wait()
        except TimeoutError:
            return False
        return True

    def _see_whole(self) -> None:
        if self.feeds.head(self._identity.node_id) >= self._known_elsewhere:
            self._whole.set()

    async def _introduce(self) -> None:
        while self._identity.node_id not in self.feeds.heads:
            try:
                await self.append()
            except Refused as error:
                log.warning("our own feed will not begin", reason=str(error))
                return
            except HiveError as error:
                log.error("our own feed cannot begin yet", reason=str(error))
                await asyncio.sleep(self._sync_seconds)

    def link_up(self, peer: str) -> None:
        self._send(peer, self._offer())

    def _offer(self) -> FeedHeads | FeedSummary:
        """What begins a comparison."""
        return self._summary() if len(self.feeds.heads) > MANY_AUTHORS else self.heads(reply=True)

    def received(self, peer: str, message: FeedHeads | FeedSummary | FeedDelta) -> None:
        if isinstance(message, FeedSummary):
            if message == self._summary():
                self._see_whole()
            else:
                self._send(peer, self.heads(reply=True))
            return
        if isinstance(message, FeedDelta):
            if self._inbox.put(peer, message):
                self._arrived.set()
            elif peer not in self._overflowing:
                self._overflowing[peer] = None
                log.warning("events of a peer come faster than they can be stored; some are asked for again", peer=peer)
            return
        ours = message.heads.get(self._identity.node_id, 0)
        self.quarantined = ours == QUARANTINED
        if not self.quarantined:
            self._known_elsewhere = max(self._known_elsewhere, ours)
        self._see_whole()
        events, more = self.feeds.missing(message.heads, DELTA_BYTES)
        if events:
            self._send(peer, FeedDelta(events=events, more=more))
        if message.reply and self.feeds.behind(message.heads):
            self._send(peer, self.heads())
        if message.tips and message.tips != self.feeds.digest and message.heads == self.feeds.heads:
            authors = self._rng.sample(list(message.heads), len(message.heads))
            self._send(peer, FeedDelta(events=self.feeds.samples(authors, DELTA_BYTES)))

    async def _take_in(self) -> None:
        while True:
            waiting = self._inbox.take(EVENTS_AT_ONCE)
            if not waiting:
                self._overflowing.clear()
                self._arrived.clear()
                await self._arrived.wait()
                continue
            peers = list(dict.fromkeys(peer for peer, _ in waiting))
            try:
                if not await self._take(waiting):
                    for one in waiting:  # find out whose it is
                        await self._take([one])
            except HiveError as error:
                log.error("events received could not be stored", peers=peers, reason=str(error))
            except Exception:
                log.exception("events received could not be taken in", peers=peers)

    async def _take(self, waiting: Sequence[tuple[str, FeedDelta]]) -> bool:
        """Take in what several peers sent with one write. False, and nothing is taken in, if one of several sent what
        cannot be."""
        async with self._lock:
            found = self.feeds.examine(self._within_bounds(_in_order(waiting)))
            for author in found.forks:
                log.error("two different events under one number: author quarantined", author=author)
                self._forked = True
            if found.offence and len(waiting) > 1:
                return False
            await self._keep(found.fresh)
            now = asyncio.get_running_loop().time()
            for entry in found.fresh:
                self._allowance.spend(entry.event, now)
                self._clock.observe(entry.event.hlc)
            self._see_whole()
        self._pass_on(waiting, found.fresh)
        if found.offence:
            peer = waiting[0][0]
            log.warning("a peer sent an event that cannot be", peer=peer, reason=found.offence)
            self._on_offender(peer, found.offence)
        elif found.fresh:  # else it would be the same again
            for peer in dict.fromkeys(peer for peer, delta in waiting if self._has_more(delta, found.gap)):
                self._send(peer, self.heads())
        return True

    def _has_more(self, delta: FeedDelta, gap: bool) -> bool:
        """Whether whoever sent this has events that we lack still."""
        return delta.more or (gap and self.feeds.behind({event.author: event.seq for event in delta.events}))

    def _pass_on(self, waiting: Sequence[tuple[str, FeedDelta]], fresh: Sequence[Entry]) -> None:
        """Rumour mongering (Demers et al., 1987): each node passes on what is new to it, once, to a few; the regular
        comparison finds those it missed, and what is caught up with in pieces is news to nobody."""
        said: dict[str, set[tuple[str, int]]] = {}
        old: set[tuple[str, int]] = set()
        for peer, delta in waiting:
            keys = {(event.author, event.seq) for event in delta.events}
            said.setdefault(peer, set()).update(keys)
            old.update(keys if delta.more else ())
        news = {(e.event.author, e.event.seq): e.event for e in fresh if (e.event.author, e.event.seq) not in old}
        told = {peer for peer, known in said.items() if news.keys() <= known}
        others = [peer for peer in self._links() if peer not in told] if news else []
        whole = FeedDelta(events=tuple(news.values()))
        for peer in self._rng.sample(others, min(len(others), self._fanout())):
            heard = said.get(peer)
            rest = [event for key, event in news.items() if key not in heard] if heard else ()
            self._send(peer, FeedDelta(events=tuple(rest)) if rest else whole)

    def _within_bounds(self, events: Sequence[Event]) -> list[Event]:
        """Without those whose clock is so far ahead that following it would carry ours away, and those of authors that
        state more than their share. Our own, which we may have lost, are bounded by what we once wrote."""
        kept: list[Event] = []
        for event in events:
            hours = (seconds(event.hlc) - self._wall()) / 3600
            if hours <= MAX_AHEAD_HOURS:
                kept.append(event)
                self.ahead.pop(event.author, None)
            elif not self.feeds.authentic(event):
                kept.append(event)  # to be found out: anybody can put another's name to a wrong clock
            elif len(self.ahead) < 100:
                self.ahead[event.author] = hours
        allowed = self._allowance.allowed(kept, asyncio.get_running_loop().time())
        for author in self.excessive:
            if author not in self._excessive:
                log.warning("a member states more than its share; the rest is taken in slowly", author=author)
        self._excessive = self.excessive
        return allowed

    async def _keep(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        try:
            await self._journal.append([Record(e.event.author, e.event.seq, e.encoded) for e in entries])
        except HiveError as error:
            self._note_trouble(str(error))
            raise
        self._note_trouble("")
        recount = [self.feeds.accept(entry) for entry in entries]
        if any(recount):
            self._views.rebuild(list(self.feeds.entries()))
        else:
            self._views.add([entry for entry in entries if self.feeds.counts(entry.event)])
        try:
            self._on_change(entries)
        except Exception:
            log.exception("news of events could not be acted on")  # the events themselves are taken in

    def _note_trouble(self, trouble: str) -> None:
        changed = bool(trouble) != bool(self.trouble)
        self.trouble = trouble
        if changed:
            self._on_trouble()

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(self._sync_seconds * self._rng.uniform(0.75, 1.25))
            if self._forked:  # once a round: whoever forks its own feed may do so at ever lower numbers
                self._forked = False
                self._views.rebuild(list(self.feeds.entries()))
                self._on_change(())
            if self.trouble:
                await self._try_again()
            links = self._links()
            if links:
                self._send(self._rng.choice(links), self._offer())

    async def _try_again(self) -> None:
        try:
            await self._journal.set_cell(PROBE, b"")
        except HiveError:
            return  # the trouble is known and told
        self._note_trouble("")


def _in_order(waiting: Sequence[tuple[str, FeedDelta]]) -> Sequence[Event]:
    """The events of several peers, each once, every author's in the order of its feed."""
    if len(waiting) == 1:
        return waiting[0][1].events
    events = {(event.author, event.seq, event.signature): event for _, delta in waiting for event in delta.events}
    return sorted(events.values(), key=lambda event: event.seq)
