"""The shell around the feeds: makes events durable, passes them on, and fetches what is missing.

A node's own events are pushed to every link at once; once a second version vectors are compared with one random
linked node, which repairs whatever a push missed. Events are folded only after they are on disk.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from hivenode.errors import HiveError, Refused, Unavailable
from hivenode.hive.clock import HybridClock, seconds
from hivenode.hive.feeds import QUARANTINED, Entry, Feeds
from hivenode.hive.views import Views
from hivenode.logs import get_logger
from hivenode.net.messages import Event, FeedDelta, FeedHeads, Message
from hivenode.spec.events import Body, NodeAdmitted
from hivenode.store.ports import Journal, Record
from hivenode.tasks import TaskGroup
from hivenode.trust.identity import Identity

DELTA_BYTES = 64 * 1024
INBOX = 256
PROBE = "probe"
"""Cell written to find out whether the disk takes anything again."""
MAX_AHEAD_HOURS = 24.0
WHOLE_SECONDS = 3.0
"""How long the first statement after a start waits to hear from another member."""

log = get_logger("feeds")


class Replication:
    """Owns the feeds of one node.

    Args:
        on_change: called after new entries are durable and folded.
        on_offender: called with a peer that sent something no honest node sends, and the reason.
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
        self._tasks = tasks
        self._lock = asyncio.Lock()
        self._inbox: asyncio.Queue[tuple[str, FeedDelta]] = asyncio.Queue(INBOX)
        self._known_elsewhere = 0
        self._whole = asyncio.Event()
        if not expects_peers:
            self._whole.set()
        self.quarantined = False
        """Whether another member found two branches of our own feed."""
        self.ahead: dict[str, float] = {}
        """Authors whose events are not taken in because their clocks are ahead of ours, with hours."""
        self.trouble = ""
        """Why events cannot be written now; empty when they can."""

    async def start(self) -> None:
        """Read the journal and fold it. Begins our own feed, if it is new, in the background."""
        self.feeds.load(self._journal.records())
        entries = sorted(self.feeds.entries(), key=lambda entry: entry.key)
        own = [entry.event.hlc for entry in entries if entry.event.author == self._identity.node_id]
        self._clock.follow(max(own, default=0))
        if entries:
            self._clock.observe(entries[-1].event.hlc)
        self._views.add(entries)
        self._tasks.spawn(self._introduce(), "feeds: introduce ourselves")
        self._tasks.spawn(self._take_in(), "feeds: take in")
        self._tasks.spawn(self._compare(), "feeds: compare")

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
        if self._whole.is_set():
            return
        try:
            async with asyncio.timeout(WHOLE_SECONDS):
                await self._whole.wait()
        except TimeoutError:
            if self._identity.node_id in self._journal.damaged:
                raise Unavailable(
                    "The end of this node's own feed was lost with a part of its journal.",
                    fix="Start another member of the hive: this node takes its own events back from it.",
                ) from None
            self._whole.set()  # nobody is there to ask, and nothing says that anything was lost

    def _see_whole(self) -> None:
        if self.feeds.heads.get(self._identity.node_id, 0) >= self._known_elsewhere:
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
        self._send(peer, FeedHeads(heads=self.feeds.heads, reply=True))

    def received(self, peer: str, message: FeedHeads | FeedDelta) -> None:
        if isinstance(message, FeedDelta):
            try:
                self._inbox.put_nowait((peer, message))
            except asyncio.QueueFull:
                log.warning("feed inbox full, a delta is dropped and will be asked for again", peer=peer)
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
            self._send(peer, FeedHeads(heads=self.feeds.heads))

    async def _take_in(self) -> None:
        while True:
            peer, delta = await self._inbox.get()
            try:
                await self._take(peer, delta)
            except HiveError as error:
                log.error("events received could not be stored", peer=peer, reason=str(error))
            except Exception:
                log.exception("events received could not be taken in", peer=peer)

    async def _take(self, peer: str, delta: FeedDelta) -> None:
        async with self._lock:
            found = self.feeds.examine(self._of_our_time(delta.events))
            for author in found.forks:
                log.error("two different events under one number: author quarantined", author=author)
            await self._keep(found.fresh)
            for entry in found.fresh:
                self._clock.observe(entry.event.hlc)
            self._see_whole()
        if found.offence:
            log.warning("a peer sent an event that cannot be", peer=peer, reason=found.offence)
            self._on_offender(peer, found.offence)
        elif found.fresh and (delta.more or found.gap):  # else it would be the same again
            self._send(peer, FeedHeads(heads=self.feeds.heads))

    def _of_our_time(self, events: Sequence[Event]) -> list[Event]:
        """Without those whose clock is so far ahead that following it would carry ours away."""
        kept: list[Event] = []
        for event in events:
            hours = (seconds(event.hlc) - self._wall()) / 3600
            if hours <= MAX_AHEAD_HOURS:
                kept.append(event)
                self.ahead.pop(event.author, None)
            elif len(self.ahead) < 100:
                self.ahead[event.author] = hours
        return kept

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
            self._views.rebuild(sorted(self.feeds.entries(), key=lambda entry: entry.key))
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
            if self.trouble:
                await self._try_again()
            links = self._links()
            if links:
                self._send(self._rng.choice(links), FeedHeads(heads=self.feeds.heads, reply=True))

    async def _try_again(self) -> None:
        try:
            await self._journal.set_cell(PROBE, b"")
        except HiveError:
            return  # the trouble is known and told
        self._note_trouble("")
