"""The ledger: what is known of every job, folded from the feeds. Pure.

States: `open` until the first of, in the order of all events: an attempt that finished, an attempt that failed for
good, the coordinator giving up, or a cancellation. The first stands, so a job ends exactly once, the same way on every
node, even if two sides of a partition both ended it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from hivenode.hive.roles import Roles
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
    ModelRegistered,
    NodeAdmitted,
)
from hivenode.spec.values import BlobRef, Epoch, Plan, Role

Ending = Literal["", "finished", "failed", "cancelled"]
AttemptName = tuple[int, Epoch]


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
    def nodes(self) -> tuple[str, ...]:
        """All nodes of the plan."""
        return tuple(share.node for share in self.plan.shares)

    @property
    def name(self) -> AttemptName:
        return (self.number, self.planned)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: int
    blob: BlobRef
    holders: tuple[str, ...]
    attempt: int
    """Number of the attempt that made it."""


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
    models: dict[AttemptName, tuple[int, ModelRegistered]] = field(default_factory=dict)
    """What each attempt registered, with the hybrid clock."""
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
        """Attempts in a row, up to the latest, that ended without a result and without a checkpoint of their own."""
        count = 0
        for attempt in sorted(self.attempts.values(), key=lambda a: (a.planned, a.number), reverse=True):
            got_on = any(
                c.attempt == attempt.number and c.step > attempt.resume_step for c in self.checkpoints.values()
            )
            if attempt.ended is None or got_on:
                break
            count += 1
        return count

    def latest_checkpoint(self) -> Checkpoint | None:
        """The furthest one stated, whether or not its holders can be reached."""
        return max(self.checkpoints.values(), key=lambda c: (c.step, c.blob.digest), default=None)


class Ledger:
    """All jobs, by id.

    An event counts only from an author who may say such a thing, by the roles it had at that point of the order:
    submissions and cancellations from submitters (or admins), plans and adoptions from a coordinator in an epoch of its
    own, results from the nodes of the attempt's plan.

    Args:
        authority_key: by which the grants are checked that give authors their roles.
    """

    kinds: tuple[type[Body], ...] = (
        NodeAdmitted,
        JobSubmitted,
        JobPlanned,
        AttemptAdopted,
        MembersChanged,
        CheckpointSaved,
        AttemptEnded,
        JobCancelled,
        JobGivenUp,
        ModelRegistered,
    )

    def __init__(self, authority_key: bytes) -> None:
        self._roles = Roles(authority_key)
        self.jobs: dict[str, Job] = {}

    def reset(self) -> None:
        self._roles.reset()
        self.jobs.clear()

    def models(self) -> list[tuple[int, ModelRegistered]]:
        """Of every finished job the registration by the attempt that finished it, with its hybrid clock, in order."""
        counted = [
            job.models[job.finished_by]
            for job in self.jobs.values()
            if job.finished_by is not None and job.finished_by in job.models
        ]
        return sorted(counted, key=lambda item: (item[0], item[1].job))

    def apply(self, author: str, hlc: int, body: Body) -> None:
        match body:
            case NodeAdmitted():
                self._roles.apply(author, hlc, body)
            case JobSubmitted():
                if self._roles.may(author, Role.submitter) and _is_object(body.spec):
                    self.jobs.setdefault(body.job, Job(body.job, body.name, body.spec, author, hlc))
            case _:
                job = self.jobs.get(getattr(body, "job", ""))
                if job is not None:
                    self._apply(job, author, hlc, body)

    def _apply(self, job: Job, author: str, hlc: int, body: Body) -> None:
        match body:
            case JobPlanned():
                if self._leads(author, body.epoch):
                    attempt = _attempt(body, hlc)
                    job.attempts.setdefault(attempt.name, attempt)
            case AttemptAdopted():
                adopted = job.attempts.get((body.attempt, body.planned))
                if adopted is not None and self._leads(author, body.epoch):
                    adopted.epoch = max(adopted.epoch, body.epoch)
                    adopted.adopted.append(body.epoch)
            case MembersChanged():
                changed = job.attempts.get((body.attempt, body.planned))
                if changed is not None and author in changed.nodes:
                    changed.members = tuple(node for node in body.members if node in changed.nodes)
            case CheckpointSaved():
                if any(author in attempt.nodes for attempt in job.attempts.values()):
                    held = job.checkpoints.get(body.blob.digest)
                    holders = tuple(sorted({*(held.holders if held else ()), *body.holders}))
                    job.checkpoints[body.blob.digest] = Checkpoint(body.step, body.blob, holders, body.attempt)
            case ModelRegistered():
                made = job.attempts.get((body.attempt, body.planned))
                if made is not None and author in made.nodes:
                    job.models.setdefault(made.name, (hlc, body))
            case AttemptEnded():
                ended = job.attempts.get((body.attempt, body.planned))
                if ended is not None and (author in ended.nodes or self._leads(author, body.epoch)):
                    self._ended(job, ended, body, hlc)
            case JobCancelled():
                if self._roles.may(author, Role.submitter) or self._roles.may(author, Role.admin):
                    self._end(job, "cancelled", hlc, body.reason)
            case JobGivenUp():
                if self._leads(author, body.epoch):
                    self._end(job, "failed", hlc, body.error, body.fix)

    def _ended(self, job: Job, attempt: Attempt, body: AttemptEnded, hlc: int) -> None:
        if attempt.ended is not None and not (attempt.ended.outcome == "lost" and body.outcome == "finished"):
            return  # one that was thought lost may still have finished, on the other side of a partition
        attempt.ended = body
        if body.outcome == "finished":
            if job.open:
                job.finished_by = attempt.name
            self._end(job, "finished", hlc)
        elif body.outcome == "failed":
            self._end(job, "failed", hlc, body.error, body.fix)

    def _leads(self, author: str, epoch: Epoch) -> bool:
        return author == epoch.node and self._roles.may(author, Role.coordinator)

    @staticmethod
    def _end(job: Job, ending: Ending, hlc: int, error: str = "", fix: str = "") -> None:
        if job.open:
            job.ending, job.ended_at, job.error, job.fix = ending, hlc, error, fix


def _attempt(body: JobPlanned, hlc: int) -> Attempt:
    return Attempt(
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


def _is_object(spec: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(spec), dict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
