"""View-synchronous all-reduce: the rules, without sockets, threads or clocks.

Rounds. All members of a view call round R with a vector of one length. Each owns a slice; it is sent everybody's
part of that slice, reduces the parts in rank order, and sends the reduced slice to all. R is complete at a member
that holds every slice and knows that every member of the view takes part. So whoever completes R knows that all
have completed R - 1, and members are never more than one round apart.

Who takes part, and what becomes of a round when that changes, is membership's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hivenode.training.exchange.attempt import Attempt, Buffers, State
from hivenode.training.exchange.effects import Bulk, Effect, Landing, Malformed, Phase, Reduce, Send, Transfer
from hivenode.training.exchange.membership import Membership
from hivenode.training.exchange.messages import (
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


class Group(Membership):
    """One member's side of the protocol.

    Args:
        rank: this member's.
        ranks: all members named, this one included.
        shares: relative slice sizes by rank, the same on all members; equal where absent.
    """

    def __init__(self, rank: int, ranks: Sequence[int], shares: Mapping[int, float] | None = None) -> None:
        super().__init__(rank, ranks)
        self.attempt: Attempt | None = None
        self.last: Attempt | None = None
        """The last completed attempt; its result is kept for members that lack it."""
        self.mismatch: tuple[int, int] | None = None
        """Rank and round of a result that is not ours."""
        self._shares = shares
        self._buffers = Buffers()
        self._begins: dict[int, Begin] = {}
        self._wants: dict[int, Want] = {}
        self._digests: dict[int, Completed] = {}
        self._digest: Completed | None = None

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

    def _resolve(self, install: Install) -> list[Effect]:
        self._buffers.clear()
        attempt, effects = self.attempt, list[Effect]()
        if install.completed > self.completed:
            if attempt is None or install.completed != attempt.number or install.source == self.rank:
                return self._leave(Accusation(self.rank, self.rank, Reason.behind))
            attempt.fetch_from(install.source)
            effects.append(Send(install.source, Want(install.view, attempt.number)))
        else:
            self._abandon()
        for rank in self.view.ranks:
            effects += self._serve(rank)
        return effects

    def _abandon(self) -> None:
        if self.attempt is not None:
            self.attempt.state = State.void
            self.attempt = None

    @property
    def leavers(self) -> bool:
        """Members of the view have finished: expel them before beginning a round."""
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
                return self.on_flush(sender, message)
            case Install():
                return self.on_install(sender, message)
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
