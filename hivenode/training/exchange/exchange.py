"""The exchange as strategies see it."""

from __future__ import annotations

import contextlib
import math
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hivenode.errors import Conflict, InvalidInput, Unavailable
from hivenode.net.local import Peer
from hivenode.training.exchange.attempt import Attempt, State
from hivenode.training.exchange.clock import now
from hivenode.training.exchange.errors import Excluded, Mismatch, NonFinite, ViewChanged
from hivenode.training.exchange.group import (
    Bulk,
    Effect,
    Entered,
    Group,
    Landing,
    Phase,
    Reduce,
    Send,
    Transfer,
)
from hivenode.training.exchange.keys import WorkerKey
from hivenode.training.exchange.link import Frame, Link, Sink
from hivenode.training.exchange.meeting import Meeting, listen
from hivenode.training.exchange.messages import Accusation, Control, Leave, Reason
from hivenode.training.exchange.reduction import Vector, digest_of
from hivenode.training.exchange.views import RankView, View

_WHY = {
    Reason.lost: "their connection to it broke",
    Reason.silent: "they heard nothing from it for too long",
    Reason.told: "it was reported lost",
    Reason.unreachable: "they could not reach it",
    Reason.unknown: "it was not on everybody's list of workers",
    Reason.malformed: "it sent bytes that are not of the protocol",
    Reason.nonfinite: "it contributed values that are not finite",
    Reason.left: "it had left",
    Reason.paused: "it stood still for longer than they wait, and nobody is left to ask",
    Reason.behind: "it fell behind",
}


@dataclass(frozen=True, slots=True)
class Seat:
    """This worker's place: node id, rank among the workers, and where it listens.

    Attributes:
        ports: inclusive range; (0, 0) lets the system choose.
    """

    node: str
    rank: int
    host: str
    ports: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Reduced:
    """What a round came to.

    Attributes:
        round: its number, counted from 1.
        contributors: node ids whose vectors are in the mean, in rank order.
        total_weight: sum of their weights.
        view: the view in force now; the next share is to be computed for it.
    """

    round: int
    contributors: tuple[str, ...]
    total_weight: float
    view: View


