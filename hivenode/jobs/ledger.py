"""The ledger: what is known of every job, folded from the feeds. Pure.

States: `open` until the first of, in the order of all events: an attempt that finished, an attempt that failed for
good, the coordinator giving up, or a cancellation. The first stands, so a job ends exactly once, the same way on every
node, even if two sides of a partition both ended it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hivenode.spec.events import (
    AttemptAdopted,
    AttemptEnded,
    Body,
    CheckpointSaved,
    JobCancelled,
    JobGivenUp,
    JobPlanned,
    JobSubmitted,
    MembersChanged,
)
from hivenode.spec.values import BlobRef, Epoch, Plan

Ending = Literal["", "finished", "failed", "cancelled"]
AttemptName = tuple[int, Epoch]
HOPELESS = 2


@dataclass(slots=True)
class Attempt:
    """One try at a job. Named by number and planning epoch."""

    number: int
    planned: Epoch
    plan: Plan
    cause: str
    resume: BlobRef | None
    resume_step: int
    at: int
    """Hybrid clock of the plan."""
    epoch: Epoch
    """Highest epoch that planned or adopted it."""
    members: tuple[str, ...]
    """Nodes whose workers still take part, as last stated."""
    adopted: list[Epoch] = field(default_factory=list)
    ended: AttemptEnded | None = None

    @property
    def name(self) -> AttemptName:
        return (self.number, self.planned)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: int
    blob: BlobRef
    holders: tuple[str, ...]


@dataclass(slots=True)
class Job:
    id: str
    name: str
    spec: bytes
    submitter: str
    at: int
    attempts: dict[AttemptName, Attempt] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    """By digest."""
    ending: Ending = ""
    ended_at: int = 0
    error: str = ""
    fix: str = ""
    finished_by: AttemptName | None = None

    @property
    def open(self) -> bool:
        return not self.ending

    @property
    def current(self) -> Attempt | None:
        """The attempt that counts: the highest epoch's latest."""
        return max(self.attempts.values(), key=lambda a: (a.planned, a.number), default=None)

    @property
    def next_number(self) -> int:
        return max((number for number, _ in self.attempts), default=0) + 1

    @property
    def tries(self) -> int:
        """Attempts that ended without a result."""
        return sum(1 for attempt in self.attempts.values() if attempt.ended is not None)

    def latest_checkpoint(self, reachable: frozenset[str] | None = None) -> Checkpoint | None:
        """The furthest one, of those that a reachable node holds (None: any), but not one from which `HOPELESS`
        attempts never got going: its bytes may be gone for all that was said of them."""
        barren = [a.resume.digest for a in self.attempts.values() if a.resume and a.ended and a.ended.step == 0]
        usable = [
            c
            for c in self.checkpoints.values()
            if (reachable is None or any(node in reachable for node in c.holders))
            and barren.count(c.blob.digest) < HOPELESS
        ]
        return max(usable, key=lambda c: (c.step, c.blob.digest), default=None)


class Ledger:
    """All jobs, by id."""

    kinds: tuple[type[Body], ...] = (
        JobSubmitted,
        JobPlanned,
        AttemptAdopted,
        MembersChanged,
        CheckpointSaved,
        AttemptEnded,
        JobCancelled,
        JobGivenUp,
    )

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}

    def reset(self) -> None:
        self.jobs.clear()

    def apply(self, author: str, hlc: int, body: Body) -> None:
        if isinstance(body, JobSubmitted):
            self.jobs.setdefault(body.job, Job(body.job, body.name, body.spec, author, hlc))
            return
        job = self.jobs.get(getattr(body, "job", ""))
        if job is None:
            return  # said before its submission in clock order: only a broken clock does that, and it means nothing
        match body:
            case JobPlanned():
                attempt = Attempt(
                    number=body.attempt,
                    planned=body.epoch,
                    plan=body.plan,
                    cause=body.cause,
                    resume=body.resume,
                    resume_step=body.resume_step,
                    at=hlc,
                    epoch=body.epoch,
                    members=tuple(share.node for share in body.plan.shares),
                )
                job.attempts.setdefault(attempt.name, attempt)
            case AttemptAdopted():
                if adopted := job.attempts.get((body.attempt, body.planned)):
                    adopted.epoch = max(adopted.epoch, body.epoch)
                    adopted.adopted.append(body.epoch)
            case MembersChanged():
                if changed := job.attempts.get((body.attempt, body.planned)):
                    changed.members = body.members
            case CheckpointSaved():
                held = job.checkpoints.get(body.blob.digest)
                holders = tuple(sorted({*(held.holders if held else ()), *body.holders}))
                job.checkpoints[body.blob.digest] = Checkpoint(body.step, body.blob, holders)
            case AttemptEnded():
                ended = job.attempts.get((body.attempt, body.planned))
                if ended is None or ended.ended is not None:
                    return
                ended.ended = body
                if body.outcome == "finished":
                    self._end(job, "finished", hlc)
                    job.finished_by = job.finished_by or ended.name
                elif body.outcome == "failed":
                    self._end(job, "failed", hlc, body.error, body.fix)
            case JobCancelled():
                self._end(job, "cancelled", hlc, body.reason)
            case JobGivenUp():
                self._end(job, "failed", hlc, body.error, body.fix)

    @staticmethod
    def _end(job: Job, ending: Ending, hlc: int, error: str = "", fix: str = "") -> None:
        if job.open:
            job.ending, job.ended_at, job.error, job.fix = ending, hlc, error, fix
