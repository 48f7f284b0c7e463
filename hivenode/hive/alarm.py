"""A timer that follows a pure core's own deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """One timer that always stands at a core's own deadline."""

    def __init__(self, deadline: Callable[[], float], ring: Callable[[float], None]) -> None:
        self._deadline = deadline
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    def reset(self) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_at(self._deadline(), self._fire)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._ring(asyncio.get_running_loop().time())
