"""Threads and sockets around the protocol: carries out what it asks for, and tells it what happens.

One lock guards the protocol's state. It is never held while bytes move or numbers are reduced: each link's reader
takes it for an instant per frame, reduces what has become reducible outside of it, and takes it again.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hivenode.training.exchange.attempt import Attempt
from hivenode.training.exchange.channel import Channel
from hivenode.training.exchange.clock import now
from hivenode.training.exchange.effects import Bulk, Effect, Entered, Landing, Phase, Reduce, Send, Transfer
from hivenode.training.exchange.group import Group
from hivenode.training.exchange.link import Frame, Link, Sink
from hivenode.training.exchange.messages import Accusation, Control, Leave, Note, Reason
from hivenode.training.exchange.views import RankView

LINGER_SECONDS = 2.0
"""How long a link that is of no more use may take to hand over its last words."""

SETTLE_SECONDS = 0.25
"""How long a link out of the view may take to finish the frame it is sending, or receiving."""

MUTE_SECONDS = 0.75
"""A link out of the view of which nothing was heard for so long will not finish it."""

LAST_WORDS_SECONDS = 0.05
"""How long such a link may take to tell the peer, should it go on one day."""

BRISK_SECONDS = 1.0
BRISK_GAPS = 4.0
"""When a round is overdue, silence of the greater of the two (the second times the longest gap lately seen on that
link, though no longer than usual) is enough: whoever is not merely slow would have sent a heartbeat."""

BROKEN_SECONDS = 1.0
"""How long after writing failed the reader may take to find out why."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds, and the size of a frame; see `Exchange`."""

    silence: float
    heartbeat: float
    courtesy: float
    chunk_bytes: int


