"""One try at a round: its buffers, and how far each part of it has come. Not thread-safe; the group's lock guards
the marks, the numbers themselves are read and written outside of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import pairwise

import numpy as np

from hivenode.training.exchange.reduction import Vector, cut, layout, reduce_into
from hivenode.training.exchange.views import RankView


class State(Enum):
    active = "active"
    fetching = "fetching"
    """Somebody completed it; its result is on the way."""
    complete = "complete"
    void = "void"


class Buffers:
    """Arrays kept from one round to the next, so that their pages stay mapped. Dropped when a view changes: a
    reader may still be writing bytes of the old view."""

    def __init__(self) -> None:
        self._results: list[Vector] = []
        self._parts: list[Vector] = []

    def result(self, count: int) -> Vector:
        return self._take(self._results, count)

    def parts(self, count: int) -> Vector:
        return self._take(self._parts, count)

    def give(self, result: Vector, parts: Vector) -> None:
        self._results, self._parts = [result], [parts]

    def clear(self) -> None:
        self._results, self._parts = [], []

    @staticmethod
    def _take(held: list[Vector], count: int) -> Vector:
        array = held.pop() if held else None
        return array if array is not None and array.size == count else np.empty(count, np.float32)


class Attempt:
    """Args:
    rank: this member's.
    view: whose members contribute.
    number: of the round.
    vector: this member's contribution; read until the attempt is over, never written.
    weight: of this member's contribution.
    shares: relative slice sizes by rank.
    """

    def __init__(
        self,
        rank: int,
        view: RankView,
        number: int,
        vector: Vector,
        weight: float,
        shares: Mapping[int, float] | None,
        buffers: Buffers,
    ) -> None:
        self.rank = rank
        self.view = view
        self.number = number
        self.vector = vector
        self.count = int(vector.size)
        self.state = State.active
        self.weights: dict[int, float] = {rank: weight}
        self.total_weight = 0.0
        self.disagreement: int | None = None
        """A member whose vector is of another length or cut otherwise."""
        bounds = cut(self.count, view.ranks, shares)
        self.layout = layout(bounds)
        self.slices: dict[int, tuple[int, int]] = dict(zip(view.ranks, pairwise(bounds), strict=True))
        self.low, self.high = self.slices[rank]
        self.others = tuple(other for other in view.ranks if other != rank)
        width = self.high - self.low
        self.result = buffers.result(self.count)
        self.parts_array = buffers.parts(width * len(self.others))
        self.parts = {
            other: self.parts_array[index * width : (index + 1) * width] for index, other in enumerate(self.others)
        }
        self.part_marks = dict.fromkeys(self.others, 0)
        self.slice_marks = dict.fromkeys(self.others, 0)
        self.reduced = 0
        self.reducing = False
        self.source: int | None = None
        self.fetch_mark = 0
        self.fetch_announced = False

    @property
    def begun(self) -> bool:
        """Everybody's weight is known, hence everybody takes part."""
        return len(self.weights) == len(self.view.ranks)

    def heard_out(self, other: int) -> bool:
        """Nothing of this attempt is outstanding from that member."""
        low, high = self.slices[other]
        return (
            other in self.weights
            and self.part_marks[other] == self.high - self.low
            and self.slice_marks[other] == high - low
        )

    def reducible(self) -> tuple[int, int] | None:
        """Range within this member's slice that can be reduced now; one at a time, in order."""
        if self.reducing or not self.begun or not self.others:
            return None
        ready = min(self.part_marks.values())
        return (self.reduced, ready) if ready > self.reduced else None

    def reduce(self, start: int, stop: int, out: Vector) -> tuple[int, ...]:
        """Reduce that range into `out`; returns the ranks whose numbers are not finite."""
        inputs: list[Vector] = []
        for rank in self.view.ranks:
            if rank == self.rank:
                inputs.append(self.vector[self.low + start : self.low + stop])
            else:
                inputs.append(self.parts[rank][start:stop])
        culprits = reduce_into(out, inputs, self.ordered_weights())
        return tuple(self.view.ranks[index] for index in culprits)

    def ordered_weights(self) -> Sequence[float]:
        return [self.weights[rank] for rank in self.view.ranks]

    def all_arrived(self) -> bool:
        return (
            self.begun
            and self.reduced == self.high - self.low
            and all(self.slice_marks[r] == self.slices[r][1] - self.slices[r][0] for r in self.others)
        )

    def fetched(self) -> bool:
        return self.fetch_announced and self.fetch_mark == self.count

    def fetch_from(self, source: int) -> None:
        """Take the whole result from a member that has it, into an array of its own: bytes of the void transfer
        may still be landing in the old one."""
        self.state = State.fetching
        self.source = source
        self.result = np.empty(self.count, np.float32)
        self.fetch_mark = 0
        self.fetch_announced = False
