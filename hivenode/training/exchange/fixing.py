"""When a round begins, and with whom: what the leader of a view, its lowest rank, decides.

R is fixed only when every member holds the result of R - 1, so nobody ever lacks more than the last one, and whoever
holds the last one can give it to whoever does not. A member that holds up the others by lacking it is waited for
longer than one that is merely late, and then put out.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from hivenode.training.exchange import slices
from hivenode.training.exchange.attempt import Attempt
from hivenode.training.exchange.codecs import BLOCK
from hivenode.training.exchange.deadlines import Deadlines
from hivenode.training.exchange.effects import Effect, Malformed, Phase, Send
from hivenode.training.exchange.membership import Membership
from hivenode.training.exchange.messages import Accusation, Begin, Fixed, Reason
from hivenode.training.exchange.reduction import cut

BEHIND_SECONDS = 10.0
BEHIND_DEADLINES = 5.0
"""A member that lacks the last result holds up the others for the greater of the two, from the first call on."""

NEWCOMER_SECONDS = 120.0
"""How long a newcomer may take over the state, once the others could go on to the second round."""

ENOUGH_FOR_NORMS = 3
"""Contributors without which nobody's norm is absurd."""


@dataclass(frozen=True)
class Terms:
    """What the leader goes by.

    Attributes:
        deadlines: how long a round waits; learns from every round.
        shares: relative slice sizes by rank, where they are not to follow the measured rates; 1 where absent.
        norm_limit: updates whose norm is larger than the contributors' median by more than this factor are absurd.
    """

    deadlines: Deadlines = field(default_factory=lambda: Deadlines(1.0, 30.0))
    shares: Mapping[int, float] | None = None
    norm_limit: float | None = None