class Engine(Sink):
    """Args:
    group: the protocol's state; touched under `lock` only.
    on_view: told of each view, in order, from a thread of its own.
    on_note: given each note and who sent it, lock held; returns the answers.

    Attributes:
        lock: guards all state here.
        changed: on that lock; notified whenever the group's state may have changed.
        dropped: who was put out and why since `dropped` was last cleared.
        closed: nothing goes on any more.
    """

    def __init__(
        self,
        group: Group,
        pace: Pace,
        on_view: Callable[[RankView], None] | None,
        on_note: Callable[[int, bytes], Sequence[Send]] | None = None,
    ) -> None:
        self.group, self.closed = group, False
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.dropped: list[Accusation] = []
        self._pace, self._on_view, self._on_note = pace, on_view, on_note
        self._links: dict[int, Link] = {}
        self._closing: list[tuple[Link, float]] = []
        self._suspects: dict[int, float] = {}
        self._views: deque[RankView] = deque()
        self.waiting_since: float | None = None
        """When the round was called that the caller waits for."""
        self._last_tick = self._awake_at = now()
        self._tick = threading.Condition(self.lock)
        self._news = threading.Condition(self.lock)
        self._threads = [threading.Thread(target=self._keep_time, name="exchange-timer", daemon=True)]
        if on_view is not None:
            self._threads.append(threading.Thread(target=self._tell_views, name="exchange-views", daemon=True))

    def start(self) -> None:
        """Begin to keep time; lock held."""
        self._last_tick = now()
        for thread in self._threads:
            thread.start()
        self.apply(self.group.start())

    def close(self) -> None:
        """Send what is queued and a word of leave, for a second each at most; then end everything."""
        with self.lock:
            if self.closed:
                return
            links = list(self._links.values())
        self._drain(links)
        with self.lock:
            self.closed = True
            links = list(self._links.values())
            for link in links:
                link.send(Leave())
                link.finish()
            for condition in (self.changed, self._tick, self._news):
                condition.notify_all()
        self._drain(links)
        with self.lock:
            links += [link for link, _ in self._closing]
        for link in links:
            link.cut()
        deadline = now() + LINGER_SECONDS
        for link in links:
            link.join(deadline - now())
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - now()))

    @staticmethod
    def _drain(links: Sequence[Link]) -> None:
        deadline = now() + 1.0
        for link in links:
            link.drain(max(0.0, deadline - now()))

    # --- carrying out ----------------------------------------------------------------------------------------

    def apply(self, effects: Sequence[Effect]) -> list[Reduce]:
        """Carry out all but the arithmetic, which is returned; lock held."""
        work: list[Reduce] = []
        for effect in effects:
            match effect:
                case Send(to, message):
                    if (link := self._links.get(to)) is not None:
                        link.send(message)
                case Transfer(to=to):
                    if (link := self._links.get(to)) is not None:
                        link.transfer(effect)
                case Reduce():
                    work.append(effect)
                case Entered(view, dropped):
                    self._enter(view, dropped)
        if self.group.phase is Phase.out:
            for rank in list(self._links):
                self._retire(rank)
        due = self.group.due()
        if due is not None and due < self._awake_at:
            self._tick.notify_all()
        self.changed.notify_all()
        return work

    def rates(self) -> dict[int, int]:
        """Bytes a second that each link lately carried away from here, as far as measured; lock held."""
        measured = {rank: link.rate() for rank, link in self._links.items()}
        return {rank: rate for rank, rate in measured.items() if rate is not None}

    def perform(self, work: list[Reduce]) -> None:
        """The arithmetic; lock held on entry and exit, not between."""
        while work:
            job = work.pop(0)
            with self._released():
                culprits = job.attempt.reduce(job.start, job.stop)
            work += self.apply(self.group.reduced(job.attempt, job.start, job.stop, culprits))

    def settle(self, attempt: Attempt) -> None:
        """Before a caller gets its vector back: nobody outside the view may still be sent pieces of it, lest it
        completes a round with what is written there next. (Members have stopped taking part already.) Nor should
        anything arrive in the attempt's memory any more, which the next then takes over. Lock held."""
        closing, moment = [link for link, _ in self._closing], now()
        with self._released():
            for link in closing:
                if moment - link.heard > MUTE_SECONDS:
                    link.drain(LAST_WORDS_SECONDS)
                    link.cut()
                else:
                    link.settle(SETTLE_SECONDS)
        self.changed.wait_for(lambda: self.closed or attempt.idle, SETTLE_SECONDS)

    def _enter(self, view: RankView, dropped: Sequence[Accusation]) -> None:
        self.dropped += dropped
        for accusation in dropped:
            self._retire(accusation.rank)
        for link in self._links.values():
            link.forget(view.id)
        if self._on_view is not None:
            self._views.append(view)
            self._news.notify_all()

    def _retire(self, rank: int) -> None:
        """Say what is still to be said to a peer, then end the link."""
        if (link := self._links.pop(rank, None)) is not None:
            self._linger(link)

    def _linger(self, link: Link) -> None:
        link.finish()
        self._closing.append((link, now() + LINGER_SECONDS))

    @contextlib.contextmanager
    def _released(self) -> Iterator[None]:
        self.lock.release()
        try:
            yield
        finally:
            self.lock.acquire()

    # --- from links ------------------------------------------------------------------------------------------

    def linked(self, rank: int, outgoing: Channel, incoming: Channel) -> None:
        """Both connections to that peer stand."""
        with self.lock:
            link = Link(rank, outgoing, incoming, self, self._pace.chunk_bytes)
            link.start()
            if self.closed:
                link.cut()
            elif rank in self.group.unlinked or (self.group.is_candidate(rank) and rank not in self._links):
                self._links[rank] = link
                self.apply(self.group.linked(rank))
            else:
                # Given up on already: it is told so, and does not go on alone.
                for effect in self.group.turn_away(rank):
                    link.send(effect.message)
                self._linger(link)

    def control(self, sender: int, message: Control) -> None:
        with self.lock:
            self._note_pause()
            if sender in self._links:
                if isinstance(message, Note) and self._on_note is not None:
                    self.apply(self._on_note(sender, message.body))
                else:
                    self.perform(self.apply(self.group.receive(sender, message, now())))

    def landing(self, sender: int, frame: Frame) -> Landing | None:
        with self.lock:
            if sender not in self._links:
                return None
            return self.group.landing(sender, Bulk(frame.kind), frame.view, frame.round, frame.start, frame.count)

    def landed(self, landing: Landing) -> None:
        with self.lock:
            self.perform(self.apply(self.group.arrived(landing)))

    def ended(self, sender: int, unfinished: Landing | None, *, malformed: bool) -> None:
        with self.lock:
            if unfinished is not None:
                self.group.lost(unfinished)
                self.changed.notify_all()
            self._note_pause()
            if sender not in self._links or self.closed:
                return
            if self.group.is_candidate(sender):
                self._dismiss(sender)
            elif malformed:
                self.apply(self.group.accuse(sender, Reason.malformed))
            elif sender > self.group.rank:
                self.apply(self.group.accuse(sender, Reason.lost))
            else:
                # A lower rank is given up a little later than it would give up this one.
                self._suspects.setdefault(sender, now() + self._pace.courtesy)
                self._tick.notify_all()

    def _dismiss(self, rank: int) -> None:
        self.group.dismiss(rank)
        self._retire(rank)

    # --- time ------------------------------------------------------------------------------------------------

    def _note_pause(self) -> None:
        """If this process stood still (stopped, suspended, starved), others will have given it up: it must not take
        their silence or their hanging up for their death."""
        moment = now()
        if moment - self._last_tick > self._pace.silence:
            self.group.doubt = True
            for link in self._links.values():
                link.heard = moment
            self._last_tick = moment

    def _keep_time(self) -> None:
        with self.lock:
            next_beat = now()
            while not self.closed:
                self._note_pause()
                moment = self._last_tick = now()
                if moment >= next_beat:
                    next_beat = moment + self._pace.heartbeat
                    for link in self._links.values():
                        link.beat()
                due = self.group.due()
                if due is not None and due <= moment:
                    self.perform(self.apply(self.group.tick(moment)))
                    due = self.group.due()
                self._awake_at = min(next_beat, self._give_up(moment), math.inf if due is None else due)
                self._tick.wait(max(0.0, self._awake_at - now()))

    def _give_up(self, moment: float) -> float:
        """Accuse whoever's time is up; returns when the next one's will be."""
        due = moment + self._pace.silence
        for rank, until in list(self._suspects.items()):
            if until <= moment:
                del self._suspects[rank]
                self.apply(self.group.accuse(rank, Reason.lost))
            else:
                due = min(due, until)
        for rank, link in list(self._links.items()):
            patience = self._pace.silence
            if self.waiting_since is not None and moment - self.waiting_since > self.group.deadline:
                patience = min(patience, max(BRISK_SECONDS, BRISK_GAPS * link.gap))
            until = link.heard + patience + (self._pace.courtesy if rank < self.group.rank else 0.0)
            if until <= moment and self.group.is_candidate(rank):
                self._dismiss(rank)
            elif until <= moment:
                self.apply(self.group.accuse(rank, Reason.silent))
            elif link.broken_since is not None and moment - link.broken_since > BROKEN_SECONDS:
                self.apply(self.group.accuse(rank, Reason.lost))
            else:
                due = min(due, until)
        for link, until in self._closing:
            if until <= moment:
                link.cut()
        self._closing = [(link, until) for link, until in self._closing if until > moment]
        return due

    def _tell_views(self) -> None:
        assert self._on_view is not None
        with self.lock:
            while not self.closed:
                while self._views:
                    view = self._views.popleft()
                    with self._released():
                        self._on_view(view)
                if not self.closed:
                    self._news.wait()
