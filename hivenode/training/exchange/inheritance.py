"""What a newcomer is given: the state of the members as of the round it comes in after, from all of them at once.

The state is any number of arrays, taken as one run of bytes (filled up to whole float32 elements, in which it
travels). Donor k of n gives the k-th part of it, and the digests of its own part and of the next donor's, so that what
any of them gives is checked against what another one holds. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from hivenode.training.exchange.effects import Malformed
from hivenode.training.exchange.messages import Donation, ViewId
from hivenode.training.exchange.reduction import cut
from hivenode.training.exchange.scratch import Vector

MAX_ESTATES = 8
"""Views that a newcomer is let into, one after the other, before it has the state of one."""

State = Sequence[npt.NDArray[Any]]
"""C-contiguous, and as a whole the same bytes on all members."""


def donate(state: State, donors: Sequence[int], rank: int, view: ViewId) -> tuple[Donation, int, Vector]:
    """Member `rank`'s gift: its announcement, its first element, and a copy of its part."""
    parts = [part.reshape(-1).view(np.uint8) for part in state]
    total = -(-sum(part.size for part in parts) // 4)
    bounds = list(pairwise(cut(total, donors)))
    index = list(donors).index(rank)
    start, stop = bounds[index]
    gift = np.zeros(stop - start, np.float32)
    into, at = gift.view(np.uint8), 0
    for piece in _range(parts, 4 * start, 4 * stop):
        into[at : at + piece.size] = piece
        at += piece.size
    follower = hashlib.sha256()
    low, high = bounds[(index + 1) % len(bounds)]
    length = 0
    for piece in _range(parts, 4 * low, 4 * high):
        follower.update(piece.data)
        length += piece.size
    follower.update(bytes(4 * (high - low) - length))
    return Donation(view, tuple(donors), total, hashlib.sha256(gift.data).digest(), follower.digest()), start, gift


def _range(parts: Sequence[npt.NDArray[np.uint8]], start: int, stop: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Bytes `[start, stop)` of all parts in a row."""
    before = 0
    for part in parts:
        low, high = max(start - before, 0), min(stop - before, part.size)
        if low < high:
            yield part[low:high]
        before += part.size


class Inheritance:
    """The newcomer's side. Args:
    donors: members of the view it came into, but those who came with it; ascending.
    limit: elements that it will take at most.
    """

    def __init__(self, donors: tuple[int, ...], limit: int) -> None:
        self.donors, self._limit = donors, limit
        self.state = np.empty(0, np.float32)
        self._gifts: dict[int, Donation] = {}
        self._marks = dict.fromkeys(donors, 0)
        self._parts: dict[int, tuple[int, int]] = {}

    def announced(self, sender: int, donation: Donation) -> None:
        """Raises Malformed."""
        if sender not in self.donors or sender in self._gifts or donation.donors != self.donors:
            raise Malformed("a gift nobody waits for")
        if not self._gifts:
            if donation.total > self._limit:
                raise Malformed(f"a state of {donation.total} elements, where {self._limit} are the most")
            self.state = np.empty(donation.total, np.float32)
            self._parts = dict(zip(self.donors, pairwise(cut(donation.total, self.donors)), strict=True))
        elif donation.total != self.state.size:
            raise Malformed("a state of another size than the others'")
        self._gifts[sender] = donation

    def landing(self, sender: int, start: int, count: int) -> Vector:
        """Where these elements go. Raises Malformed."""
        if sender not in self._gifts:
            raise Malformed("a gift that was not announced")
        low, high = self._parts[sender]
        if start != low + self._marks[sender] or count < 1 or start + count > high:
            raise Malformed("a piece of a gift that is not due")
        return self.state[start : start + count]

    def arrived(self, sender: int, count: int) -> None:
        self._marks[sender] += count

    @property
    def complete(self) -> bool:
        return len(self._gifts) == len(self.donors) and all(
            self._marks[rank] == stop - start for rank, (start, stop) in self._parts.items()
        )

    def liar(self) -> int | None:
        """A donor whose part is not what it says, or not what the one before it holds; None when all is well."""
        for index, rank in enumerate(self.donors):
            start, stop = self._parts[rank]
            digest = hashlib.sha256(self.state[start:stop].data).digest()
            if digest != self._gifts[rank].digest or digest != self._gifts[self.donors[index - 1]].follower:
                return rank
        return None


class Estates:
    """Of a newcomer: what it is given in the view it has come into, or perhaps will be told that it has.

    Args:
        limit: elements of a state that is taken over, at most; None when this member does not come late.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._held: dict[ViewId, Inheritance] = {}
        self._came_into: ViewId | None = None

    @property
    def open(self) -> bool:
        """Whether a state is still to be taken over."""
        return self._limit is not None

    @property
    def current(self) -> Inheritance | None:
        """That of the view it has come into; until `settled`."""
        return None if self._came_into is None else self._held.get(self._came_into)

    def came_into(self, view: ViewId, donors: tuple[int, ...]) -> None:
        if self._limit is not None:
            self._came_into = view
            self._held.setdefault(view, Inheritance(donors, self._limit))

    def announced(self, sender: int, donation: Donation) -> None:
        """Raises Malformed."""
        if self._limit is None:
            return
        estate = self._held.get(donation.view)
        if estate is None:
            if len(self._held) >= MAX_ESTATES:
                raise Malformed("a state in too many views")
            estate = self._held[donation.view] = Inheritance(donation.donors, self._limit)
        estate.announced(sender, donation)

    def landing(self, view: ViewId, sender: int, start: int, count: int) -> Vector | None:
        """Where these elements go; None when they are stale. Raises Malformed."""
        estate = self._held.get(view)
        return None if estate is None else estate.landing(sender, start, count)

    def arrived(self, view: ViewId, sender: int, count: int) -> None:
        if view in self._held:
            self._held[view].arrived(sender, count)

    def settled(self) -> None:
        """The newcomer has taken its state."""
        self._held, self._limit = {}, None