class Fixing(Membership):
    """One member's side of it; all but `_on_fixed` is idle on who does not lead.

    Args:
        rank: this member's.
        ranks: all members named, this one included.
        terms: of this member's own; used where it leads.
        joining: this member comes late.

    Attributes:
        deadline: seconds the leader last said it would wait.
    """

    def __init__(self, rank: int, ranks: Sequence[int], terms: Terms, *, joining: bool) -> None:
        super().__init__(rank, ranks, joining=joining)
        self.deadlines, self._terms = terms.deadlines, terms
        self.deadline = self.deadlines.seconds()
        self._fixed = 0
        """The last round that this member has seen fixed in this view."""
        self._done: dict[int, int] = {}
        """Of each member, the last round that it is known to hold the result of."""
        self._begins: dict[int, Begin] = {}
        self._called_at = 0.0
        self._late: dict[int, tuple[float, int]] = {}
        """Who is not in the round fixed last, when that was called first, and where in a step."""
        self._place = 0
        """Where in a step the round is called that is called now, or was last."""
        self._rates: dict[int, dict[int, float]] = {}

    @property
    def leader(self) -> int:
        return self.view.ranks[0]

    def due(self) -> float | None:
        """When `tick` is to be called, if nothing happens before."""
        if not self._begins or self.phase is not Phase.stable:
            return None
        return self._called_at + (self._patience() if self.holding_up() else self.deadlines.seconds(self._place))

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        return self._consider(now)

    def _on_begin(self, sender: int, begin: Begin, now: float) -> list[Effect]:
        if not 0.0 <= begin.weight < math.inf:
            raise Malformed(f"weight {begin.weight}")
        self._came(sender, begin.round, now)
        if begin.view != self.view.id or self.leader != self.rank or begin.round != self._fixed + 1:
            return []
        if not self._begins:
            self._called_at, self._place = now, begin.place
        self._begins[sender] = begin
        self._rates[sender] = {rank: float(rate) for rank, rate in begin.rates.items()}
        self._done[sender] = max(self._done.get(sender, 0), begin.round - 1)
        self.deadlines.observe(sender, now - self._called_at, self._place)
        return self._consider(now)

    def _came(self, rank: int, number: int, now: float) -> None:
        """A member calls a round, or holds its result: if it is late, this is by how much."""
        if number == self._fixed and rank in self._late:
            called_at, place = self._late.pop(rank)
            self.deadlines.observe(rank, now - called_at, place)

    def holding_up(self) -> list[int]:
        """Members that lack the last result, without which the next round cannot be fixed; the leader knows."""
        return [
            rank
            for rank in self.view.ranks
            if (self.completed if rank == self.rank else self._done.get(rank, 0)) < self._fixed
        ]

    def _patience(self) -> float:
        if self.newcomers & set(self.holding_up()):
            return NEWCOMER_SECONDS
        return max(BEHIND_SECONDS, BEHIND_DEADLINES * self.deadlines.seconds(self._place))

    def _consider(self, now: float) -> list[Effect]:
        due, expected = self.due(), len(self.view.ranks)
        if due is None:
            return []
        if not self.holding_up():
            expected -= len(self.newcomers - self._begins.keys())  # they do not keep the first round waiting
        if len(self._begins) < expected and now < due:
            return []
        if behind := self.holding_up():
            return self._accuse([Accusation(rank, self.rank, Reason.behind) for rank in behind])
        if self.welcome and all(begin.open for begin in self._begins.values()):
            return self._grow()
        return self._fix()

    def _fix(self) -> list[Effect]:
        number, begins = self._fixed + 1, self._begins
        ready = tuple(sorted(begins))
        first = begins[ready[0]]
        odd = next((r for r in ready if _kind(begins[r]) != _kind(first)), None)
        if odd is None and (absurd := self._absurd()):
            self._begins = {}
            return self._accuse([Accusation(rank, self.rank, Reason.absurd, number) for rank in absurd])
        if odd is None:
            shares = self._terms.shares
            if shares is None:
                shares = slices.shares(slices.speeds(self._rates, ready))
            bounds = cut(first.count, ready, shares, BLOCK if first.codec else 1)
            weights = tuple(begins[rank].weight for rank in ready)
            fixed = Fixed(self.view.id, number, ready, weights, bounds, self.deadlines.seconds(self._place))
        else:
            fixed = Fixed(self.view.id, number, (), (), (), self.deadlines.seconds(self._place), odd)
        self._late = {rank: (self._called_at, self._place) for rank in self.view.ranks if rank not in begins}
        self._begins = {}
        effects: list[Effect] = [Send(rank, fixed) for rank in self.view.ranks if rank != self.rank]
        return effects + self._on_fixed(self.rank, fixed)

    def _absurd(self) -> list[int]:
        norms = {rank: begin.norm for rank, begin in self._begins.items() if begin.norm >= 0.0 and begin.weight > 0.0}
        factor = self._terms.norm_limit
        if factor is None or len(norms) < ENOUGH_FOR_NORMS:
            return []
        limit = factor * median(norms.values())
        return [rank for rank, norm in sorted(norms.items()) if math.isfinite(norm) and norm > limit]

    def _check_fixed(self, sender: int, fixed: Fixed, attempt: Attempt | None) -> None:
        """Raises Malformed: nobody who follows the protocol fixes a round like that.

        Args:
            attempt: this member's at that round, if it has called it.
        """
        who, bounds = fixed.contributors, fixed.bounds
        if sender != self.leader and sender not in who:
            raise Malformed("a round fixed by somebody else than the leader")
        if fixed.odd is not None:
            return
        step = BLOCK if attempt is not None and attempt.codec is not None else 1
        if not (
            who
            and set(who) <= set(self.view.ranks)
            and all(a < b for a, b in pairwise(who))
            and len(fixed.weights) == len(who) == len(bounds) - 1
            and all(0.0 <= weight < math.inf for weight in fixed.weights)
            and bounds[0] == 0
            and (attempt is None or self.rank not in who or bounds[-1] == attempt.count)
            and all(a <= b and a % step == 0 for a, b in pairwise(bounds))
        ):
            raise Malformed("a round fixed amiss")

    @abstractmethod
    def _on_fixed(self, sender: int, fixed: Fixed) -> list[Effect]:
        """Take part in that round, or take note of it."""


def _kind(begin: Begin) -> tuple[int, str, int]:
    """What all members have to bring alike."""
    return begin.count, begin.codec, begin.place
