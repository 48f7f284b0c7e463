"""How much the lines to peers carry, from what was moved over them.

Blobs that come in anyway are what is measured; a line that carried none is sounded with a little (`sounding.py`). A
figure is what arrived here, through TLS and the store, in bytes a second: what another program takes of the line, or
of this machine, is missing from it. So that one lucky or unlucky transfer says little, the median of the last few
counts.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

LEAST_BANDWIDTH, MOST_BANDWIDTH = 1e3, 12.5e9
"""Bytes/s: 8 kbit/s and 100 Gbit/s. A figure beyond is taken for the nearer of them."""
SLOW_START_BYTES = 256 * 1024
"""Come before a transfer is measured: until then TCP finds out how much it may send at once."""
LEAST_BYTES = 768 * 1024
"""After those. Less says little of a line."""
RECENT = 5
"""Measurements of a line that count."""
PEERS = 256
"""Lines that are remembered; the ones measured last."""
LASTING_SECONDS = 7 * 86400.0
"""How long a measurement counts: machines are carried elsewhere, and lines change."""
SOUNDINGS = 3
"""A day, of a line that carried nothing else: most of those that count."""
STALE_SECONDS = 86400.0


def believable(bandwidth: float) -> float | None:
    """A figure in bytes/s, within bounds; None if it is none: not a number, infinite, zero or negative."""
    if not math.isfinite(bandwidth) or bandwidth <= 0:
        return None
    return min(max(bandwidth, LEAST_BANDWIDTH), MOST_BANDWIDTH)


class Meter:
    """Of one stream of bytes, or of several at once from the same peer, which share the line.

    Args:
        skipped: bytes that come before it measures.
    """

    def __init__(self, skipped: int = SLOW_START_BYTES) -> None:
        self._left = skipped
        self._since = self._last = 0.0
        self.counted = 0

    def add(self, size: int, now: float) -> None:
        """So many bytes have just arrived. `now`: seconds, of a clock that never goes back."""
        if self._left > 0:
            self._left -= size
            self._since = now
        else:
            self.counted += size
        self._last = now

    @property
    def bandwidth(self) -> float:
        """Bytes/s; 0 if nothing was measured."""
        seconds = self._last - self._since
        return self.counted / seconds if self.counted and seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Measurement:
    bandwidth: float
    at: float
    sounded: bool


class Widths:
    """What each line carries. Times are in seconds since 1970, as they outlive the process."""

    def __init__(self) -> None:
        self._of: dict[str, deque[_Measurement]] = {}

    def note(self, peer: str, bandwidth: float, now: float, *, sounded: bool = False) -> None:
        """A transfer was measured. `sounded`: it was made for that."""
        figure = believable(bandwidth)
        if figure is None:
            return
        known = self._of.pop(peer, None) or deque(maxlen=RECENT)
        known.append(_Measurement(figure, now, sounded))
        self._of[peer] = known  # last in order: measured last
        while len(self._of) > PEERS:
            del self._of[next(iter(self._of))]

    def known(self, now: float) -> dict[str, tuple[float, float]]:
        """By peer, the ones measured last at the end: bytes/s, and when that was last measured."""
        found = {}
        for peer, measured in self._of.items():
            if counts := _counting(measured, now):
                found[peer] = (statistics.median(one.bandwidth for one in counts), max(one.at for one in counts))
        return found

    def lacking(self, peer: str, now: float) -> int:
        """How many soundings of this line are due."""
        counts = _counting(self._of.get(peer, ()), now)
        if counts and not counts[0].sounded:
            return 0
        return max(0, SOUNDINGS - sum(now - one.at <= STALE_SECONDS for one in counts))

    def recall(self, kept: Mapping[str, tuple[float, float]], now: float) -> None:
        """What `known` gave to an earlier process; it counts as one sounding each, so that it is looked at again."""
        for peer, (bandwidth, at) in kept.items():
            if math.isfinite(at) and 0 <= now - at <= LASTING_SECONDS and peer not in self._of:
                self.note(peer, bandwidth, at, sounded=True)


def _counting(measured: deque[_Measurement] | tuple[()], now: float) -> list[_Measurement]:
    """Those that are not too old; soundings only if there is nothing better."""
    fresh = [one for one in measured if abs(now - one.at) <= LASTING_SECONDS]
    return [one for one in fresh if not one.sounded] or fresh
