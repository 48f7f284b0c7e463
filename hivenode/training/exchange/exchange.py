"""The exchange as strategies see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hivenode.errors import Conflict, Corrupted, InvalidInput, Unavailable
from hivenode.net.local import Peer
from hivenode.training.exchange.attempt import Attempt
from hivenode.training.exchange.attempt import State as Progress
from hivenode.training.exchange.clock import now
from hivenode.training.exchange.codecs import Codec, Fp32
from hivenode.training.exchange.deadlines import Deadlines
from hivenode.training.exchange.effects import Phase, Send
from hivenode.training.exchange.engine import Engine, Pace
from hivenode.training.exchange.errors import Mismatch, ViewChanged
from hivenode.training.exchange.fixing import Terms
from hivenode.training.exchange.group import Group
from hivenode.training.exchange.inheritance import State
from hivenode.training.exchange.keys import WorkerKey
from hivenode.training.exchange.meeting import Meeting, listen
from hivenode.training.exchange.membership import BLAMED
from hivenode.training.exchange.messages import Note, Reason
from hivenode.training.exchange.reduction import digest_of
from hivenode.training.exchange.scratch import Vector
from hivenode.training.exchange.verdicts import blamed, put_out
from hivenode.training.exchange.views import RankView, View


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
        late: this worker's contribution, untouched, when it came too late to be in the mean; it is to be kept for the
            next round, such as added to what is then contributed.
        owed: first element, and what the codec took from the mean there (the mean minus what everybody got), in this
            worker's slice, until the next round is called; None without a codec.
    """

    round: int
    contributors: tuple[str, ...]
    total_weight: float
    view: View
    late: Vector | None = None
    owed: tuple[int, Vector] | None = None


