"""The ledger: what is known of every job, folded from the feeds. Pure.

States: `open` until the first of, in the order of all events: an attempt that finished, an attempt that failed for
good, the coordinator giving up, or a cancellation. The first stands, so a job ends exactly once, the same way on every
node, even if two sides of a partition both ended it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from hivenode.hive.roles import Roles
from hivenode.spec.events import (
    AttemptAdopted,
    AttemptEnded,
    AttemptGrown,
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
from hivenode.spec.values import ZERO_EPOCH, BlobRef, Epoch, Plan, Role

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

    @property
    def rank(self) -> tuple[Epoch, Epoch, int]:
        """By which attempts are compared: what a higher epoch planned or adopted stands above all else."""
        return (self.epoch, self.planned, self.number)


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
        """The attempt that counts: the latest of those that the highest epoch planned or adopted."""
        return max(self.attempts.values(), key=lambda a: a.rank, default=None)

    @property
    def fence(self) -> Epoch:
        """The highest epoch that has planned or adopted anything of it: what a lower one says of it is outlived."""
        return max((attempt.epoch for attempt in self.attempts.values()), default=ZERO_EPOCH)

    @property
    def model(self) -> tuple[int, ModelRegistered] | None:
        """What the attempt that finished it registered, with the hybrid clock."""
        return self.models.get(self.finished_by) if self.finished_by is not None else None

    def copy(self) -> Job:
        """One that can be changed without this one changing."""
        return replace(
            self,
            attempts={name: replace(a, adopted=list(a.adopted)) for name, a in self.attempts.items()},
            checkpoints=dict(self.checkpoints),
            models=dict(self.models),
        )

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


class _GrantState(msgspec.Struct, frozen=True, array_like=True, tag="grant"):
    grant: bytes


class _JobsState(msgspec.Struct, frozen=True, array_like=True, tag="jobs"):
    jobs: tuple[Job, ...]


class _ModelsState(msgspec.Struct, frozen=True, array_like=True, tag="models"):
    models: tuple[tuple[int, ModelRegistered], ...]


_PIECE = 16
_encode = msgspec.msgpack.Encoder().encode
_State = _GrantState | _JobsState | _ModelsState
_state: msgspec.msgpack.Decoder[_State] = msgspec.msgpack.Decoder(_State)


@dataclass(frozen=True, slots=True)
class _Mark:
    roles: object
    jobs: dict[str, Job]
    forgotten: dict[str, tuple[int, ModelRegistered]]


class Ledger:
    """All jobs, by id.

    An event counts only from an author who may say such a thing, by the roles it had at that point of the order:
    submissions and cancellations from submitters (or admins), results from the nodes of the attempt's plan, all else
    from a coordinator in an epoch of its own, and only if no higher one has planned or adopted the same before it.

    Args:
        authority_key: by which the grants are checked that give authors their roles.
    """

    topic = "ledger"
    kinds: tuple[type[Body], ...] = (
        NodeAdmitted,
        JobSubmitted,
        JobPlanned,
        AttemptAdopted,
        AttemptGrown,
        MembersChanged,
        CheckpointSaved,
        AttemptEnded,
        JobCancelled,
        JobGivenUp,
        ModelRegistered,
    )
    commuting: tuple[type[Body], ...] = (NodeAdmitted,)

    def __init__(self, authority_key: bytes) -> None:
        self._authority_key = authority_key
        self._roles = Roles(authority_key)
        self.jobs: dict[str, Job] = {}
        self._forgotten: dict[str, tuple[int, ModelRegistered]] = {}
        self._own: dict[str, None] = {}

    def mark(self) -> object:
        self._own = {}  # from here on what is there belongs to the mark, and is copied before it is changed
        return _Mark(self._roles.mark(), dict(self.jobs), self._forgotten)

    def back(self, mark: object) -> None:
        assert isinstance(mark, _Mark)
        self._roles.back(mark.roles)
        self.jobs, self._forgotten, self._own = dict(mark.jobs), mark.forgotten, {}

    def fresh(self) -> Ledger:
        return Ledger(self._authority_key)

    def dump(self, forget: int) -> Iterator[bytes]:
        """Grants; the jobs but those that ended before `forget`; and the model of each of these."""
        for grant in self._roles.dump(forget):
            yield _encode(_GrantState(grant))
        kept, models = list[Job](), dict(self._forgotten)
        for job in sorted(self.jobs.values(), key=lambda job: job.id):
            if job.open or job.ended_at >= forget:
                kept.append(job)
            elif (model := job.model) is not None:
                models[job.id] = model
        for at in range(0, len(kept), _PIECE):
            yield _encode(_JobsState(tuple(kept[at : at + _PIECE])))
        ordered = [models[job] for job in sorted(models)]
        for at in range(0, len(ordered), _PIECE):
            yield _encode(_ModelsState(tuple(ordered[at : at + _PIECE])))

    def load(self, piece: bytes) -> None:
        match _state.decode(piece):
            case _GrantState(grant):
                self._roles.load(grant)
            case _JobsState(jobs):
                self.jobs.update((job.id, job) for job in jobs)
            case _ModelsState(models):
                self._forgotten = {**self._forgotten, **{body.job: (hlc, body) for hlc, body in models}}

    def models(self) -> list[tuple[int, ModelRegistered]]:
        """Of every finished job the registration by the attempt that finished it, with its hybrid clock, in order."""
        counted = [model for job in self.jobs.values() if (model := job.model) is not None]
        return sorted([*self._forgotten.values(), *counted], key=lambda item: (item[0], item[1].job))

    def works(self, node: str) -> bool:
        """Whether a node has a part in an attempt of an open job."""
        return any(node in attempt.nodes for job in self.jobs.values() if job.open for attempt in job.attempts.values())

    def submits(self, node: str) -> bool:
        """Whether an open job is a node's wish, which may have data and weights that go with it."""
        return any(job.open and job.submitter == node for job in self.jobs.values())

    def names(self, digest: str) -> bool:
        """Whether a blob is a checkpoint, or what an attempt goes on from, or a model of any job."""
        return any(
            digest in job.checkpoints
            or any(attempt.resume is not None and attempt.resume.digest == digest for attempt in job.attempts.values())
            or any(model.blob.digest == digest for _, model in job.models.values())
            for job in self.jobs.values()
        )

    def apply(self, author: str, hlc: int, body: Body) -> None:
        match body:
            case NodeAdmitted():
                self._roles.apply(author, hlc, body)
            case JobSubmitted():
                new = body.job not in self.jobs and body.job not in self._forgotten
                if new and self._roles.may(author, Role.submitter) and _is_object(body.spec):
                    self.jobs[body.job] = Job(body.job, body.name, body.spec, author, hlc)
                    self._own[body.job] = None
            case _:
                job = self.jobs.get(getattr(body, "job", ""))
                if job is not None:
                    if job.id not in self._own:
                        job = self.jobs[job.id] = job.copy()
                        self._own[job.id] = None
                    self._apply(job, author, hlc, body)

    def _apply(self, job: Job, author: str, hlc: int, body: Body) -> None:
        match body:
            case JobPlanned():
                if self._leads(author, body.epoch):
                    attempt = _attempt(body, hlc)
                    job.attempts.setdefault(attempt.name, attempt)
            case AttemptAdopted():
                adopted = job.attempts.get((body.attempt, body.planned))
                if adopted is not None and self._leads(author, body.epoch) and body.epoch >= adopted.epoch:
                    adopted.epoch = body.epoch
                    adopted.adopted.append(body.epoch)
            case AttemptGrown():
                grown = job.attempts.get((body.attempt, body.planned))
                if grown is not None and self._leads(author, body.epoch) and body.epoch >= grown.epoch:
                    others = tuple(share for share in grown.plan.shares if share.node != body.share.node)
                    grown.plan = msgspec.structs.replace(grown.plan, shares=(*others, body.share))
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
                if ended is not None and self._may_end(author, ended, body):
                    self._ended(job, ended, body, hlc)
            case JobCancelled():
                if self._roles.may(author, Role.submitter) or self._roles.may(author, Role.admin):
                    self._end(job, "cancelled", hlc, body.reason)
            case JobGivenUp():
                if self._leads(author, body.epoch) and body.epoch >= job.fence:
                    self._end(job, "failed", hlc, body.error, body.fix)

    def _may_end(self, author: str, attempt: Attempt, body: AttemptEnded) -> bool:
        """A result stands whoever coordinates; that there will be none is for the coordinator to say, and for none that
        a higher epoch has taken the attempt from."""
        if body.outcome == "finished":
            return author in attempt.nodes
        return self._leads(author, body.epoch) and body.epoch >= attempt.epoch

    def _ended(self, job: Job, attempt: Attempt, body: AttemptEnded, hlc: int) -> None:
        if attempt.ended is not None and not (attempt.ended.outcome == "lost" and body.outcome == "finished"):
            return  # one that was thought lost may still have finished, on the other side of a partition
        attempt.ended = body
        if body.outcome == "finished":
            if job.open:
                job.finished_by = attempt.name
            self._end(job, "finished", hlc)
        elif body.outcome == "failed" and body.epoch >= job.fence:
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
