"""Views: what follows from the events of all feeds. Pure.

A fold sees every event it asked for in one total order (clock, author, number), so the same set of events gives the
same view on every node, in whatever order, how often and over whatever path they arrived. What was sealed is folded
already: an event from beyond the cut whose clock lies before the horizon counts as said at the horizon, so it comes
after all that was sealed, for everybody.

An event that arrives late, ordered before some already folded, takes the folds concerned back to a mark before it;
unless it and all that come after it are of kinds that may be folded in any order among themselves. Where many nodes
join at once, all that is late is of such a kind.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from hivenode.hive.feeds import Entry
from hivenode.spec.events import Body

Key = tuple[int, str, int]

MARK_EVERY = 256
"""Events between two marks."""
MARKS = 8
"""Marks kept: the base and the latest ones."""


class Fold(Protocol):
    """A deterministic summary of some kinds of events."""

    topic: str
    kinds: tuple[type[Body], ...]
    commuting: tuple[type[Body], ...]
    """Of these kinds, events give the same state in whatever order they are folded among themselves."""

    def apply(self, author: str, hlc: int, body: Body) -> None: ...

    def mark(self) -> object:
        """The state as it is now. `apply` never changes what a mark holds."""
        ...

    def back(self, mark: object) -> None:
        """Go on from a mark, of this fold or of another of its class."""
        ...

    def fresh(self) -> Fold:
        """One of the same class, with nothing folded."""
        ...

    def dump(self, forget: int) -> Iterator[bytes]:
        """The state in pieces, the same bytes for equal states.

        Args:
            forget: hybrid clock; what was over before it may be left out.
        """
        ...

    def load(self, piece: bytes) -> None:
        """Add a piece to the state. Raises msgspec.MsgspecError or Refused."""
        ...


def placed(entry: Entry, horizon: int) -> Key:
    """Where an event stands in the order of those beyond a cut."""
    event = entry.event
    return (max(event.hlc, horizon), event.author, event.seq)


class _Stream:
    """One fold with the events it has asked for, in order."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self._horizon = 0
        self._items: list[tuple[Key, Body]] = []
        self._marks: list[tuple[int, object]] = [(0, fold.mark())]
        self._settled = 0
        """Up to here the order of the events matters; those from here on commute."""

    @property
    def base(self) -> object:
        return self._marks[0][1]

    def rebase(self, horizon: int, base: object) -> None:
        self._horizon = horizon
        self._items.clear()
        self._marks = [(0, base)]
        self._settled = 0
        self.fold.back(base)

    def add(self, entries: Sequence[Entry]) -> None:
        mine = [
            (placed(e, self._horizon), e.body)
            for e in entries
            if e.body is not None and isinstance(e.body, self.fold.kinds)
        ]
        if not mine:
            return
        mine.sort(key=_key)
        start = len(self._items)
        if self._items and mine[0][0] < self._items[-1][0]:
            at = bisect.bisect(self._items, mine[0][0], key=_key)
            while self._marks[-1][0] > at:
                self._marks.pop()
            if at >= self._settled and all(isinstance(body, self.fold.commuting) for _, body in mine):
                for item in mine:
                    bisect.insort(self._items, item, key=_key)
                    self.fold.apply(item[0][1], item[0][0], item[1])
                return
            start, mark = self._marks[-1]
            self.fold.back(mark)
            tail = sorted([*self._items[at:], *mine], key=_key)
            del self._items[at:]
            self._items += tail
        else:
            self._items += mine
        for place in range(start, len(self._items)):
            if place - self._marks[-1][0] >= MARK_EVERY:
                self._marks.append((place, self.fold.mark()))
            key, body = self._items[place]
            self.fold.apply(key[1], key[0], body)
            if not isinstance(body, self.fold.commuting):
                self._settled = place + 1
        del self._marks[1 : -MARKS + 1]


def _key(item: tuple[Key, Body]) -> Key:
    return item[0]


class Views:
    """Feeds events to folds."""

    def __init__(self, folds: Iterable[Fold]) -> None:
        self._streams = [_Stream(fold) for fold in folds]
        self.horizon = 0
        """Of the latest seal."""

    @property
    def folds(self) -> tuple[Fold, ...]:
        return tuple(stream.fold for stream in self._streams)

    @property
    def bases(self) -> Mapping[str, object]:
        """A mark of each fold at the latest seal, by name."""
        return {stream.fold.topic: stream.base for stream in self._streams}

    def add(self, entries: Sequence[Entry]) -> None:
        """Fold newly accepted entries."""
        for stream in self._streams:
            stream.add(entries)

    def rebuild(self, entries: Sequence[Entry]) -> None:
        """Fold these and nothing else beyond the seal: some that counted do not any more, or the other way round."""
        self.rebase(self.horizon, self.bases, entries)

    def rebase(self, horizon: int, bases: Mapping[str, object], entries: Sequence[Entry]) -> None:
        """Go on from a seal: its horizon, a mark of each fold at its cut, and all events beyond it."""
        self.horizon = horizon
        for stream in self._streams:
            stream.rebase(horizon, bases[stream.fold.topic])
            stream.add(entries)
