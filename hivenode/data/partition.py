"""Which samples go where: train and test parts, the order of an epoch, the batch of a step, a member's slice of it.

Everything is a function of seeds and counts, equal on every machine: random numbers come from the raw output of
Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), which numpy keeps stable across
versions (NEP 19), unlike its distributions, and no global state is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hivenode.spec.split import held_out, member_range, split

Indices = npt.NDArray[np.int64]

_SPLIT, _EPOCH, _WEIGHTS, _RANGE = 1, 2, 3, 4
_BLOCK = 1 << 16
"""Numbers drawn at a time: what that takes besides stays small, and is not left behind in the heap."""


def random_words(count: int, seed: int, purpose: int, number: int = 0) -> npt.NDArray[np.uint64]:
    """Uniform 64-bit words, a function of the arguments only; each (seed, purpose, number) has its own stream."""
    return np.random.Philox(key=[seed, purpose << 48 | number]).random_raw(count)


def permutation(count: int, seed: int, purpose: int, number: int = 0) -> Indices:
    """A uniform permutation of `range(count)`: positions sorted by random words, earlier first among equals."""
    return np.argsort(random_words(count, seed, purpose, number), kind="stable").astype(np.int64)


def train_test(samples: int, test_fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Disjoint parts that together hold every sample.

    Args:
        test_fraction: see `held_out`.
    """
    tested = held_out(samples, test_fraction)
    order = permutation(samples, seed, _SPLIT)
    return order[tested:], order[:tested]


@dataclass(frozen=True, slots=True)
class Batches:
    """Steps over a training part of `samples`. The last batch of an epoch may be short; nothing is dropped.

    Args:
        batch_size: samples in a global batch.
        seed: of the order; each epoch has its own.
    """

    samples: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.samples // self.batch_size)

    def order(self, epoch: int) -> Indices:
        """Positions in the training part, in the order of `epoch` (from 0)."""
        return permutation(self.samples, self.seed, _EPOCH, epoch)

    def of_step(self, order: Indices, step: int) -> Indices:
        """The global batch of a step (from 0, counted over all epochs), given its epoch's order."""
        start = step % self.steps_per_epoch * self.batch_size
        return order[start : start + self.batch_size]


class Order(Protocol):
    """Which samples of the training part a member computes in each step."""

    @property
    def steps_per_epoch(self) -> int: ...

    def part(self, step: int, members: Sequence[str], weights: Mapping[str, float], me: str) -> tuple[Indices, int]:
        """Positions of this member's samples of a step (from 0, over all epochs), and how many all members have."""
        ...


class Mixed:
    """`Order` in which every member may get any sample: a global batch, cut by weights. For whoever holds all data."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._epoch = -1
        self._order: Indices = np.zeros(0, np.int64)

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.steps_per_epoch

    def part(self, step: int, members: Sequence[str], weights: Mapping[str, float], me: str) -> tuple[Indices, int]:
        epoch = step // self.steps_per_epoch
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._batches.order(epoch)
        batch = self._batches.of_step(self._order, step)
        if len(members) == 1:
            return batch, len(batch)
        mine = member_range(len(batch), members, weights, me)
        return batch[mine.start : mine.stop], len(batch)


class Ranged:
    """`Order` in which every member goes through a range of its own, in proportion to its weight, and needs no other
    data. Over an epoch every sample is taken once, as long as the members stay the same; the epoch in which they
    change is finished on the new ranges."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._key: tuple[int, range] | None = None
        self._order: Indices = np.zeros(0, np.int64)

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.steps_per_epoch

    def part(self, step: int, members: Sequence[str], weights: Mapping[str, float], me: str) -> tuple[Indices, int]:
        epoch, place = divmod(step, self.steps_per_epoch)
        ranges = split(self._batches.samples, [weights[member] for member in members])
        mine = ranges[members.index(me)]
        if (epoch, mine) != self._key:
            self._key = (epoch, mine)
            self._order = permutation(len(mine), self._batches.seed, _RANGE, epoch) + mine.start
        parts = [self._cut(len(each), place) for each in ranges]
        own = parts[members.index(me)]
        return self._order[own.start : own.stop], sum(map(len, parts))

    def _cut(self, count: int, place: int) -> range:
        steps = self.steps_per_epoch
        return range(count * place // steps, count * (place + 1) // steps)


class Own:
    """`Order` in which every member has samples of its own and nobody else's: in each step each trains on as large a
    part of them. Those of a member that is lost are lost with it, until it is back.

    Args:
        counts: samples of each planned member.
        steps: in an epoch.
    """

    def __init__(self, counts: Mapping[str, int], steps: int, seed: int) -> None:
        self._counts, self._steps, self._seed = counts, steps, seed
        self._key: tuple[int, str] | None = None
        self._order: Indices = np.zeros(0, np.int64)

    @property
    def steps_per_epoch(self) -> int:
        return self._steps

    def part(self, step: int, members: Sequence[str], weights: Mapping[str, float], me: str) -> tuple[Indices, int]:
        epoch, place = divmod(step, self._steps)
        if (epoch, me) != self._key:
            self._key = (epoch, me)
            self._order = permutation(self._counts[me], self._seed, _RANGE, epoch)
        parts = {member: self._cut(self._counts[member], place) for member in members}
        own = parts[me]
        return self._order[own.start : own.stop], sum(map(len, parts.values()))

    def _cut(self, count: int, place: int) -> range:
        return range(count * place // self._steps, count * (place + 1) // self._steps)


def uniform(count: int, seed: int, number: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) for the initial values of tensor `number`; 53 random bits each, exact on every machine."""
    return np.concatenate([*uniform_blocks(count, seed, number), np.zeros(0)])


def uniform_blocks(count: int, seed: int, number: int) -> Iterator[npt.NDArray[np.float64]]:
    """The same in blocks, since they take several times the memory of the tensor."""
    source = np.random.Philox(key=[seed, _WEIGHTS << 48 | number])
    for start in range(0, count, _BLOCK):
        words = source.random_raw(min(_BLOCK, count - start))
        yield (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
