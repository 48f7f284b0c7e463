"""One try at a round: its buffers, and how far each part of it has come. Not thread-safe; the group's lock guards
the marks, the numbers themselves are read and written outside of it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import pairwise

import numpy as np

from hivenode.training.exchange.codecs import Codec, Encoded
from hivenode.training.exchange.messages import Fixed
from hivenode.training.exchange.reduction import Reader, reduce_into
from hivenode.training.exchange.scratch import PIECE, Vector
from hivenode.training.exchange.views import RankView


class State(Enum):
    waiting = "waiting"
    """Called; who contributes is not fixed yet."""
    active = "active"
    fetching = "fetching"
    """The others do it or have done it; the result is on the way."""
    complete = "complete"
    void = "void"


class Buffers:
    """Memory kept from one round to the next, so that its pages stay mapped. When a view changes, only that of the void
    round is kept: what another came to may still be on its way to members of the old view."""

    def __init__(self) -> None:
        self._held: dict[str, Encoded] = {}

    def take(self, purpose: str, size: int) -> Encoded:
        """At least `size` bytes."""
        held = self._held.pop(purpose, None)
        return held if held is not None and held.size >= size else np.empty(size, np.uint8)

    def give(self, purpose: str, memory: Encoded) -> None:
        self._held[purpose] = memory

    def withdraw(self, purpose: str) -> None:
        """What was given last is still being read."""
        self._held.pop(purpose, None)

    def clear(self) -> None:
        self._held.clear()


class Attempt:
    """Args:
    rank: this member's.
    view: in which it was called.
    number: of the round.
    vector: this member's contribution; read until the attempt is over, never written.
    weight: of this member's contribution.
    codec: by which the numbers travel; None for as they are.

    Attributes:
        contributors: whose mean it is, ascending; known once it is fixed.
        disagreement: a member whose vector or codec does not fit the others'.
        landings: pieces that are arriving in its memory.
        owed: what the codec took from this member's slice of the mean; None without a codec.
    """

    def __init__(
        self, rank: int, view: RankView, number: int, vector: Vector, weight: float, codec: Codec | None
    ) -> None:
        self.rank = rank
        self.view = view
        self.number = number
        self.vector = vector
        self.weight = weight
        self.codec = codec
        self.count = int(vector.size)
        self.state = State.waiting
        self.total_weight = 0.0
        self.disagreement: int | None = None
        self.contributors: tuple[int, ...] = ()
        self.others: tuple[int, ...] = ()
        self.slices: dict[int, tuple[int, int]] = {}
        self.low = self.high = 0
        self.result: Vector = np.empty(0, np.float32)
        self.part_marks: dict[int, int] = {}
        self.slice_marks: dict[int, int] = {}
        self.reduced = 0
        self.reducing = False
        self.landings = 0
        self.source: int | None = None
        self.fetch_mark = 0
        self.fetch_announced = False
        self._weights: tuple[float, ...] = ()
        self._memory: dict[str, Encoded] = {}
        self._parts: dict[int, Encoded] = {}
        self._encoded: Encoded | None = None
        self.owed: Vector | None = None

    @property
    def late(self) -> bool:
        """The mean is of others only."""
        return self.state is State.complete and self.rank not in self.contributors

    def fix(self, fixed: Fixed, buffers: Buffers) -> None:
        """This member contributes, with these others."""
        self.state = State.active
        self.contributors, self._weights = fixed.contributors, fixed.weights
        self.slices = dict(zip(fixed.contributors, pairwise(fixed.bounds), strict=True))
        self.low, self.high = self.slices[self.rank]
        self.others = tuple(other for other in self.contributors if other != self.rank)
        self.part_marks = dict.fromkeys(self.others, 0)
        self.slice_marks = dict.fromkeys(self.others, 0)
        width = self.size(self.high - self.low)
        parts = self._take(buffers, "parts", width * len(self.others))
        self._parts = {other: parts[index * width : (index + 1) * width] for index, other in enumerate(self.others)}
        self.result = self._take(buffers, "result", 4 * self.count)[: 4 * self.count].view(np.float32)
        if self.codec is not None:
            self._encoded = self._take(buffers, "encoded", width)
            self.owed = self._take(buffers, "owed", 4 * (self.high - self.low))[: 4 * (self.high - self.low)].view(
                np.float32
            )

    def _take(self, buffers: Buffers, purpose: str, size: int) -> Encoded:
        self._memory[purpose] = memory = buffers.take(purpose, size)
        return memory

    @property
    def idle(self) -> bool:
        """Nobody writes to its memory."""
        return not self.landings and not self.reducing

    def give_back(self, buffers: Buffers) -> None:
        """The next attempt may have the memory; `result` and `owed` stay valid until it is fixed."""
        for purpose, memory in self._memory.items():
            buffers.give(purpose, memory)

    def size(self, count: int) -> int:
        """Bytes of so many elements on the wire."""
        return 4 * count if self.codec is None else self.codec.encoded_size(count)

    def heard_out(self, other: int) -> bool:
        """Nothing of this attempt is outstanding from that member."""
        if other not in self.slices:
            return True
        low, high = self.slices[other]
        return self.part_marks[other] == self.high - self.low and self.slice_marks[other] == high - low

    def part(self, sender: int, start: int, count: int) -> Encoded:
        """Where the sender's part of this member's slice goes; `start` counts from the slice's beginning."""
        at = self.size(start)
        return self._parts[sender][at : at + self.size(count)]

    def encoded(self, start: int, stop: int) -> Encoded | None:
        """That range of this member's reduced slice, as it goes to the others; None for as it is."""
        return None if self._encoded is None else self._encoded[self.size(start) : self.size(stop)]

    def reducible(self) -> tuple[int, int] | None:
        """Range within this member's slice that can be reduced now; one at a time, in order."""
        if self.reducing or self.state is not State.active or not self.others:
            return None
        ready = min(self.part_marks.values())
        return (self.reduced, ready) if ready > self.reduced else None

    def reduce(self, start: int, stop: int) -> tuple[int, ...]:
        """Reduce that range of the slice into the result; returns the ranks whose numbers are not finite."""
        if self.codec is None:
            culprits = reduce_into(
                self.result[self.low + start : self.low + stop],
                [
                    self.vector[self.low + start : self.low + stop]
                    if rank == self.rank
                    else self.part(rank, start, stop - start).view(np.float32)
                    for rank in self.contributors
                ],
                self._weights,
            )
            return tuple(self.contributors[index] for index in culprits)
        for at in range(start, stop, PIECE):
            if culprits := self._reduce_piece(self.codec, at, min(at + PIECE, stop)):
                return culprits
        return ()

    def _reduce_piece(self, codec: Codec, start: int, stop: int) -> tuple[int, ...]:
        out, owed = self.result[self.low + start : self.low + stop], self.owed
        encoded = self.encoded(start, stop)
        assert encoded is not None
        assert owed is not None
        codec.encode(self.vector[self.low + start : self.low + stop], encoded)

        def reader(rank: int) -> Reader:
            part = encoded if rank == self.rank else self.part(rank, start, stop - start)
            return lambda _start, _stop, into: codec.decode(part, into)

        culprits = reduce_into(out, [reader(rank) for rank in self.contributors], self._weights)
        if not culprits:
            codec.encode(out, encoded)
            owed[start:stop] = out
            codec.decode(encoded, out)
            np.subtract(owed[start:stop], out, out=owed[start:stop])
        return tuple(self.contributors[index] for index in culprits)

    def all_arrived(self) -> bool:
        return self.reduced == self.high - self.low and all(self.heard_out(rank) for rank in self.others)

    def weights(self) -> Sequence[float]:
        """Of the contributors, in order."""
        return self._weights

    def fetched(self) -> bool:
        return self.fetch_announced and self.fetch_mark == self.count

    def fetch_from(self, source: int) -> None:
        """Take the whole result from a member that has it or will have it, into memory of its own: bytes of a void
        transfer may still be landing in the old one."""
        self.state = State.fetching
        self.source = source
        self._memory = {}
        self.result = np.empty(self.count, np.float32)
        self.fetch_mark = 0
        self.fetch_announced = False
