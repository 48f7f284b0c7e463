"""Statements waiting to be passed on, each a limited number of times."""

from __future__ import annotations

from dataclasses import dataclass

from hivenode.hive import statements
from hivenode.net.messages import Statement

MAX_STATEMENTS = 250
"""In one message; the wire allows 256 and a few places are left for what must go along."""


@dataclass(slots=True)
class _Waiting:
    statement: Statement
    size: int
    serial: int
    sent: int = 0


class Broadcasts:
    """At most one statement per subject: a newer one about the same member replaces the older.

    Those sent least often go first, among them the newest, so that fresh news is never stuck behind old news.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, statement: Statement) -> None:
        self._serial += 1
        self._waiting[statement.node] = _Waiting(statement, statements.size(statement), self._serial)

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
        room = max_bytes
        for waiting in sorted(self._waiting.values(), key=lambda w: (w.sent, -w.serial)):
            if len(taken) == MAX_STATEMENTS:
                break
            if waiting.size > room:
                continue
            room -= waiting.size
            taken.append(waiting.statement)
            waiting.sent += 1
            if waiting.sent >= limit:
                del self._waiting[waiting.statement.node]
        return tuple(taken)
