"""Why open jobs do not run, as their coordinator says. Never stored: it is said again and again while it is so."""

from __future__ import annotations

from hivenode.net.messages import Waiting
from hivenode.spec.values import Epoch

MAX_JOBS = 256


class Waits:
    """The latest reason by job, of one coordinator's term."""

    def __init__(self) -> None:
        self._epoch: Epoch | None = None
        self._reasons: dict[str, str] = {}

    def hear(self, waiting: Waiting) -> bool:
        """Take a reason in; False if it is known. Those of another term are dropped."""
        if waiting.epoch != self._epoch:
            self._epoch, self._reasons = waiting.epoch, {}
        if self._reasons.get(waiting.job) == waiting.reason:
            return False
        while len(self._reasons) >= MAX_JOBS:
            del self._reasons[next(iter(self._reasons))]
        self._reasons[waiting.job] = waiting.reason
        return True

    def forget(self, job: str) -> None:
        """It was planned, or is over."""
        self._reasons.pop(job, None)

    def why(self, job: str, epoch: Epoch | None) -> str:
        """Empty if nothing is known, or the term is another."""
        return self._reasons.get(job, "") if epoch is not None and epoch == self._epoch else ""
