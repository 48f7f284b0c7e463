"""Views: what follows from the events of all feeds. Pure.

A fold sees every event it asked for in the one total order of all events (clock, author, number), so the same set of
events gives the same view on every node, in whatever order, how often and over whatever path they arrived. An event
that arrives late, ordered before some already folded, makes the folds concerned start again from nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Protocol

from hivenode.hive.feeds import Entry
from hivenode.spec.events import Body

Key = tuple[int, str, int]


class Fold(Protocol):
    """A deterministic summary of some kinds of events."""

    kinds: tuple[type[Body], ...]

    def reset(self) -> None: ...

    def apply(self, author: str, hlc: int, body: Body) -> None: ...


class _Stream:
    """One fold with the events it has asked for, in order."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self.keys: list[Key] = []
        self.bodies: list[Body] = []

    def clear(self) -> None:
        self.keys.clear()
        self.bodies.clear()
        self.fold.reset()

    def add(self, entries: Sequence[Entry]) -> None:
        mine = [e for e in entries if e.body is not None and isinstance(e.body, self.fold.kinds)]
        if not mine:
            return
        mine.sort(key=lambda e: e.key)
        in_order = not self.keys or mine[0].key > self.keys[-1]
        for entry in mine:
            assert entry.body is not None
            at = len(self.keys) if in_order else bisect.bisect(self.keys, entry.key)
            self.keys.insert(at, entry.key)
            self.bodies.insert(at, entry.body)
        start = len(self.keys) - len(mine) if in_order else 0
        if not in_order:
            self.fold.reset()
        for key, body in zip(self.keys[start:], self.bodies[start:], strict=True):
            self.fold.apply(key[1], key[0], body)


class Views:
    """Feeds events to folds."""

    def __init__(self, folds: Iterable[Fold]) -> None:
        self._streams = [_Stream(fold) for fold in folds]

    def add(self, entries: Sequence[Entry]) -> None:
        """Fold newly accepted entries."""
        for stream in self._streams:
            stream.add(entries)

    def rebuild(self, entries: Sequence[Entry]) -> None:
        """Fold these and nothing else: some that counted do not any more, or the other way round."""
        for stream in self._streams:
            stream.clear()
            stream.add(entries)
