"""View-synchronous all-reduce: the rules, without sockets, threads or clocks.

Rounds. All members of a view call round R with a vector of one length. Each owns a slice; it is sent everybody's
part of that slice, reduces the parts in rank order, and sends the reduced slice to all. R is complete at a member
that holds every slice and knows that every member of the view takes part. So whoever completes R knows that all
have completed R - 1, and members are never more than one round apart.

Views. When a member is accused (lost, silent, told by the daemon, not finite) whoever hears of it stops taking part
in the view, tells all the others what it knows (`Flush`) and passes on what it hears; accusations only ever grow,
and a member accused by anybody is out. The lowest-ranked member left forms the next view once all that are left
have told it of exactly the same membership: since they have stopped, nobody completes anything in the old view any
more, and the highest round any of them reported is done, for all, and everything after it void, for all
(virtual synchrony: Birman and Joseph 1987; the flush is Isis's).

Why two members cannot go different ways. A member adopts a view only if the view's parent is the view it is in, and
only if it does not believe the view's leader out (`Install` from the leader), or hears of it from a member it does
not believe out. Its proposals shrink, so once its report has made a view of leader A possible, another proposal of
its own can be decided only by A as well (A is the lowest in both, and forms one view a number), or lacks A; and one
that lacks A needs the report of the member that told it of A's view, which adopted it before it gave up A, and so
never sends such a report. Views are numbered `(counter, leader)`, grow along every path, and messages of any view
but the current one are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

import numpy as np

from hivenode.training.exchange.attempt import Attempt, Buffers, State
from hivenode.training.exchange.messages import (
    FIRST,
    Accusation,
    Begin,
    Completed,
    Control,
    Flush,
    Hello,
    Install,
    Leave,
    Reason,
    Result,
    ViewId,
    Want,
)
from hivenode.training.exchange.reduction import Vector, total_of
from hivenode.training.exchange.views import RankView


class Phase(Enum):
    forming = "forming"
    """Waiting for links to all the members named, before the first view."""
    stable = "stable"
    flush = "flush"
    out = "out"


class Bulk(IntEnum):
    """Kinds of numbers on the wire. `start` counts elements from the beginning of the vector."""

    part = 1
    """Of the sender's contribution, to the owner of the slice."""
    reduced = 2
    """Of the sender's slice, to all."""
    fetched = 3
    """Of a whole result, to a member that lacks it."""


@dataclass(frozen=True, slots=True)
class Send:
    """Put this on the way to that member, in the order given."""

    to: int
    message: Control


@dataclass(frozen=True, slots=True)
class Transfer:
    """Put elements `[start, start + data.size)` on the way to that member, in the order given among bulk."""

    to: int
    kind: Bulk
    view: ViewId
    round: int
    start: int
    data: Vector


@dataclass(frozen=True, slots=True)
class Reduce:
    """Call `attempt.reduce(start, stop, out)`, then `Group.reduced` with what it returns."""

    attempt: Attempt
    start: int
    stop: int
    out: Vector


@dataclass(frozen=True, slots=True)
class Entered:
    """A new view is in force; links to `dropped` are of no more use once what is queued for them has gone."""

    view: RankView
    dropped: tuple[Accusation, ...]


Effect = Send | Transfer | Reduce | Entered


@dataclass(frozen=True, slots=True)
class Landing:
    """Where arriving numbers go. Hand it back to `Group.arrived` once `target` is filled."""

    attempt: Attempt
    view: ViewId
    """In which they were announced. A result can be fetched again, to another place, in a later one."""
    kind: Bulk
    sender: int
    target: Vector


class Malformed(Exception):
    """A member sent what no member may send."""


