"""Bodies of feed events: every durable fact a node can state. Decoded typed and bounded; unknown kinds are kept
but not folded, so an older node does not lose what a newer one said."""

from __future__ import annotations

from typing import Annotated

import msgspec

from hivenode.spec.values import BlobRef, Digest, Epoch, JobId, Name, NodeId, Number, Plan, Sentence, Share

Clock = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A reading of the hybrid clock."""
Metrics = Annotated[dict[str, float], msgspec.Meta(max_length=64)]


class NodeAdmitted(msgspec.Struct, frozen=True, tag="node.admitted"):
    """First event of every feed: the grant that the hive's authority signed for the feed's author."""

    grant: Annotated[bytes, msgspec.Meta(max_length=4096)]


class JobSubmitted(msgspec.Struct, frozen=True, tag="job.submitted"):
    job: JobId
    name: Name
    spec: Annotated[bytes, msgspec.Meta(max_length=65536)]
    """The validated `JobSpec` as JSON."""


class JobPlanned(msgspec.Struct, frozen=True, tag="job.planned"):
    """The coordinator's breakdown; also each later attempt."""

    job: JobId
    attempt: Number
    epoch: Epoch
    plan: Plan
    cause: Sentence
    """Why this attempt exists: first plan, a lost node, ..."""
    resume: BlobRef | None = None
    resume_step: Number = 0


class AttemptAdopted(msgspec.Struct, frozen=True, tag="attempt.adopted"):
    """A new coordinator took over a running attempt instead of starting it again. Here and below an attempt is
    named by its number and the epoch that planned it: two sides of a partition may use the same number."""

    job: JobId
    attempt: Number
    planned: Epoch
    epoch: Epoch
    members: tuple[NodeId, ...]


class AttemptGrown(msgspec.Struct, frozen=True, tag="attempt.grown"):
    """The coordinator lets one more node take part in a running attempt, or one that was lost again."""

    job: JobId
    attempt: Number
    planned: Epoch
    epoch: Epoch
    share: Share


class MembersChanged(msgspec.Struct, frozen=True, tag="attempt.members"):
    """The workers of an attempt went on without some of their number, or with more (their own view change)."""

    job: JobId
    attempt: Number
    planned: Epoch
    step: Number
    members: tuple[NodeId, ...]
    lost: tuple[NodeId, ...]


class CheckpointSaved(msgspec.Struct, frozen=True, tag="checkpoint.saved"):
    """A checkpoint that `holders` have on disk."""

    job: JobId
    attempt: Number
    step: Number
    blob: BlobRef
    holders: Annotated[tuple[NodeId, ...], msgspec.Meta(max_length=256)]


class Shortage(msgspec.Struct, frozen=True):
    """A worker ran out of memory."""

    node: NodeId
    needed_bytes: Number
    """What it would have taken."""


class AttemptEnded(msgspec.Struct, frozen=True, tag="attempt.ended"):
    """`outcome`: finished, failed (will not work anywhere), or lost (worth another attempt)."""

    job: JobId
    attempt: Number
    planned: Epoch
    epoch: Epoch
    outcome: Name
    step: Number
    seconds: float
    metrics: Metrics
    error: Sentence = ""
    fix: Sentence = ""
    shortages: Annotated[tuple[Shortage, ...], msgspec.Meta(max_length=256)] = ()


class JobCancelled(msgspec.Struct, frozen=True, tag="job.cancelled"):
    job: JobId
    reason: Sentence


class JobGivenUp(msgspec.Struct, frozen=True, tag="job.given_up"):
    """The coordinator ends a job that cannot succeed, with the reason."""

    job: JobId
    epoch: Epoch
    error: Sentence
    fix: Sentence


class ModelRegistered(msgspec.Struct, frozen=True, tag="model.registered"):
    name: Name
    job: JobId
    attempt: Number
    planned: Epoch
    blob: BlobRef
    source: Name
    metrics: Metrics


class BlobHeld(msgspec.Struct, frozen=True, tag="blob.held"):
    """The author keeps these bytes (or, with `held` false, no longer does)."""

    digest: Digest
    size: Number
    held: bool = True


class ExperienceRecorded(msgspec.Struct, frozen=True, tag="experience.recorded"):
    """What a run really took, against what the cost model said (natural units: seconds)."""

    job: JobId
    attempt: Number
    state: tuple[int, int, int, int]
    action: Annotated[int, msgspec.Meta(ge=0, le=4)]
    predicted_seconds: float
    measured_seconds: float
    reference_seconds: float


class SealProposed(msgspec.Struct, frozen=True, tag="seal.proposed"):
    """The coordinator of `epoch`: all that was said up to `horizon` may be replaced by what follows from it. A later
    proposal of the same author withdraws this one."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    epoch: Epoch
    horizon: Clock
    forget: Clock
    """Jobs that ended before this are dropped but for their models."""
    cut: Digest
    """SHA-256 of the cut: of each author the last number up to the horizon."""
    digest: Digest
    """SHA-256 of the snapshot."""


class SealConfirmed(msgspec.Struct, frozen=True, tag="seal.confirmed"):
    """The author holds exactly that cut, and has computed that snapshot from it."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    digest: Digest


class SealClosed(msgspec.Struct, frozen=True, tag="seal.closed"):
    """The author of the proposal: everyone has confirmed it but those excused, who were not heard for long or were
    revoked."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    digest: Digest
    excused: Annotated[tuple[NodeId, ...], msgspec.Meta(max_length=2000)]


Body = (
    NodeAdmitted
    | JobSubmitted
    | JobPlanned
    | AttemptAdopted
    | AttemptGrown
    | MembersChanged
    | CheckpointSaved
    | AttemptEnded
    | JobCancelled
    | JobGivenUp
    | ModelRegistered
    | BlobHeld
    | ExperienceRecorded
    | SealProposed
    | SealConfirmed
    | SealClosed
)
