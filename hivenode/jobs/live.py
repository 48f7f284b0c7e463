"""How running workers get on, as last heard. Never stored, never folded: what must last is an event."""

from __future__ import annotations

from dataclasses import dataclass

from hivenode.net.messages import Progress

MAX_JOBS = 256


@dataclass(frozen=True, slots=True)
class Heard:
    progress: Progress
    at: float
    """Loop time, seconds."""


class Live:
    """Latest progress by job and node, of the latest attempt heard of."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, Heard]] = {}

    def hear(self, progress: Progress, now: float) -> bool:
        """Take a report in; False if it is older than what is known."""
        nodes = self._jobs.get(progress.job)
        if nodes is None:
            while len(self._jobs) >= MAX_JOBS:
                del self._jobs[next(iter(self._jobs))]
            nodes = self._jobs[progress.job] = {}
        held = nodes.get(progress.node)
        if held is not None and held.progress.attempt > progress.attempt:
            return False
        nodes[progress.node] = Heard(progress, now)
        return True

    def of(self, job: str, attempt: int) -> dict[str, Heard]:
        """By node id, those of one attempt."""
        return {
            node: heard for node, heard in sorted(self._jobs.get(job, {}).items()) if heard.progress.attempt == attempt
        }

    def state(self, job: str, attempt: int, node: str) -> str:
        """running, finished, failed, or "" when nothing was heard."""
        heard = self._jobs.get(job, {}).get(node)
        return heard.progress.state if heard is not None and heard.progress.attempt == attempt else ""