class Exchange(Sink):
    """Averages vectors with the other workers of a job, directly, with no server; survives the death of any.

    All members make the same calls in the same order. Results are bit-identical on all members of a view, whoever
    dies whenever: a round is done for all survivors or void for all of them. A network that falls apart leaves one
    view in each part. One thread may call; `lost`, `view` and `close` are safe from any.

    Args:
        me: this worker's place. It listens from construction on.
        key: its key; serves one exchange.
        silence_seconds: a peer of which nothing is heard for so long is lost.
        connect_seconds: how long `connect` waits for peers.
        heartbeat_seconds: how often peers hear from this worker at least.
        courtesy_seconds: how much later than a lower rank a higher one gives the other up, so that a broken link
            between two costs one of them, not both.
        chunk_bytes: size of a frame of numbers; at most 1 MiB.
        shares: node id -> relative size of its slice (say, bandwidth), equal on all workers; all alike if absent.
        on_view: told of each view, in order, from an internal thread; must return soon and not call the exchange.

    Raises:
        Conflict: no port to listen on.
    """

    def __init__(
        self,
        me: Seat,
        key: WorkerKey,
        *,
        silence_seconds: float = 3.0,
        connect_seconds: float = 15.0,
        heartbeat_seconds: float = 0.5,
        courtesy_seconds: float = 0.25,
        chunk_bytes: int = 512 * 1024,
        shares: Mapping[str, float] | None = None,
        on_view: Callable[[View], None] | None = None,
    ) -> None:
        self._me, self._key = me, key
        self._silence, self._connect = silence_seconds, connect_seconds
        self._beat, self._courtesy, self._chunk = heartbeat_seconds, courtesy_seconds, chunk_bytes
        self._shares, self._on_view = shares, on_view
        self._listener = listen(me.host, me.ports)
        self.port: int = self._listener.getsockname()[1]
        self.certificate: str = key.certificate
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._nodes: dict[int, str] = {me.rank: me.node}
        self._group = Group(me.rank, [me.rank])
        self._links: dict[int, Link] = {}
        self._closing: list[tuple[Link, float]] = []
        self._suspects: dict[int, tuple[float, Reason]] = {}
        self._views: deque[View] = deque()
        self._dropped: list[Accusation] = []
        self._acknowledged = View(0, (me.node,), (me.rank,))
        self._meeting: Meeting | None = None
        self._closed = False
        self._last_tick = now()
        self._tick = threading.Condition(self._lock)
        self._timer = threading.Thread(target=self._keep_time, name="exchange-timer", daemon=True)

    # --- for strategies --------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """The view the caller was last told of (by `connect`, `Reduced` or `ViewChanged`)."""
        return self._acknowledged

    def connect(self, peers: Sequence[Peer]) -> View:
        """Link up with all peers and agree on the first view. `peers` may include this worker.

        Raises:
            Excluded: the others have agreed to go without this one.
            InvalidInput: two peers share a rank or a node id, or a certificate is not one.
            Unavailable: closed meanwhile, or the others did not agree in time.
        """
        others = [peer for peer in peers if peer.node != self._me.node]
        with self._lock:
            if self._meeting is not None or self._closed:
                raise Conflict("The exchange is connected already.", fix="Make one exchange for each attempt.")
            self._nodes |= {peer.rank: peer.node for peer in others}
            if len(self._nodes) != len(others) + 1 or len(set(self._nodes.values())) != len(others) + 1:
                raise InvalidInput(
                    "Two workers share a rank or a node id.", fix="Give each worker of an attempt a rank of its own."
                )
            shares = None if self._shares is None else {r: self._shares.get(n, 1.0) for r, n in self._nodes.items()}
            self._group = Group(self._me.rank, list(self._nodes), shares)
            deadline = now() + self._connect
            try:
                self._meeting = Meeting(self._me.rank, self._key, self._listener, others, self._linked, deadline)
            except (ValueError, ssl.SSLError) as error:
                raise InvalidInput(
                    f"The certificate of a worker cannot be read: {error}.", fix="Pass it on as the worker gave it."
                ) from error
            self._last_tick = now()
            self._timer.start()
            self._meeting.start()
            self._apply(self._group.start())
            self._changed.wait_for(lambda: self._over() or not self._group.unlinked, self._connect)
            self._give_up(lambda rank: rank > self._me.rank)
            # As with broken links: where two cannot reach each other, the lower rank speaks first.
            self._changed.wait_for(lambda: self._over() or not self._group.unlinked, 2 * self._beat)
            self._give_up(lambda rank: True)
            agreed = self._changed.wait_for(
                lambda: self._over() or self._group.phase is Phase.stable, 2 * self._connect + 2 * self._silence
            )
            self._check()
            if not agreed:
                raise Unavailable("The workers did not agree on who takes part.", fix="Start another attempt.")
            return self._acknowledge()

    def lost(self, node: str) -> None:
        """The daemon's failure detector has given that node up. Safe from any thread; unknown nodes are ignored."""
        with self._lock:
            for rank, name in self._nodes.items():
                if name == node and rank != self._me.rank:
                    self._apply(self._group.accuse(rank, Reason.told))

    def all_reduce(self, vector: Vector, weight: float) -> Reduced:
        """Replace the vector by `sum(w_i * x_i) / sum(w_i)` over the members of the view, computed in float32 in rank
        order; by zeros when all weights are zero. With one member it stays as it is.

        Args:
            vector: float32, one-dimensional, contiguous, writable; as long on all members. Not written to unless the
                round is done, so it is intact after an exception.
            weight: finite and not negative, such as the number of samples.

        Raises:
            ViewChanged: nothing was reduced; compute the share for the new view and call again.
            NonFinite: somebody contributed NaN or infinity, and is out; otherwise as `ViewChanged`.
            Excluded: the others go on without this worker.
            Mismatch: a peer holds other bits as the result of an earlier round.
            InvalidInput: the vector or weight is not as described, or not of one length on all members.
        """
        if (
            vector.dtype != np.float32
            or vector.ndim != 1
            or not vector.flags.c_contiguous
            or not vector.flags.writeable
        ):
            raise InvalidInput(
                f"Not a contiguous writable float32 vector: {vector.dtype}, {vector.ndim} dimensions.",
                fix="Pass numpy.ascontiguousarray(x, numpy.float32).ravel().",
            )
        if not (math.isfinite(weight) and weight >= 0.0):
            raise InvalidInput(f"The weight {weight} is not a finite number from 0 up.", fix="Pass a sample count.")
        with self._lock:
            self._wait_stable()
            if self._current() != self._acknowledged:
                self._raise_changed(None)
            attempt = self._run(vector, weight)
            if attempt.state is not State.complete:
                self._wait_stable()
                self._raise_changed(attempt)
        digest = digest_of(attempt.result, copy_to=vector)
        with self._lock:
            self._apply(self._group.digested(attempt, digest))
            self._check_mismatch()
            return Reduced(
                attempt.number,
                tuple(self._nodes[rank] for rank in attempt.view.ranks),
                attempt.total_weight,
                self._acknowledge() if self._group.phase is Phase.stable else self._acknowledged,
            )

    def barrier(self) -> None:
        """Return once all members have called it, in whatever view that comes to be; then all hold the results of
        all rounds before it, and have compared them.

        Raises:
            Excluded, Mismatch: as for `all_reduce`.
        """
        empty = np.empty(0, np.float32)
        with self._lock:
            while True:
                self._wait_stable()
                attempt = self._run(empty, 0.0)
                if attempt.state is State.complete:
                    self._check_mismatch()
                    return

    def close(self) -> None:
        """Leave. Whatever is queued is sent first, for a second at most. Call `barrier` before, unless failing: a
        member that has left can no longer give its results to others. Never raises; calling it twice is harmless."""
        with self._lock:
            if self._closed:
                return
            links = list(self._links.values())
        for link in links:
            link.drain(1.0)
        with self._lock:
            self._closed = True
            for link in self._links.values():
                link.send(Leave())
                link.finish()
            self._changed.notify_all()
            self._tick.notify_all()
        for link in links:
            link.drain(1.0)
            link.cut()
        for link, _ in self._closing:
            link.cut()
        if self._meeting is not None:
            self._meeting.close()
        else:
            self._listener.close()
        for thread in [self._timer] if self._timer.is_alive() else []:
            if thread is not threading.current_thread():
                thread.join(2.0)
        for link in links:
            link.join(2.0)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_up(self, which: Callable[[int], bool]) -> None:
        for rank in self._group.unlinked:
            if which(rank):
                self._apply(self._group.accuse(rank, Reason.unreachable))

    # --- rounds (lock held) ----------------------------------------------------------------------------------

    def _run(self, vector: Vector, weight: float) -> Attempt:
        attempt, effects = self._group.begin(vector, weight)
        self._perform(self._apply(effects))
        self._changed.wait_for(
            lambda: (
                self._over()
                or attempt.state in (State.complete, State.void)
                or attempt.disagreement is not None
                or self._group.mismatch is not None
            )
        )
        if attempt.state is not State.complete:
            self._quiet(attempt)
            self._check(attempt.number)
            self._check_mismatch()
        if attempt.disagreement is not None:
            node = self._nodes[attempt.disagreement]
            raise InvalidInput(
                f"Worker {node} came to round {attempt.number} with a vector of another length or cut otherwise.",
                fix="All workers must run the same model with the same settings.",
            )
        return attempt

    def _quiet(self, attempt: Attempt) -> None:
        """Before the caller gets its vector back: nobody outside the new view may still be sent pieces of it, lest
        it completes a round with what is written there next. (Members have stopped taking part already.)"""
        for link, _ in self._closing:
            link.settle(0.25)

    def _wait_stable(self) -> None:
        while True:
            self._check()
            self._check_mismatch()
            if self._group.phase is Phase.stable:
                if not self._group.leavers:
                    return
                self._apply(self._group.expel_leavers())
                continue
            self._changed.wait_for(lambda: self._over() or self._group.phase is Phase.stable)

    def _over(self) -> bool:
        return self._closed or self._group.phase is Phase.out

    def _check(self, number: int = 0) -> None:
        if self._closed:
            raise Unavailable("The exchange was closed.", fix="Start another attempt.")
        verdict = self._group.verdict
        if self._group.phase is Phase.out and verdict is not None:
            if verdict.reason is Reason.nonfinite:
                raise NonFinite(self._me.node, verdict.round or number, None)
            raise Excluded(f"The other workers go on without {self._me.node}: {_WHY[verdict.reason]}.")

    def _check_mismatch(self) -> None:
        if self._group.mismatch is not None:
            rank, number = self._group.mismatch
            raise Mismatch(self._nodes[rank], number)

    def _current(self) -> View:
        view = self._group.view
        return View(view.id.number, tuple(self._nodes[rank] for rank in view.ranks), view.ranks)

    def _acknowledge(self) -> View:
        self._acknowledged = self._current()
        self._dropped.clear()
        return self._acknowledged

    def _raise_changed(self, attempt: Attempt | None) -> None:
        before, dropped = self._acknowledged, list(self._dropped)
        view = self._acknowledge()
        for accusation in dropped:
            if accusation.reason is Reason.nonfinite and attempt is not None:
                raise NonFinite(self._nodes[accusation.rank], accusation.round or attempt.number, view)
        raise ViewChanged(view, tuple(node for node in before.members if node not in view.members))

    # --- effects ---------------------------------------------------------------------------------------------

    def _apply(self, effects: Sequence[Effect]) -> list[Reduce]:
        """Carry out all but the arithmetic, which must not hold the lock; lock held."""
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
                    self._entered(view, dropped)
        if self._group.phase is Phase.out:
            for rank in list(self._links):
                self._retire(rank)
        self._changed.notify_all()
        return work

    def _entered(self, view: RankView, dropped: Sequence[Accusation]) -> None:
        self._dropped += dropped
        for accusation in dropped:
            self._retire(accusation.rank)
        for link in self._links.values():
            link.forget(view.id)
        if self._on_view is not None:
            self._views.append(self._current())
            self._tick.notify_all()

    def _retire(self, rank: int) -> None:
        """Say what is still to be said to a peer, then end the link."""
        if (link := self._links.pop(rank, None)) is not None:
            link.finish()
            self._closing.append((link, now() + 2.0))

    def _perform(self, work: list[Reduce]) -> None:
        """The arithmetic; lock held on entry and exit, not between."""
        while work:
            job = work.pop(0)
            with self._released():
                culprits = job.attempt.reduce(job.start, job.stop, job.out)
            work += self._apply(self._group.reduced(job.attempt, job.start, job.stop, culprits))

    @contextlib.contextmanager
    def _released(self) -> Iterator[None]:
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    # --- from links ------------------------------------------------------------------------------------------

    def _linked(self, rank: int, outgoing: ssl.SSLSocket, incoming: ssl.SSLSocket) -> None:
        with self._lock:
            link = Link(rank, outgoing, incoming, self, self._chunk)
            link.start()
            if self._closed:
                link.cut()
            elif rank in self._group.unlinked:
                self._links[rank] = link
                self._apply(self._group.linked(rank))
            else:
                # Given up on already: it is told so, and does not go on alone.
                for effect in self._group.turn_away(rank):
                    link.send(effect.message)
                link.finish()
                self._closing.append((link, now() + 2.0))

    def control(self, sender: int, message: Control) -> None:
        with self._lock:
            self._note_pause()
            if sender in self._links:
                self._perform(self._apply(self._group.receive(sender, message)))

    def landing(self, sender: int, frame: Frame) -> Landing | None:
        with self._lock:
            if sender not in self._links:
                return None
            return self._group.landing(
                sender, Bulk(frame.kind), frame.view, frame.round, frame.start, frame.length // 4
            )

    def landed(self, landing: Landing) -> None:
        with self._lock:
            self._perform(self._apply(self._group.arrived(landing)))

    def ended(self, sender: int, *, malformed: bool) -> None:
        with self._lock:
            self._note_pause()
            if sender in self._links and not self._closed:
                if malformed:
                    self._apply(self._group.accuse(sender, Reason.malformed))
                else:
                    self._suspect(sender, Reason.lost)

    def _suspect(self, rank: int, reason: Reason) -> None:
        """A lower rank is given up a little later than it would give up this one."""
        if rank > self._me.rank:
            self._apply(self._group.accuse(rank, reason))
        elif rank not in self._suspects:
            self._suspects[rank] = (now() + self._courtesy, reason)
            self._tick.notify_all()

    # --- time ------------------------------------------------------------------------------------------------

    def _note_pause(self) -> None:
        """This process stood still (stopped, suspended, starved): others will have given it up, and it must not
        take their silence or their hanging up for their death."""
        moment = now()
        if moment - self._last_tick > self._silence:
            self._group.doubt = True
            for link in self._links.values():
                link.last_heard = moment
            self._last_tick = moment

    def _keep_time(self) -> None:
        with self._lock:
            next_beat = now()
            while not self._closed:
                self._note_pause()
                moment = self._last_tick = now()
                if moment >= next_beat:
                    next_beat = moment + self._beat
                    self._heartbeat(moment)
                for rank, (due, reason) in list(self._suspects.items()):
                    if due <= moment:
                        del self._suspects[rank]
                        self._apply(self._group.accuse(rank, reason))
                while self._views and self._on_view is not None:
                    view = self._views.popleft()
                    with self._released():
                        self._on_view(view)
                due = min([next_beat, *(due for due, _ in self._suspects.values())])
                self._tick.wait(max(0.0, due - now()))

    def _heartbeat(self, moment: float) -> None:
        for rank, link in list(self._links.items()):
            link.beat()
            if moment - link.last_heard > self._silence + (self._beat + self._courtesy) * (rank < self._me.rank):
                self._apply(self._group.accuse(rank, Reason.silent))
            elif link.broken_since is not None and moment - link.broken_since > 1.0:
                self._apply(self._group.accuse(rank, Reason.lost))
        for link, due in list(self._closing):
            if due <= moment:
                link.cut()
                self._closing.remove((link, due))
