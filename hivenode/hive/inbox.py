"""Events from elsewhere on their way to the journal: bounded for each peer, and no author states more than its share.

Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from hivenode.net.messages import Event, FeedDelta

PEER_BYTES = 1 << 20
PEER_DELTAS = 64
"""Of one peer, waiting. What finds no room is asked for again when versions are compared."""

EVENT_BYTES = 512
"""What an event costs beside its body: signature, ids, and its place in memory and in the journal."""
AUTHOR_BYTES = 2 << 20
"""Of one author, taken in at once. A month of a busy coordinator's plans fits a few times into it."""
AUTHOR_BYTES_PER_SECOND = 256 << 10
"""And then steadily: a newcomer that catches up with years waits a moment, a member that writes nonsense as fast as it
can does not fill memory before somebody revokes it."""


DENIED_SECONDS = 60.0


class Inbox:
    """Deltas waiting to be taken in, the peers in turn."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[tuple[FeedDelta, int]]] = {}
        self._bytes: dict[str, int] = {}

    def put(self, peer: str, delta: FeedDelta) -> bool:
        """False when this peer's room is full; the delta is not kept then."""
        size = sum(cost(event) for event in delta.events)
        held, waiting = self._bytes.get(peer, 0), self._waiting.setdefault(peer, deque())
        if waiting and (held + size > PEER_BYTES or len(waiting) >= PEER_DELTAS):
            return False
        waiting.append((delta, size))
        self._bytes[peer] = held + size
        return True

    def take(self, events: int) -> list[tuple[str, FeedDelta]]:
        """The next ones, with so many events at most (but one delta whatever its size), the peers in turn."""
        taken: list[tuple[str, FeedDelta]] = []
        while self._waiting:
            events -= len(next(iter(self._waiting.values()))[0][0].events)
            if taken and events < 0:
                break
            taken.append(self._next())
        return taken

    def _next(self) -> tuple[str, FeedDelta]:
        """Of the peer that has waited longest for its turn."""
        peer = next(iter(self._waiting))
        waiting = self._waiting.pop(peer)
        delta, size = waiting.popleft()
        if waiting:
            self._waiting[peer] = waiting  # behind all others
            self._bytes[peer] -= size
        else:
            del self._bytes[peer]
        return peer, delta


class Allowance:
    """How much of each author is taken in."""

    def __init__(self) -> None:
        self._used: dict[str, tuple[float, float]] = {}
        """Of each author, what it had used at some time."""
        self._denied: dict[str, float] = {}

    def exceeded(self, now: float) -> tuple[str, ...]:
        """Authors of whom something had to wait within the last minute, sorted."""
        self._denied = {author: at for author, at in self._denied.items() if now - at < DENIED_SECONDS}
        return tuple(sorted(self._denied))

    def allowed(self, events: Iterable[Event], now: float) -> list[Event]:
        """Those that fit, in order. Of an author of whom one did not, no later one is let through: its chain would have
        a gap. Costs nothing yet."""
        used: dict[str, float] = {}
        kept: list[Event] = []
        for event in events:
            before = used[event.author] if event.author in used else self._owed(event.author, now)
            used[event.author] = before + cost(event) if before < AUTHOR_BYTES else AUTHOR_BYTES
            if before < AUTHOR_BYTES:
                kept.append(event)
            else:
                self._denied[event.author] = now
        return kept

    def spend(self, event: Event, now: float) -> None:
        """This one was taken in."""
        self._used[event.author] = min(2.0 * AUTHOR_BYTES, self._owed(event.author, now) + cost(event)), now

    def _owed(self, author: str, now: float) -> float:
        used, at = self._used.get(author, (0.0, now))
        return max(0.0, used - (now - at) * AUTHOR_BYTES_PER_SECOND)


def cost(event: Event) -> int:
    """What an event counts, bytes."""
    return len(event.body) + EVENT_BYTES
