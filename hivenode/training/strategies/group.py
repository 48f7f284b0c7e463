"""One member among the others: what it computes of a batch, and coming to terms with them while some are lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from hivenode.net.local import FromWorker, Log, ViewChanged
from hivenode.spec.split import member_range
from hivenode.spec.values import Share
from hivenode.training.exchange.codecs import Codec
from hivenode.training.exchange.inheritance import State
from hivenode.training.frameworks.model import Vector
from hivenode.training.strategies.balance import Pace
from hivenode.training.strategies.collective import Collective, Mean, MembersChanged

KEPT_OF_OLD = 0.5
"""Part of a member's old share of speed that is kept when a new one is measured."""


class Cancelled(Exception):
    """By order; the reason is its argument."""


class Group:
    """The members of an attempt as one of them sees them.

    Args:
        me: this node's id.
        shares: the planned nodes and their weights.
        report: takes messages for the daemon.
        cancelled: the reason to stop, or None.

    Attributes:
        planned: ids of all planned nodes, in rank order.
        members: of those still there.
        weights: share of each planned node, in any unit.
        joined: newcomers that nothing has been told to yet but what they inherit.
        gathering: seconds spent in `gather` so far, others waited for.
    """

    def __init__(
        self,
        me: str,
        shares: Sequence[Share],
        collective: Collective,
        report: Callable[[FromWorker], None],
        cancelled: Callable[[], str | None],
    ) -> None:
        self.me = me
        self.planned = tuple(share.node for share in sorted(shares, key=lambda share: share.rank))
        self.members = self.planned
        self.weights = {share.node: share.weight for share in shares}
        self.joined: tuple[str, ...] = ()
        self.gathering = 0.0
        self._collective = collective
        self._report = report
        self._cancelled = cancelled

    @property
    def leads(self) -> bool:
        """Whether this is the lowest rank of the view."""
        return self.members[0] == self.me

    @property
    def fraction(self) -> float:
        """Of the work, that is this member's."""
        return self.weights[self.me] / sum(self.weights[member] for member in self.members)

    def part(self, total: int, member: str | None = None) -> range:
        """A member's (this one's) part of `range(total)`; the members' parts cover it exactly."""
        return member_range(total, self.members, self.weights, member or self.me)

    def agree(
        self,
        vector: Vector,
        compute: Callable[[], float],
        step: int,
        codec: Codec | None = None,
        void: Callable[[], None] = lambda: None,
        *,
        judged: bool = False,
    ) -> Mean:
        """Have `compute` fill `vector` and return its weight, and replace it by the mean; again while members go.

        Args:
            step: finished steps, to say when members were lost.
            void: called before `compute` has to be called again, as also where it met a change in `gather`.
            judged: as in `Collective.mean`.
        """
        while True:
            try:
                weight = compute()
                mean = self._collective.mean(vector, weight, codec, judged=judged)
            except MembersChanged as changed:
                void()
                if changed.args and self.leads:
                    self._report(Log(level="warning", event=str(changed), fields={"step": step}))
                self.look_around(step)
                continue
            except Exception:
                self.heed()
                raise
            self.look_around(step)
            return mean

    def gather(self, own: Vector, place: int) -> Vector:
        """While `agree` computes: what all members give at this place of the step, (members, values), in rank order;
        without those who are late. All have to come to the same places. Raises MembersChanged."""
        began = time.monotonic()
        told = np.zeros((len(self.planned), 1 + own.size), np.float32)
        told[self.planned.index(self.me)] = np.concatenate([np.ones(1, np.float32), own])
        self._collective.mean(told.reshape(-1), 1.0, place=place)
        self.gathering += time.monotonic() - began
        if self._collective.members != self.members:
            raise MembersChanged  # the batch is divided anew
        there = told[:, 0] > 0
        return np.asarray(told[there, 1:] * np.float32(np.count_nonzero(there)))

    def gate(self, state: Callable[[], State], step: int) -> None:
        """Let in who wants to join; see `Collective.gate`."""
        while True:
            try:
                self._collective.gate(state)
            except MembersChanged:
                self.look_around(step)
                continue
            except Exception:
                self.heed()
                raise
            self.look_around(step)
            return

    def inherit(self, planned: tuple[str, ...], members: tuple[str, ...], weights: dict[str, float]) -> None:
        """A newcomer takes over what the others know of each other; itself it adds as they do."""
        self.planned, self.members = planned, members
        self.weights = dict(weights)

    def finish(self) -> None:
        """See `Collective.finish`."""
        try:
            self._collective.finish()
        except Exception:
            self.heed()
            raise

    def heed(self) -> None:
        """Raise Cancelled if so ordered. A cancel also closes the collective, so it is the cause of whatever goes wrong
        after it."""
        if (reason := self._cancelled()) is not None:
            raise Cancelled(reason) from None

    def look_around(self, step: int) -> None:
        """Take note of who is there, and tell the daemon who is not or is new. A newcomer's share is the mean of all
        that were ever planned, which all know alike."""
        members = self._collective.members
        if members == self.members:
            return
        lost = tuple(node for node in self.members if node not in members)
        joined = tuple(node for node in members if node not in self.members)
        usual = sum(self.weights[node] for node in self.planned) / len(self.planned)
        for node in joined:
            self.weights.setdefault(node, usual)
        self.planned += tuple(node for node in joined if node not in self.planned)
        self.members = members
        self.joined = tuple(node for node in self.joined if node in members) + joined
        if lost or joined:
            self._report(ViewChanged(step=step, members=members, lost=lost, joined=joined))

    def share_speeds(self, samples: int, seconds: float, step: int) -> None:
        """Divide what follows by how fast the members compute, half and half with what was known.

        Args:
            samples, seconds: what this member has computed, and how long that took; without samples its share stays.
        """
        if len(self.planned) < 2:
            return
        paces = self.paces(samples, seconds, step)
        speeds = {member: pace.samples / max(pace.seconds, 1e-9) for member, pace in paces.items() if pace.samples > 0}
        known, measured = sum(self.weights[member] for member in speeds), sum(speeds.values())
        for member, speed in speeds.items():
            fresh = known * speed / measured
            self.weights[member] = KEPT_OF_OLD * self.weights[member] + (1.0 - KEPT_OF_OLD) * fresh

    def paces(self, samples: int, seconds: float, step: int) -> dict[str, Pace]:
        """What each member has computed, and how long that took, as it says itself. Each puts that in places of its
        own, so that the mean holds all of them, the same on every member."""
        places = len(self.planned)
        told = np.zeros(2 * places, np.float32)

        def tell() -> float:
            told.fill(0.0)
            own = self.planned.index(self.me)
            told[own], told[places + own] = samples, seconds
            return 1.0

        count = self.agree(told, tell, step).total_weight
        at = self.planned.index
        return {m: Pace(float(told[at(m)]) * count, float(told[places + at(m)]) * count) for m in self.members}
