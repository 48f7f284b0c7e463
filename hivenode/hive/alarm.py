"""A timer that follows a pure core's own deadline."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Alarm:
    """Rings when a core's deadline has come. A timer that stands too early is left to fire and set anew: deadlines move
    away with every message, and a timer is dearer than a look."""

    def __init__(self, deadline: Callable[[], float], ring: Callable[[float], None]) -> None:
        self._deadline = deadline
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    def reset(self) -> None:
        """The deadline may have moved."""
        due = self._deadline()
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._fire) if due < math.inf else None

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if now < self._deadline():
            self.reset()
        else:
            self._ring(now)
