"""Hybrid logical clock (Kulkarni et al., 2014): wall time where clocks agree, causal order where they do not.

A reading is one integer, `milliseconds since 1970 << 16 | counter`, so plain integer comparison orders
events.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_AHEAD_MS = 24 * 3600 * 1000
"""A remote clock further ahead of our wall clock than this is not followed."""

_COUNTER_BITS = 16


def seconds(hlc: int) -> float:
    """Seconds since 1970 of a reading, to the millisecond."""
    return (hlc >> _COUNTER_BITS) / 1000


class HybridClock:
    """Strictly increasing readings that never fall behind what was observed.

    Args:
        wall: seconds since 1970; may jump in either direction.
        floor: the last reading this node issued before it restarted; followed however far ahead it is, for
            our own events must keep their order even if the wall clock was set back.
    """

    def __init__(self, wall: Callable[[], float], floor: int = 0) -> None:
        self._wall = wall
        self._last = floor

    def follow(self, reading: int) -> None:
        """Never go below one of our own earlier readings."""
        self._last = max(self._last, reading)

    def now(self) -> int:
        """A reading above every earlier one and everything followed. More than 65,535 in one millisecond
        carry over into the next."""
        self._last = max(self._last + 1, self._wall_ms() << _COUNTER_BITS)
        return self._last

    def observe(self, remote: int) -> bool:
        """Take note of a reading received from elsewhere.

        Returns:
            False if it lies more than 24 h ahead of our wall clock: it was not followed, and one of the two
            clocks is wrong, which somebody should be told.
        """
        if (remote >> _COUNTER_BITS) - self._wall_ms() > MAX_AHEAD_MS:
            return False
        self._last = max(self._last, remote)
        return True

    @staticmethod
    def seconds(hlc: int) -> float:
        """See the function of this name."""
        return seconds(hlc)

    def _wall_ms(self) -> int:
        return max(0, int(self._wall() * 1000))
