"""Statements waiting to be passed on, each a limited number of times."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from hivenode.hive import statements
from hivenode.net.messages import Statement

MAX_STATEMENTS = 250
"""In one message; the wire allows 256 and a few places are left for what must go along."""
MAX_LEFT_OUT = 8
"""Statements too large for the rest of a message, after which no smaller ones are looked for."""


@dataclass(slots=True)
class _Waiting:
    statement: Statement
    size: int
    serial: int


class Broadcasts:
    """At most one statement per subject: a newer one about the same member replaces the older.

    Those sent least often go first, among them the newest, so that fresh news is never stuck behind old news.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._order: list[tuple[int, int, str]] = []
        """A heap of (times sent, negative serial, subject), with entries that no longer stand for anything."""
        self._serial = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, statement: Statement) -> None:
        self._serial += 1
        self._waiting[statement.node] = _Waiting(statement, statements.size(statement), self._serial)
        if len(self._order) > 2 * len(self._waiting) + MAX_STATEMENTS:
            self._order = [e for e in self._order if self._stands(e)]
            heapq.heapify(self._order)
        heapq.heappush(self._order, (0, -self._serial, statement.node))

    def _stands(self, entry: tuple[int, int, str]) -> bool:
        waiting = self._waiting.get(entry[2])
        return waiting is not None and waiting.serial == -entry[1]

    def discard(self, subject: str) -> None:
        self._waiting.pop(subject, None)

    def take(self, max_bytes: int, limit: int) -> tuple[Statement, ...]:
        """What to attach to one message.

        Args:
            max_bytes: encoded size of all of it at most.
            limit: times a statement is sent before it is dropped.
        """
        if not self._waiting:
            return ()
        taken: list[Statement] = []
        room, again, left_out = max_bytes, [], 0
        while self._order and len(taken) < MAX_STATEMENTS and left_out < MAX_LEFT_OUT:
            sent, serial, subject = heapq.heappop(self._order)
            waiting = self._waiting.get(subject)
            if waiting is None or waiting.serial != -serial:
                continue
            if waiting.size > room:
                left_out += 1
                again.append((sent, serial, subject))
                continue
            room -= waiting.size
            taken.append(waiting.statement)
            if sent + 1 < limit:
                again.append((sent + 1, serial, subject))
            else:
                del self._waiting[subject]
        for entry in again:
            heapq.heappush(self._order, entry)
        return tuple(taken)
