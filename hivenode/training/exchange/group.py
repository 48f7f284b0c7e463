"""View-synchronous all-reduce: the rules, without sockets, threads or clocks.

Rounds. The members of a view call round R with a vector of one length. The view's leader, its lowest rank, hears of
each call; once all have called, or those that have not are overdue, it fixes who contributes, and the slice each of
them owns. A contributor sends every owner its part of the slice; owners reduce the parts in rank order and send the
result to the other contributors. Who was not in time takes the result from one of them when it calls, and has its own
vector back.

When a round is fixed is `fixing`'s; who takes part, and what becomes of a round when that changes, is membership's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from hivenode.training.exchange.attempt import Attempt, Buffers, State
from hivenode.training.exchange.codecs import BLOCK, Codec
from hivenode.training.exchange.effects import Bulk, Effect, Landing, Malformed, Phase, Reduce, Send, Transfer
from hivenode.training.exchange.fixing import Fixing, Terms
from hivenode.training.exchange.inheritance import Estates, Inheritance, donate
from hivenode.training.exchange.inheritance import State as Inherited
from hivenode.training.exchange.messages import (
    Accusation,
    Begin,
    Candidate,
    Completed,
    Control,
    Donation,
    Fixed,
    Flush,
    Hello,
    Install,
    Leave,
    Note,
    Reason,
    Result,
    ViewId,
    Want,
)
from hivenode.training.exchange.reduction import total_of
from hivenode.training.exchange.scratch import Vector

MAX_EARLY = 4096
"""Messages."""


class Group(Fixing):
    """One member's side of the protocol.

    Args:
        rank: this member's.
        ranks: all members named, this one included.
        terms: what it goes by where it leads.
        state_limit: elements of a state that is taken over, at most; None when this member does not come late.
    """

    def __init__(
        self,
        rank: int,
        ranks: Sequence[int],
        terms: Terms | None = None,
        state_limit: int | None = None,
    ) -> None:
        super().__init__(rank, ranks, terms or Terms(), joining=state_limit is not None)
        self.attempt: Attempt | None = None
        self.last: Attempt | None = None
        """The last completed attempt; its result is kept for members that lack it."""
        self.mismatch: tuple[int, int] | None = None
        """Rank and round of a result that is not ours."""
        self._estates = Estates(state_limit)
        self._gift: tuple[Install, tuple[int, ...]] | None = None
        """How newcomers came in that wait for the state, and who gives it."""
        self._early: deque[tuple[int, Control]] = deque(maxlen=MAX_EARLY)
        """What was heard in a view before this member knew that it is in it."""
        self._buffers = Buffers()
        self._void: Attempt | None = None
        """The last that came to nothing: the next may have its memory, once nothing arrives in it any more."""
        self._entered = 0
        """The last round that was completed when this view began."""
        self._missed: tuple[int, int] | None = None
        """A round that goes on or is done without this member, and whom to ask for its result."""
        self._wants: dict[int, Want] = {}
        self._digests: dict[int, Completed] = {}
        self._digest: Completed | None = None

    # --- rounds ----------------------------------------------------------------------------------------------

    def begin(
        self,
        vector: Vector,
        weight: float,
        now: float,
        codec: Codec | None = None,
        norm: float = -1.0,
        rates: Mapping[int, int] | None = None,
        *,
        open: bool = False,
        place: int = 0,
    ) -> tuple[Attempt, list[Effect]]:
        """Take part in the next round. Only in a stable view, with no attempt under way and no leavers.

        Args:
            vector: float32, one-dimensional, contiguous; must not change until the attempt is over.
            weight: finite and not negative.
            now: seconds.
            codec: the same on all members.
            norm: of the vector; negative if not taken.
            rates: bytes a second lately sent to each member.
            open: a newcomer may be let in before this round.
            place: where in a step it is called, the same on all members.
        """
        attempt = Attempt(self.rank, self.view, self.completed + 1, vector, weight, codec)
        self.attempt = attempt
        if self._missed is not None:
            return attempt, self._fetch(attempt, self._missed[1])
        name = "" if codec is None else codec.name
        begin = Begin(self.view.id, attempt.number, attempt.count, name, weight, norm, dict(rates or {}), open, place)
        if self.leader == self.rank:
            return attempt, self._on_begin(self.rank, begin, now)
        return attempt, [Send(self.leader, begin)]

    @property
    def leavers(self) -> bool:
        """Members of the view have finished: expel them before beginning a round."""
        return any(rank in self.view.ranks for rank in self._leaving)

    # --- taking part -------------------------------------------------------------------------------------------

    def _on_fixed(self, sender: int, fixed: Fixed) -> list[Effect]:
        if fixed.view != self.view.id or self.phase is not Phase.stable or fixed.round <= self._fixed:
            return []
        attempt = self.attempt if self.attempt is not None and self.attempt.number == fixed.round else None
        self._check_fixed(sender, fixed, attempt)
        self._fixed, self.deadline = fixed.round, fixed.deadline
        if fixed.odd is not None:
            if attempt is not None:
                attempt.disagreement = fixed.odd
            return []
        if self.rank not in fixed.contributors:
            self._missed = (fixed.round, fixed.contributors[self.rank % len(fixed.contributors)])
            return self._fetch(attempt, self._missed[1]) if attempt is not None else []
        if attempt is None or attempt.state is not State.waiting:
            return []
        if self._void is not None and self._void.idle:
            self._void.give_back(self._buffers)
        self._void = None
        attempt.fix(fixed, self._buffers)
        effects: list[Effect] = []
        for rank in attempt.others:
            if rank != self.leader:
                effects.append(Send(rank, fixed))  # ahead of the numbers: it may not have heard it from the leader
            low, high = attempt.slices[rank]
            if low < high:
                values = attempt.vector[low:high]
                effects.append(Transfer(rank, Bulk.part, attempt.view.id, attempt.number, low, values, attempt.codec))
        return effects + self._advance(attempt)

    def _fetch(self, attempt: Attempt, source: int) -> list[Effect]:
        attempt.fetch_from(source)
        return [Send(source, Want(self.view.id, attempt.number))]

    def _resolve(self, install: Install) -> list[Effect]:
        self._buffers.clear()
        self._begins, self._late, self._missed, self._fixed = {}, {}, None, install.completed
        self.deadlines.keep(self.view.ranks)
        self._entered = install.completed
        for rank in install.joined:
            self._done[rank] = install.completed
        donors = tuple(rank for rank in install.members if rank not in install.joined)
        self._gift = (install, donors) if install.joined and self.rank in donors else None
        if self.rank in install.joined:
            self._estates.came_into(install.view, donors)
        effects = list[Effect]()
        if install.completed > self.completed:
            if install.completed != self.completed + 1 or install.source == self.rank:
                return self._leave(Accusation(self.rank, self.rank, Reason.behind))
            self._missed = (install.completed, install.source)
            if self.attempt is not None:
                effects += self._fetch(self.attempt, install.source)
        else:
            self._abandon()
        for rank in self.view.ranks:
            effects += self._serve(rank)
        return effects

    def _abandon(self) -> None:
        if self.attempt is not None:
            self.attempt.state = State.void
            self.attempt, self._void = None, self.attempt

    # --- numbers -----------------------------------------------------------------------------------------------

    def _current(self) -> Attempt | None:
        """The attempt, if it may make progress."""
        attempt = self.attempt
        if self.phase is not Phase.stable or attempt is None or attempt.state is not State.active:
            return None
        return attempt

    def landing(self, sender: int, kind: Bulk, view: ViewId, number: int, start: int, count: int) -> Landing | None:
        """Where `count` elements from `start` on, announced by `sender`, belong; None when they are stale. Either
        `arrived` or `lost` is told of it later.

        Raises:
            Malformed: nobody who follows the protocol sends this.
        """
        found = self._landing(sender, kind, view, number, start, count)
        if found is not None and found.attempt is not None:
            found.attempt.landings += 1
        return found

    def _landing(self, sender: int, kind: Bulk, view: ViewId, number: int, start: int, count: int) -> Landing | None:
        attempt = self.attempt
        if kind is Bulk.state:
            values = self._estates.landing(view, sender, start, count)
            return None if values is None else Landing(None, view, kind, sender, count, values.view(np.uint8))
        if self.phase is not Phase.stable or attempt is None or view != self.view.id or number != attempt.number:
            return None
        if sender not in self.view.ranks:
            return None
        if kind is Bulk.fetched:
            if attempt.state is not State.fetching or sender != attempt.source or not attempt.fetch_announced:
                raise Malformed("a result nobody asked for, or not announced")
            expected, end, codec = attempt.fetch_mark, attempt.count, None
        elif attempt.state is not State.active:
            return None
        elif sender not in attempt.part_marks:
            raise Malformed("numbers of one who does not contribute")
        elif kind is Bulk.part:
            expected, end, codec = attempt.low + attempt.part_marks[sender], attempt.high, attempt.codec
        else:
            low, end = attempt.slices[sender]
            expected, codec = low + attempt.slice_marks[sender], attempt.codec
        if start != expected or count < 1 or start + count > end:
            raise Malformed(f"elements {start} to {start + count} where {expected} to {end} are due")
        if codec is not None and count % BLOCK and start + count != end:
            raise Malformed(f"{count} elements where whole blocks are due")
        if kind is Bulk.part:
            target = attempt.part(sender, start - attempt.low, count)
            return Landing(attempt, view, kind, sender, count, target)
        values = attempt.result[start : start + count]
        if codec is not None:
            return Landing(attempt, view, kind, sender, count, None, values, codec)
        return Landing(attempt, view, kind, sender, count, values.view(np.uint8))

    def arrived(self, landing: Landing) -> list[Effect]:
        """The numbers are where they belong."""
        self.lost(landing)
        attempt, count = landing.attempt, landing.count
        if landing.kind is Bulk.state:
            self._estates.arrived(landing.view, landing.sender, count)
        if (
            attempt is None
            or attempt is not self.attempt
            or landing.view != self.view.id
            or self.phase is not Phase.stable
        ):
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

    def lost(self, landing: Landing) -> None:
        """No more of these numbers will come."""
        if landing.attempt is not None:
            landing.attempt.landings -= 1

    def reduced(self, attempt: Attempt, start: int, stop: int, culprits: Sequence[int]) -> list[Effect]:
        """`attempt.reduce` of this range has returned `culprits`."""
        attempt.reducing = False
        if attempt is not self._current():
            return []
        if culprits:
            return self._accuse([Accusation(rank, self.rank, Reason.nonfinite, attempt.number) for rank in culprits])
        attempt.reduced = stop
        first, values = attempt.low + start, attempt.result[attempt.low + start : attempt.low + stop]
        encoded = attempt.encoded(start, stop)
        effects: list[Effect] = [
            Transfer(rank, Bulk.reduced, attempt.view.id, attempt.number, first, values, attempt.codec, encoded)
            for rank in attempt.others
        ]
        return effects + self._advance(attempt)

    def _advance(self, attempt: Attempt) -> list[Effect]:
        if attempt.state is State.fetching:
            return self._complete(attempt) if attempt.fetched() else []
        if attempt.state is not State.active:
            return []
        ready = attempt.reducible()
        if ready is not None:
            attempt.reducing = True
            return [Reduce(attempt, *ready)]
        if not attempt.others:
            return self._alone(attempt)
        if not attempt.reducing and attempt.all_arrived():
            attempt.total_weight = float(total_of(attempt.weights()))
            return self._complete(attempt)
        return []

    def _alone(self, attempt: Attempt) -> list[Effect]:
        """The mean of one is itself."""
        if not np.isfinite(attempt.vector).all():
            return self._accuse([Accusation(self.rank, self.rank, Reason.nonfinite, attempt.number)])
        np.copyto(attempt.result, attempt.vector if attempt.weight > 0.0 else np.float32(0.0))
        attempt.total_weight = float(total_of([attempt.weight]))
        return self._complete(attempt)

    def _complete(self, attempt: Attempt) -> list[Effect]:
        attempt.state = State.complete
        self.attempt = self._missed = None
        self.completed = attempt.number
        self.newcomers.discard(self.rank)
        self.doubt = False
        if attempt.view.id == self.view.id:
            # The next round writes to it only once it is fixed, when all members hold this one's result.
            attempt.give_back(self._buffers)
        self.last = attempt
        effects: list[Effect] = []
        for rank in list(self._wants):
            effects += self._serve(rank)
        return effects

    def digested(self, attempt: Attempt, digest: int, now: float) -> list[Effect]:
        """The digest of a completed attempt's result: compared with everybody's."""
        self._digest = Completed(attempt.number, digest)
        self._came(self.rank, attempt.number, now)
        if self.phase is Phase.out:
            return []
        for rank, other in self._digests.items():
            self._compare(rank, other)
        effects: list[Effect] = [Send(rank, self._digest) for rank in self.view.ranks if rank != self.rank]
        return effects + self._consider(now)

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
        if last is None or last.number < want.round:
            return []  # once it is there
        del self._wants[rank]
        if last.number > want.round:
            return []
        result = Result(self.view.id, last.number, last.count, last.contributors, last.total_weight)
        effects: list[Effect] = [Send(rank, result)]
        if last.count:
            # It may be read for longer than rounds take.
            self._buffers.withdraw("result")
            effects.append(Transfer(rank, Bulk.fetched, self.view.id, last.number, 0, last.result))
        return effects

    # --- newcomers -----------------------------------------------------------------------------------------------

    @property
    def gift_due(self) -> bool:
        """Newcomers wait for this member's part of the state as it is now."""
        return self._gift is not None and self._gift[0].completed == self.completed

    def give(self, state: Inherited) -> list[Effect]:
        """Give it to them; `state` is as of the last round completed."""
        gift, self._gift = self._gift, None
        if gift is None:
            return []
        install, donors = gift
        donation, start, values = donate(state, donors, self.rank, install.view)
        effects: list[Effect] = []
        for rank in install.joined:
            effects.append(Send(rank, donation))
            if values.size:
                effects.append(Transfer(rank, Bulk.state, install.view, install.completed, start, values))
        return effects

    def _flushes_heard(self) -> Iterable[Flush]:
        return (message for _, message in self._early if isinstance(message, Flush))

    @property
    def inheritance(self) -> Inheritance | None:
        """Of a newcomer, the state that it is being given; until `settled`."""
        return self._estates.current

    def settled(self) -> None:
        """The newcomer has taken its state."""
        self._estates.settled()

    def _unsettled(self) -> bool:
        return self._estates.open

    def _on_donation(self, sender: int, donation: Donation) -> list[Effect]:
        self._estates.announced(sender, donation)
        return []

    # --- messages --------------------------------------------------------------------------------------------

    def receive(self, sender: int, message: Control, now: float) -> list[Effect]:
        """A message from a member.

        Raises:
            Malformed: nobody who follows the protocol sends this.
        """
        if self.phase is Phase.out:
            return []
        if self.phase is Phase.joining and not isinstance(message, (Install, Donation)):
            self._early.append((sender, message))
            return self._give_up_joining()
        match message:
            case Flush():
                self._done[sender] = max(self._done.get(sender, 0), message.completed)
                return self.on_flush(sender, message)
            case Install():
                effects = self.on_install(sender, message)
                while self._early and self.phase is not Phase.joining:
                    effects += self.receive(*self._early.popleft(), now)
                return effects
            case Candidate():
                self.on_candidate(sender, message)
                return self._consider(now)
            case Donation():
                return self._on_donation(sender, message)
            case Leave():
                return self._on_leave(sender)
            case Begin():
                return self._on_begin(sender, message, now)
            case Fixed():
                return self._on_fixed(sender, message)
            case Completed():
                return self._on_completed(sender, message, now)
            case Want():
                self._wants[sender] = message
                return self._serve(sender)
            case Result():
                return self._on_result(sender, message)
            case Note():
                return []  # the shell hands it on
            case Hello():
                raise Malformed("a second greeting")

    def _on_completed(self, sender: int, message: Completed, now: float) -> list[Effect]:
        self._digests[sender] = message
        self._compare(sender, message)
        self._came(sender, message.round, now)
        if message.round > self._done.get(sender, 0):
            self._done[sender] = message.round
            if message.round > self._entered:
                self.newcomers.discard(sender)
        return self._consider(now)

    def _on_leave(self, sender: int) -> list[Effect]:
        self._leaving[sender] = None
        attempt = self.attempt
        if self.phase is Phase.stable:
            if attempt is None:
                return []
            waiting = {
                State.waiting: True,
                State.active: not attempt.heard_out(sender),
                State.fetching: sender == attempt.source,
            }
            if sender not in self.view.ranks or not waiting.get(attempt.state, False):
                return []
        return self._accuse([Accusation(sender, self.rank, Reason.left)])

    def _on_result(self, sender: int, result: Result) -> list[Effect]:
        attempt = self.attempt
        if self.phase is not Phase.stable or attempt is None or attempt.state is not State.fetching:
            return []
        if result.view != self.view.id or result.round != attempt.number or sender != attempt.source:
            return []
        if result.count != attempt.count:
            attempt.disagreement = sender
            return []
        attempt.contributors, attempt.total_weight = result.contributors, result.total_weight
        attempt.fetch_announced = True
        return self._advance(attempt)
