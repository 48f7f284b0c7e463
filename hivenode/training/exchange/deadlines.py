"""How long a round waits for its members, learned from how they came to earlier ones. Pure.

Each member is given its median delay and `SPREADS` times the median absolute deviation from it (scaled to a standard
deviation, as for a normal distribution), so that steady slowness is waited for and a stall is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from statistics import median

SPREADS = 6.0
NORMAL = 1.4826
"""Standard deviations of a normal distribution to its median absolute deviation."""
KEPT = 32
"""Rounds remembered."""
ENOUGH = 3
"""Rounds without which nothing can be said."""


class Deadlines:
    """Args:
    least: seconds that any member is given, whatever was learned.
    first: seconds while too little was learned.

    A place is where in a step a round is called: who computes for long before one comes late to that one only.
    """

    def __init__(self, least: float, first: float) -> None:
        self._least, self._first = least, first
        self._delays: dict[int, dict[int, deque[float]]] = {}
        """Of each place, by rank."""

    def observe(self, rank: int, delay: float, place: int = 0) -> None:
        """A member came so many seconds after the first."""
        self._delays.setdefault(place, {}).setdefault(rank, deque(maxlen=KEPT)).append(delay)

    def keep(self, ranks: Collection[int]) -> None:
        """Forget all others."""
        self._delays = {
            place: {rank: delays for rank, delays in known.items() if rank in ranks}
            for place, known in self._delays.items()
        }

    def seconds(self, place: int = 0) -> float:
        """From the first member's call of a round to when it goes on without the rest."""
        usual = [_usual(delays) for delays in self._delays.get(place, {}).values() if len(delays) >= ENOUGH]
        return max([self._least, *usual]) if usual else self._first


def _usual(delays: Collection[float]) -> float:
    middle = median(delays)
    return middle + SPREADS * NORMAL * median(abs(delay - middle) for delay in delays)
