"""What is told of this node's work: progress to every linked node, lines to the daemon's log and the job's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from hivenode.jobs.work import JobLog, Work
from hivenode.logs import get_logger
from hivenode.net.local import WorkerProgress
from hivenode.net.messages import Progress

PROGRESS_SECONDS = 0.45
"""At most one broadcast of progress in this time."""

log = get_logger("jobs")


class Reports:
    """Tells others of work.

    Args:
        broadcast: tells every linked node (and this one) how a worker is getting on.
    """

    def __init__(
        self,
        *,
        me: str,
        node_name: str,
        broadcast: Callable[[Progress], None],
        job_log: JobLog,
        wall: Callable[[], float],
    ) -> None:
        self._me = me
        self._node_name = node_name
        self._broadcast = broadcast
        self._job_log = job_log
        self._wall = wall

    def progress(self, work: Work, said: WorkerProgress) -> None:
        work.accuracy = said.accuracy if said.accuracy is not None else work.accuracy
        work.test_loss = said.test_loss if said.test_loss is not None else work.test_loss
        work.last = Progress(
            job=work.job,
            attempt=work.name[0],
            node=self._me,
            step=said.step,
            steps=said.steps,
            epoch=said.epoch,
            epochs=said.epochs,
            loss=said.loss,
            accuracy=work.accuracy,
            samples_per_second=said.samples_per_second,
            members=len(said.members),
            test_loss=work.test_loss,
            convergence=said.convergence,
            tokens_per_second=said.tokens_per_second,
            trouble=work.trouble,
            share=said.share,
        )
        now = asyncio.get_running_loop().time()
        if now - work.told >= PROGRESS_SECONDS or work.told < 0:
            work.told = now
            self._broadcast(work.last)

    def trouble(self, work: Work, step: int, reason: str, fix: str) -> None:
        """A checkpoint could not be kept. Training goes on: an older one still stands, and the next one tries again."""
        self.note(work, "error", "a checkpoint could not be kept; training goes on", step=step, reason=reason, fix=fix)
        work.trouble = f"No checkpoint of step {step} could be kept: {reason.rstrip('.')}. {fix}"[:2000]
        if work.last is not None and work.state == "running":
            work.last = msgspec.structs.replace(work.last, trouble=work.trouble)
            self._broadcast(work.last)

    def ended(self, work: Work) -> None:
        base = work.last or Progress(work.job, work.name[0], self._me, work.step, work.steps, 0, 0, 0.0, None, 0.0, 0)
        self._broadcast(msgspec.structs.replace(base, state=work.state, samples_per_second=0.0, tokens_per_second=None))

    def note(self, work: Work, level: str, event: str, **fields: object) -> None:
        """A line of ours, in both logs."""
        getattr(log, level)(event, job=work.job, attempt=work.name[0], epoch=str(work.epoch), **fields)
        self.write(work, level, event, fields)

    def write(self, work: Work, level: str, event: str, fields: dict[str, object]) -> None:
        """A line in the job's own log."""
        self._job_log.write(
            work.job,
            {
                "time": self._wall(),
                "level": level,
                "node": self._node_name,
                "job": work.job,
                "attempt": work.name[0],
                "epoch": str(work.epoch),
                "event": event,
                **fields,
            },
        )