class Exchange:
    """Averages vectors with the other workers of a job, directly, with no server; survives the death of any.

    All members make the same calls in the same order. A round waits for all members until those that have not called
    are overdue by what was usual of them; who comes later has the mean of the others, and may take part in the next.
    Results are bit-identical on all members of a view, whoever dies whenever: a round is done for all survivors or void
    for all of them. A network that falls apart leaves one view in each part. One thread may call; `lost`, `view` and
    `close` are safe from any.

    Args:
        me: this worker's place. It listens from construction on.
        key: its key; serves one exchange.
        silence_seconds: a peer of which nothing is heard for so long is lost.
        connect_seconds: how long `connect` waits for peers.
        heartbeat_seconds: how often peers hear from this worker at least.
        courtesy_seconds: how much later than a lower rank a higher one gives the other up, so that a broken link
            between two costs one of them, not both.
        chunk_bytes: size of a frame of numbers; at most 1 MiB.
        deadline_seconds: the least that the last is waited for after the first has called a round, whatever was usual.
        first_deadline_seconds: the same for the first few rounds, of which nothing is known.
        norm_limit: a contribution whose norm is so many times the median of all is refused; None takes any.
        shares: node id -> relative size of its slice; None (usual) follows what the links are measured to carry.
        on_view: told of each view, in order, from an internal thread; must return soon and not call the exchange.
        on_note: given what others `tell` this worker, and their node ids, from internal threads; returns what to tell
            whom in answer. Must return at once and not call the exchange.

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
        heartbeat_seconds: float = 0.25,
        courtesy_seconds: float = 0.25,
        deadline_seconds: float = 2.0,
        first_deadline_seconds: float = 30.0,
        norm_limit: float | None = None,
        chunk_bytes: int = 512 * 1024,
        shares: Mapping[str, float] | None = None,
        on_view: Callable[[View], None] | None = None,
        on_note: Callable[[str, bytes], Sequence[tuple[str, bytes]]] | None = None,
    ) -> None:
        self._me, self._key, self._connect, self._shares = me, key, connect_seconds, shares
        self._pace = Pace(silence_seconds, heartbeat_seconds, courtesy_seconds, chunk_bytes)
        self._deadline_seconds = (deadline_seconds, first_deadline_seconds)
        self._norm_limit = norm_limit
        self._on_view, self._on_note = on_view, on_note
        self._listener = listen(me.host, me.ports)
        self.port: int = self._listener.getsockname()[1]
        self.certificate: str = key.certificate
        self._nodes: dict[int, str] = {me.rank: me.node}
        self._engine = self._build(None)
        self._acknowledged = View(0, (me.node,), (me.rank,))
        self._meeting: Meeting | None = None

    def _build(self, shares: Mapping[int, float] | None, state_limit: int | None = None) -> Engine:
        on_view = self._on_view
        on_note = None if self._on_note is None else self._noted
        return Engine(
            Group(
                self._me.rank,
                list(self._nodes),
                Terms(Deadlines(*self._deadline_seconds), shares, self._norm_limit),
                state_limit,
            ),
            self._pace,
            None if on_view is None else lambda view: on_view(self._named(view)),
            on_note,
        )

    def _noted(self, sender: int, body: bytes) -> list[Send]:
        assert self._on_note is not None
        return self._letters(self._on_note(self._nodes[sender], body))

    def _letters(self, notes: Sequence[tuple[str, bytes]]) -> list[Send]:
        ranks = {node: rank for rank, node in self._nodes.items()}
        return [Send(ranks[node], Note(body)) for node, body in notes if node in ranks]

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
        engine = self._meet(peers, self._connect)
        with engine.lock:
            self._give_up_after(self._connect, lambda rank: rank > self._me.rank)
            # As with broken links: where two cannot reach each other, the lower rank speaks first.
            self._give_up_after(4 * self._pace.courtesy, lambda rank: True)
            self._await_view(2 * (self._connect + self._pace.silence))
            return self._acknowledge()

    def join(self, peers: Sequence[Peer], state_limit: int, seconds: float = 600.0) -> tuple[View, Vector]:
        """Come into a view that there is, instead of `connect`: link up with its members, who are told to `admit` this
        worker, wait until they let it in before a round of theirs, and take over their state. The next call is then
        that round.

        Args:
            peers: all members; this worker's rank is above theirs.
            state_limit: elements that the state takes at most.
            seconds: how long to wait for the members' next round.

        Returns:
            The view, and the state: the bytes of what the members gave to `all_reduce` as `state`, one after the other
            and filled up to whole float32 elements.

        Raises:
            Excluded, Unavailable: it could not be had (a member was lost while it gave); another try may work.
            Corrupted: a member gave something else than the others hold.
            InvalidInput: as for `connect`.
        """
        engine = self._meet(peers, seconds, state_limit)
        with engine.lock:
            self._await_view(seconds)
            group = engine.group
            engine.changed.wait_for(
                lambda: (
                    self._over()
                    or (given := group.inheritance) is None
                    or given.complete
                    or not set(given.donors) <= set(group.view.ranks)
                )
            )
            self._check()
            inheritance = group.inheritance
            if inheritance is None or not inheritance.complete:
                raise Unavailable("A worker was lost while it gave its state to a newcomer.", fix="Join again.")
            group.settled()
            view = self._acknowledge()
        if (rank := inheritance.liar()) is not None:
            raise Corrupted(
                f"Worker {self._nodes[rank]} gave another state than the others hold.",
                fix="Test the memory of its machine, and join again.",
            )
        return view, inheritance.state

    def admit(self, peer: Peer) -> None:
        """That worker wants to join: it is let in before the next round that all members call with `state`. Safe from
        any thread; whoever is known already is ignored.

        Raises:
            InvalidInput: its rank is not above this worker's, or its certificate is not one.
        """
        with self._engine.lock:
            if self._meeting is None or self._engine.closed or peer.rank in self._nodes:
                return
            if peer.rank < self._me.rank:
                raise InvalidInput(
                    f"The newcomer's rank {peer.rank} is not above {self._me.rank}.", fix="Give it the next one."
                )
            try:
                self._meeting.admit(peer, now() + self._connect)
            except ValueError as error:
                raise _unreadable(error) from error
            self._nodes[peer.rank] = peer.node
            self._engine.group.admit(peer.rank)

    def _meet(self, peers: Sequence[Peer], seconds: float, state_limit: int | None = None) -> Engine:
        others = [peer for peer in peers if peer.node != self._me.node]
        if self._meeting is not None or self._engine.closed:
            raise Conflict("The exchange is connected already.", fix="Make one exchange for each attempt.")
        nodes = {peer.rank: peer.node for peer in others} | {self._me.rank: self._me.node}
        if len(nodes) != len(others) + 1 or len(set(nodes.values())) != len(nodes):
            raise InvalidInput(
                "Two workers share a rank or a node id.", fix="Give each worker of an attempt a rank of its own."
            )
        if state_limit is not None and (len(nodes) == 1 or max(nodes) != self._me.rank):
            raise InvalidInput("A newcomer's rank is not above the others'.", fix="Give it the next one.")
        self._nodes = nodes
        shares = self._shares
        engine = self._build(
            None if shares is None else {rank: shares.get(node, 1.0) for rank, node in nodes.items()}, state_limit
        )
        try:
            self._meeting = Meeting(self._me.rank, self._key, self._listener, others, engine.linked, now() + seconds)
        except ValueError as error:
            raise _unreadable(error) from error
        self._engine = engine
        with engine.lock:
            engine.start()
            self._meeting.start()
        return engine

    def _await_view(self, seconds: float) -> None:
        """Until this worker is in a view; lock held."""
        engine = self._engine
        agreed = engine.changed.wait_for(lambda: self._over() or engine.group.phase is Phase.stable, seconds)
        self._check()
        if not agreed:
            raise Unavailable("The workers did not agree on who takes part.", fix="Start another attempt.")

    def _give_up_after(self, seconds: float, which: Callable[[int], bool]) -> None:
        """Wait for links; lock held."""
        group = self._engine.group
        self._engine.changed.wait_for(lambda: self._over() or not group.unlinked, seconds)
        for rank in group.unlinked:
            if which(rank):
                self._engine.apply(group.accuse(rank, Reason.unreachable))

    def lost(self, node: str) -> None:
        """The daemon's failure detector has given that node up. Safe from any thread; unknown nodes are ignored."""
        with self._engine.lock:
            for rank, name in self._nodes.items():
                if name == node and rank != self._me.rank:
                    self._engine.apply(self._engine.group.accuse(rank, Reason.told))

    def all_reduce(
        self,
        vector: Vector,
        weight: float,
        codec: Codec | None = None,
        state: Callable[[], State] | None = None,
        *,
        judged: bool = True,
        place: int = 0,
    ) -> Reduced:
        """Replace the vector by `sum(w_i * x_i) / sum(w_i)` over the members that were in time, computed in float32 in
        rank order; by zeros when all weights are zero. With one contributor it stays as it is.

        Args:
            vector: float32, one-dimensional, contiguous, writable; as long on all members. Not written to unless the
                round is done, so it is intact after an exception.
            weight: finite and not negative, such as the number of samples.
            codec: by which the numbers travel, the same on all members; None for float32 as it is. Contributions, the
                own included, and the mean are taken as decoded.
            state: a newcomer may be let in before this round; then this is called, from within, for what it has to
                know: arrays that are the same bytes on all members, as of the last round. Part of it is copied.
            judged: whether `norm_limit` holds of it.
            place: where in a step it is called, the same on all members: how late these are is learned for each place.

        Raises:
            ViewChanged: nothing was reduced; compute the share for the new view and call again.
            NonFinite, Absurd: somebody contributed NaN or infinity, or far too much, and is out; otherwise as
                `ViewChanged`.
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
        norm = -1.0
        if judged and self._norm_limit is not None:
            norm = float(np.linalg.norm(vector))
            norm = norm if math.isfinite(norm) else -1.0
        with self._engine.lock:
            self._wait_stable()
            if self._current() != self._acknowledged:
                self._raise_changed(None, state)
            attempt = self._run(
                vector, weight, None if isinstance(codec, Fp32) else codec, norm, open=state is not None, place=place
            )
            if attempt.state is not Progress.complete:
                self._wait_stable()
                self._raise_changed(attempt, state)
        late = vector.copy() if attempt.late else None
        digest = digest_of(attempt.result, copy_to=vector)
        with self._engine.lock:
            self._digested(attempt, digest)
            self._check_mismatch()
            return Reduced(
                attempt.number,
                tuple(self._nodes[rank] for rank in attempt.contributors),
                attempt.total_weight,
                self._acknowledge() if self._may_acknowledge() else self._acknowledged,
                late,
                None if attempt.owed is None or attempt.late else (attempt.low, attempt.owed),
            )

    def tell(self, *notes: tuple[str, bytes]) -> None:
        """Send notes to nodes, ahead of all numbers and in order; to those that are gone nothing is sent. Safe from any
        thread."""
        with self._engine.lock:
            self._engine.apply(self._letters(notes))

    def wait_for(self, holds: Callable[[View], bool], seconds: float | None = None) -> bool:
        """Wait until something holds of the view now in force, however many the caller has been told of; looked at
        whenever a note or a view has come. `holds` must not call the exchange. False when the time is up first.

        Raises:
            Excluded, Unavailable: it never will.
        """
        with self._engine.lock:
            held = self._engine.changed.wait_for(lambda: self._over() or holds(self._current()), seconds)
            self._check()
        return held

    def _may_acknowledge(self) -> bool:
        """A newcomer is told of by the next call, which is given the state for it."""
        return self._engine.group.phase is Phase.stable and not self._engine.group.gift_due

    def _digested(self, attempt: Attempt, digest: int) -> None:
        self._engine.perform(self._engine.apply(self._engine.group.digested(attempt, digest, now())))

    def barrier(self) -> None:
        """Return once all members that are in time have called it, in whatever view that comes to be; then all members
        hold the results of all rounds before it, and have compared them.

        Raises:
            Excluded, Mismatch: as for `all_reduce`.
        """
        empty = np.empty(0, np.float32)
        with self._engine.lock:
            while True:
                self._wait_stable()
                attempt = self._run(empty, 0.0)
                if attempt.state is Progress.complete:
                    self._digested(attempt, digest_of(empty))
                    self._check_mismatch()
                    return

    def close(self) -> None:
        """Leave. Whatever is queued is sent first, for a second at most. Call `barrier` before, unless failing: a
        member that has left can no longer give its results to others. Calling it twice is harmless."""
        self._engine.close()
        if self._meeting is not None:
            self._meeting.close()
        else:
            self._listener.close()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- rounds (lock held) ----------------------------------------------------------------------------------

    def _run(
        self,
        vector: Vector,
        weight: float,
        codec: Codec | None = None,
        norm: float = -1.0,
        *,
        open: bool = False,
        place: int = 0,
    ) -> Attempt:
        engine = self._engine
        engine.waiting_since = now()
        attempt, effects = engine.group.begin(
            vector, weight, engine.waiting_since, codec, norm, engine.rates(), open=open, place=place
        )
        engine.perform(engine.apply(effects))
        self._engine.changed.wait_for(
            lambda: (
                self._over()
                or attempt.state in (Progress.complete, Progress.void)
                or attempt.disagreement is not None
                or self._engine.group.mismatch is not None
            )
        )
        engine.waiting_since = None
        if attempt.state is not Progress.complete:
            engine.settle(attempt)
            self._check(attempt.number)
            self._check_mismatch()
        if attempt.disagreement is not None:
            node = self._nodes[attempt.disagreement]
            raise InvalidInput(
                f"Worker {node} came to round {attempt.number} with another layer, length or codec.",
                fix="All workers must run the same model with the same settings.",
            )
        return attempt

    def _wait_stable(self) -> None:
        while True:
            self._check()
            self._check_mismatch()
            if self._engine.group.phase is Phase.stable:
                if not self._engine.group.leavers:
                    return
                self._engine.apply(self._engine.group.expel_leavers())
                continue
            self._engine.changed.wait_for(lambda: self._over() or self._engine.group.phase is Phase.stable)

    def _over(self) -> bool:
        return self._engine.closed or self._engine.group.phase is Phase.out

    def _check(self, number: int = 0) -> None:
        if self._engine.closed:
            raise Unavailable("The exchange was closed.", fix="Start another attempt.")
        verdict = self._engine.group.verdict
        if self._engine.group.phase is Phase.out and verdict is not None:
            raise put_out(verdict, self._me.rank, self._nodes, number)

    def _check_mismatch(self) -> None:
        if self._engine.group.mismatch is not None:
            rank, number = self._engine.group.mismatch
            raise Mismatch(self._nodes[rank], number)

    def _current(self) -> View:
        return self._named(self._engine.group.view)

    def _named(self, view: RankView) -> View:
        return View(view.id.number, tuple(self._nodes[rank] for rank in view.ranks), view.ranks)

    def _acknowledge(self) -> View:
        self._acknowledged = self._current()
        self._engine.dropped.clear()
        return self._acknowledged

    def _raise_changed(self, attempt: Attempt | None, state: Callable[[], State] | None) -> None:
        if state is not None and self._engine.group.gift_due:
            self._engine.apply(self._engine.group.give(state()))
        before, dropped = self._acknowledged, list(self._engine.dropped)
        view = self._acknowledge()
        for accusation in dropped:
            if accusation.reason in BLAMED and attempt is not None:
                raise blamed(accusation, self._nodes[accusation.rank], attempt.number, view)
        raise ViewChanged(
            view,
            tuple(node for node in before.members if node not in view.members),
            tuple(node for node in view.members if node not in before.members),
        )


def _unreadable(error: Exception) -> InvalidInput:
    return InvalidInput(
        f"The certificate of a worker cannot be read: {error}.", fix="Pass it on as the worker gave it."
    )