class Group:
    """One member's side of the protocol.

    Args:
        rank: this member's.
        ranks: all members named, this one included.
        shares: relative slice sizes by rank, the same on all members; equal where absent.
    """

    def __init__(self, rank: int, ranks: Sequence[int], shares: Mapping[int, float] | None = None) -> None:
        self.rank = rank
        self.view = RankView(FIRST, FIRST, tuple(sorted({*ranks, rank})))
        self.phase = Phase.forming
        self.completed = 0
        self.attempt: Attempt | None = None
        self.last: Attempt | None = None
        """The last completed attempt; its result is kept for members that lack it."""
        self.verdict: Accusation | None = None
        """Why this member is out."""
        self.mismatch: tuple[int, int] | None = None
        """Rank and round of a result that is not ours."""
        self.doubt = False
        """Set by the shell when this process stood still for longer than others wait: if it then finds itself
        alone, it is the one that was left out."""
        self._shares = shares
        self._buffers = Buffers()
        self._unlinked = set(self.view.ranks) - {rank}
        self._accused: dict[int, Accusation] = {}
        self._reports: dict[int, tuple[tuple[int, ...], int]] = {}
        self._begins: dict[int, Begin] = {}
        self._wants: dict[int, Want] = {}
        self._digests: dict[int, Completed] = {}
        self._digest: Completed | None = None
        self._leaving: dict[int, None] = {}
        self._installed: Install | None = None

    # --- membership ------------------------------------------------------------------------------------------

    @property
    def proposal(self) -> tuple[int, ...]:
        """The members of the view that nobody is known to have accused."""
        return tuple(rank for rank in self.view.ranks if rank not in self._accused)

    @property
    def unlinked(self) -> tuple[int, ...]:
        """Members the first view still waits for."""
        return tuple(sorted(self._unlinked - self._accused.keys())) if self.phase is Phase.forming else ()

    def linked(self, rank: int) -> list[Effect]:
        """The link to that member is up."""
        self._unlinked.discard(rank)
        return self._form()

    def start(self) -> list[Effect]:
        """Call once after construction: a member named alone forms its view at once."""
        return self._form()

    def accuse(self, rank: int, reason: Reason, number: int = 0) -> list[Effect]:
        """This member has seen for itself that the other cannot go on."""
        if rank in self._leaving and reason in (Reason.lost, Reason.silent, Reason.told):
            return []
        return self._accuse([Accusation(rank, self.rank, reason, number)])

    def turn_away(self, rank: int) -> list[Send]:
        """A member that comes too late for the first view is told which one there is."""
        return [Send(rank, self._installed)] if self._installed is not None else []

    def expel_leavers(self) -> list[Effect]:
        """Before a new round: members that have finished take no part in it."""
        return self._accuse([Accusation(rank, self.rank, Reason.left) for rank in self._leaving])

    def _accuse(self, accusations: Sequence[Accusation]) -> list[Effect]:
        if self.phase is Phase.out:
            return []
        fresh = [a for a in accusations if a.rank in self.view.ranks and a.rank not in self._accused]
        for accusation in fresh:
            if accusation.rank == self.rank:
                return self._leave(accusation)
            self._accused[accusation.rank] = accusation
        if not fresh:
            return []
        return self._form() if self.phase is Phase.forming else self._report()

    def _leave(self, verdict: Accusation) -> list[Effect]:
        """This member is out. It tells the others, lest they wait for it."""
        told: list[Effect] = []
        if verdict.by == self.rank:
            flush = Flush(self.view.id, self.view.parent, self.view.ranks, (verdict,), self.completed)
            told = [Send(rank, flush) for rank in self.view.ranks if rank != self.rank]
        self.phase = Phase.out
        self.verdict = verdict
        if self.attempt is not None:
            self.attempt.state = State.void
            self.attempt = None
        return told

    def _form(self) -> list[Effect]:
        return self._report() if self.phase is Phase.forming and not self.unlinked else []

    def _report(self) -> list[Effect]:
        self.phase = Phase.flush
        for rank in self._leaving:
            if rank in self.view.ranks and rank not in self._accused:
                self._accused[rank] = Accusation(rank, self.rank, Reason.left)
        flush = Flush(self.view.id, self.view.parent, self.view.ranks, tuple(self._accused.values()), self.completed)
        effects: list[Effect] = [Send(rank, flush) for rank in self.view.ranks if rank != self.rank]
        return effects + self._decide()

    def _decide(self) -> list[Effect]:
        proposal = self.proposal
        if self.phase is not Phase.flush or proposal[0] != self.rank:
            return []
        others = [rank for rank in proposal if rank != self.rank]
        if any(self._reports.get(rank, ((), 0))[0] != proposal for rank in others):
            return []
        if not others and self.doubt and len(self.view.ranks) > 1:
            return self._leave(Accusation(self.rank, self.rank, Reason.paused))
        rounds = {rank: self._reports[rank][1] for rank in others} | {self.rank: self.completed}
        done = max(rounds.values())
        install = Install(
            view=ViewId(self.view.id.number + 1, self.rank),
            parent=self.view.id,
            members=proposal,
            accused=tuple(self._accused.values()),
            completed=done,
            source=min(rank for rank, completed in rounds.items() if completed == done),
        )
        return self._install(install)

    def _install(self, install: Install, *, ending: bool = False) -> list[Effect]:
        """Enter the next view; `ending` when a member is known to have stopped taking part in it already."""
        old = self.view
        # Who put out a member for its numbers closes its links too: its loss may be the first that others see.
        known = self._accused | {a.rank: a for a in install.accused if a.reason is Reason.nonfinite}
        dropped = tuple(
            known.get(rank, Accusation(rank, install.view.leader, Reason.told))
            for rank in old.ranks
            if rank not in install.members
        )
        told = old.ranks if install.view.leader == self.rank else [accusation.rank for accusation in dropped]
        effects: list[Effect] = [Send(rank, install) for rank in told if rank != self.rank]
        self.view = RankView(install.view, install.parent, install.members)
        self.phase = Phase.stable
        self._installed = install
        self._reports = {}
        # What this member knows and the new view does not is kept: nobody will say it a second time.
        self._accused = {rank: a for rank, a in self._accused.items() if rank in install.members}
        self._leaving = {rank: None for rank in self._leaving if rank in install.members}
        self._buffers.clear()
        if len(install.members) > 1:
            self.doubt = False
        effects.append(Entered(self.view, dropped))
        if ending:
            # The attempt is neither done nor void yet: the flush of this view decides.
            return effects + self._report()
        attempt = self.attempt
        if install.completed > self.completed:
            if attempt is None or install.completed != attempt.number or install.source == self.rank:
                return effects + self._leave(Accusation(self.rank, self.rank, Reason.behind))
            attempt.fetch_from(install.source)
            effects.append(Send(install.source, Want(install.view, attempt.number)))
        elif attempt is not None:
            attempt.state = State.void
            self.attempt = None
        for rank in self.view.ranks:
            effects += self._serve(rank)
        return effects + (self._report() if self._accused else [])

    # --- rounds ----------------------------------------------------------------------------------------------

    def begin(self, vector: Vector, weight: float) -> tuple[Attempt, list[Effect]]:
        """Take part in the next round. Only in a stable view, with no attempt under way and no leavers.

        Args:
            vector: float32, one-dimensional, contiguous; must not change until the attempt is over.
            weight: finite and not negative.
        """
        attempt = Attempt(self.rank, self.view, self.completed + 1, vector, weight, self._shares, self._buffers)
        self.attempt = attempt
        message = Begin(self.view.id, attempt.number, attempt.count, weight, attempt.layout)
        effects: list[Effect] = [Send(rank, message) for rank in attempt.others]
        for rank in attempt.others:
            effects += self._join(rank)
        return attempt, effects + self._advance(attempt)

    @property
    def leavers(self) -> bool:
        return any(rank in self.view.ranks for rank in self._leaving)

    def _join(self, rank: int) -> list[Effect]:
        """The other member takes part too: send it what is its to reduce."""
        attempt, begin = self._current(), self._begins.get(rank)
        if attempt is None or begin is None or rank in attempt.weights:
            return []
        if begin.view != attempt.view.id or begin.round != attempt.number:
            return []
        if begin.count != attempt.count or begin.layout != attempt.layout:
            attempt.disagreement = rank
            return []
        attempt.weights[rank] = begin.weight
        low, high = attempt.slices[rank]
        if low == high:
            return []
        data = attempt.vector[low:high]
        return [Transfer(rank, Bulk.part, attempt.view.id, attempt.number, low, data)]

    def _current(self) -> Attempt | None:
        """The attempt, if it may make progress."""
        attempt = self.attempt
        if self.phase is not Phase.stable or attempt is None or attempt.state is not State.active:
            return None
        return attempt

    def landing(self, sender: int, kind: Bulk, view: ViewId, number: int, start: int, count: int) -> Landing | None:
        """Where `count` elements from `start` on, announced by `sender`, belong; None when they are stale.

        Raises:
            Malformed: nobody who follows the protocol sends this.
        """
        attempt = self.attempt
        if self.phase is not Phase.stable or attempt is None or view != self.view.id or number != attempt.number:
            return None
        if sender not in self.view.ranks:
            return None
        if kind is Bulk.fetched:
            if attempt.state is not State.fetching or sender != attempt.source:
                raise Malformed("a result nobody asked for")
            expected, end, base, array = attempt.fetch_mark, attempt.count, 0, attempt.result
        elif attempt.state is not State.active:
            return None
        elif kind is Bulk.part:
            expected, end, base = attempt.low + attempt.part_marks[sender], attempt.high, attempt.low
            array = attempt.parts[sender]
        else:
            low, end = attempt.slices[sender]
            expected, base, array = low + attempt.slice_marks[sender], 0, attempt.result
        if start != expected or count < 1 or start + count > end:
            raise Malformed(f"elements {start} to {start + count} where {expected} to {end} are due")
        return Landing(attempt, view, kind, sender, array[start - base : start - base + count])

    def arrived(self, landing: Landing) -> list[Effect]:
        """The numbers have been written to `landing.target`."""
        attempt, count = landing.attempt, int(landing.target.size)
        if attempt is not self.attempt or landing.view != self.view.id or self.phase is not Phase.stable:
            return []
        if landing.kind is Bulk.fetched:
            if attempt.state is State.fetching and landing.sender == attempt.source:
                attempt.fetch_mark += count
        elif attempt.state is not State.active:
            return []
        elif landing.kind is Bulk.part:
            attempt.part_marks[landing.sender] += count
        else:
            attempt.slice_marks[landing.sender] += count
        return self._advance(attempt)

    def reduced(self, attempt: Attempt, start: int, stop: int, culprits: Sequence[int]) -> list[Effect]:
        """`attempt.reduce` of this range has returned `culprits`."""
        attempt.reducing = False
        if attempt is not self._current():
            return []
        if culprits:
            return self._accuse([Accusation(rank, self.rank, Reason.nonfinite, attempt.number) for rank in culprits])
        attempt.reduced = stop
        first, last = attempt.low + start, attempt.low + stop
        effects: list[Effect] = [
            Transfer(rank, Bulk.reduced, attempt.view.id, attempt.number, first, attempt.result[first:last])
            for rank in attempt.others
        ]
        return effects + self._advance(attempt)

    def _advance(self, attempt: Attempt) -> list[Effect]:
        if attempt.state is State.fetching:
            if attempt.fetched():
                self._complete(attempt)
            return []
        ready = attempt.reducible()
        if ready is not None:
            attempt.reducing = True
            start, stop = ready
            return [Reduce(attempt, start, stop, attempt.result[attempt.low + start : attempt.low + stop])]
        if not attempt.others:
            return self._alone(attempt)
        if not attempt.reducing and attempt.all_arrived():
            attempt.total_weight = float(total_of(attempt.ordered_weights()))
            self._complete(attempt)
        return []

    def _alone(self, attempt: Attempt) -> list[Effect]:
        """The mean of one is itself."""
        if not np.isfinite(attempt.vector).all():
            return self._accuse([Accusation(self.rank, self.rank, Reason.nonfinite, attempt.number)])
        weight = attempt.weights[self.rank]
        np.copyto(attempt.result, attempt.vector if weight > 0.0 else np.float32(0.0))
        attempt.total_weight = float(total_of([weight]))
        self._complete(attempt)
        return []

    def _complete(self, attempt: Attempt) -> None:
        attempt.state = State.complete
        self.attempt = None
        self.completed = attempt.number
        self.doubt = False
        if attempt.view.id == self.view.id:
            # The next round writes to them only once all members have begun it: then nobody lacks this result.
            self._buffers.give(attempt.result, attempt.parts_array)
        self.last = attempt

    def digested(self, attempt: Attempt, digest: int) -> list[Effect]:
        """The digest of a completed attempt's result: compared with everybody's."""
        self._digest = Completed(attempt.number, digest)
        if self.phase is Phase.out:
            return []
        for rank, other in self._digests.items():
            self._compare(rank, other)
        return [Send(rank, self._digest) for rank in self.view.ranks if rank != self.rank]

    def _compare(self, rank: int, other: Completed) -> None:
        mine = self._digest
        if mine is None or rank not in self.view.ranks or self.mismatch is not None:
            return
        if mine.round == other.round and mine.digest != other.digest:
            self.mismatch = (rank, mine.round)

    def _serve(self, rank: int) -> list[Effect]:
        """Send the last result to a member that lacks it."""
        want, last = self._wants.get(rank), self.last
        if want is None or want.view != self.view.id or self.phase is not Phase.stable:
            return []
        del self._wants[rank]
        if last is None or last.number != want.round:
            return []
        effects: list[Effect] = [Send(rank, Result(self.view.id, last.number, last.total_weight))]
        if last.count:
            effects.append(Transfer(rank, Bulk.fetched, self.view.id, last.number, 0, last.result))
        return effects

    # --- messages --------------------------------------------------------------------------------------------

    def receive(self, sender: int, message: Control) -> list[Effect]:
        """A message from a member.

        Raises:
            Malformed: nobody who follows the protocol sends this.
        """
        if self.phase is Phase.out:
            return []
        match message:
            case Flush():
                return self._on_flush(sender, message)
            case Install():
                return self._on_install(sender, message)
            case Leave():
                return self._on_leave(sender)
            case Begin():
                if not 0.0 <= message.weight < float("inf"):
                    raise Malformed(f"weight {message.weight}")
                self._begins[sender] = message
                effects = self._join(sender)
                attempt = self._current()
                return effects + (self._advance(attempt) if attempt is not None else [])
            case Completed():
                self._digests[sender] = message
                self._compare(sender, message)
                return []
            case Want():
                self._wants[sender] = message
                return self._serve(sender)
            case Result():
                return self._on_result(sender, message)
            case Hello():
                raise Malformed("a second greeting")

    def _on_flush(self, sender: int, flush: Flush) -> list[Effect]:
        effects: list[Effect] = []
        if flush.view != self.view.id and flush.parent == self.view.id and self.phase is Phase.flush:
            effects = self._adopt(sender, flush)
        if self.phase is Phase.out:
            return effects
        if flush.view != self.view.id:
            return effects + self._correct(sender, flush)
        if sender in self._accused:
            return effects
        accusations = list(flush.accused)
        if self.view.id == FIRST:
            # Lists that differ: who is not on everybody's cannot be agreed on.
            accusations += [Accusation(r, sender, Reason.unknown) for r in self.view.ranks if r not in flush.members]
        out = {accusation.rank for accusation in accusations}
        self._reports[sender] = (tuple(rank for rank in flush.members if rank not in out), flush.completed)
        for accusation in accusations:
            if accusation.reason is Reason.nonfinite and accusation.rank in self._accused:
                self._accused[accusation.rank] = accusation
        if any(a.rank in self.view.ranks and a.rank not in self._accused for a in accusations):
            return effects + self._accuse(accusations)
        if self.phase is Phase.stable:
            return effects + self._report()
        return effects + self._decide()

    def _adopt(self, sender: int, flush: Flush) -> list[Effect]:
        """A member is already ending a view that this one was not told of: join it there."""
        if self.rank not in flush.members:
            return self._leave(Accusation(self.rank, sender, Reason.told))
        proposal = self.proposal
        if sender not in proposal and flush.view.leader not in proposal:
            return []
        return self._install(
            Install(flush.view, flush.parent, flush.members, (), self.completed, self.rank), ending=True
        )

    def _correct(self, sender: int, flush: Flush) -> list[Effect]:
        """The sender is in another view: an earlier one, or a branch."""
        if self._installed is None:
            return []
        if sender not in self.view.ranks or flush.view == self.view.parent:
            return [Send(sender, self._installed)]
        return []

    def _on_install(self, sender: int, install: Install) -> list[Effect]:
        if install.view == self.view.id or install.parent != self.view.id:
            stale = install.view <= self.view.id or sender not in self.view.ranks
            if self.rank not in install.members and not stale:
                return self._leave(self._reason_for(self.rank, install))
            return []
        if self.rank not in install.members:
            return self._leave(self._reason_for(self.rank, install))
        proposal = self.proposal
        if self.phase is not Phase.flush or (sender not in proposal and install.view.leader not in proposal):
            return []
        return self._install(install)

    def _reason_for(self, rank: int, install: Install) -> Accusation:
        for accusation in install.accused:
            if accusation.rank == rank:
                return accusation
        return Accusation(rank, install.view.leader, Reason.told)

    def _on_leave(self, sender: int) -> list[Effect]:
        self._leaving[sender] = None
        attempt = self.attempt
        if self.phase is Phase.stable:
            waiting = (
                attempt is not None
                and sender in attempt.others
                and (sender == attempt.source if attempt.state is State.fetching else not attempt.heard_out(sender))
            )
            if not waiting:
                return []
        return self._accuse([Accusation(sender, self.rank, Reason.left)])

    def _on_result(self, sender: int, result: Result) -> list[Effect]:
        attempt = self.attempt
        if self.phase is not Phase.stable or attempt is None or attempt.state is not State.fetching:
            return []
        if result.view != self.view.id or result.round != attempt.number or sender != attempt.source:
            return []
        attempt.total_weight = result.total_weight
        attempt.fetch_announced = True
        return self._advance(attempt)
