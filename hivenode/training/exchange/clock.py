"""Time by which silence is measured."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds, never going back; goes on while the machine is suspended, where the system can tell."""
    return time.clock_gettime(_CLOCK)
