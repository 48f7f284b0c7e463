"""What a node tells its own person: the answers of the admin endpoint, typed. Encoded as JSON by msgspec."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec

from hivenode.spec.breakdown import Breakdown
from hivenode.spec.capacity import HiveCapacity
from hivenode.spec.members import MemberService
from hivenode.spec.values import BlobRef, Role


class MemberStatus(msgspec.Struct, frozen=True):
    node: str
    name: str
    state: str
    """alive, suspect, dead or left."""
    roles: tuple[str, ...]
    addresses: tuple[str, ...]
    version: str
    linked: bool
    latency_ms: float | None
    self: bool
    coordinator: bool
    bandwidth: float | None = None
    """Bytes/s that came in from there, as measured; None: not yet."""


class FactsStatus(msgspec.Struct, frozen=True):
    """What a node holds of what the hive has stated."""

    seals: int = 0
    """Number of the latest seal: how often old events made way for a snapshot."""
    events: int = 0
    """Held beyond it."""
    journal_bytes: int = 0
    """On disk, the snapshot included."""


class Status(msgspec.Struct, frozen=True):
    node: str
    name: str
    hive: str
    version: str
    roles: tuple[str, ...]
    addresses: tuple[str, ...]
    admin_url: str
    home: str
    uptime_seconds: float
    epoch: str
    coordinator: str
    """Node id, or "" while there is none."""
    members: tuple[MemberStatus, ...]
    jobs_running: int
    health: tuple[str, ...]
    """Sentences on what is wrong and what to do; empty when all is well."""
    healthy: bool = True
    """Whether this node can do its own part. A lost member elsewhere is in `health`, and changes nothing here."""
    facts: FactsStatus = FactsStatus()


class WorkerStatus(msgspec.Struct, frozen=True):
    """One node's part of a running attempt, as last heard."""

    node: str
    name: str
    state: str
    step: int
    loss: float | None
    """None when it is not finite: JSON has no word for that."""
    accuracy: float | None
    samples_per_second: float
    age_seconds: float
    trouble: str = ""
    """What it goes on in spite of, such as a checkpoint that could not be written, and what to do about it."""
    share: float | None = None
    """Of the samples, that it trains on; it moves with the workers' speeds."""


class JobSummary(msgspec.Struct, frozen=True):
    job: str
    name: str
    state: str
    """queued, planned, running, finished, failed or cancelled."""
    strategy: str
    attempt: int
    step: int
    steps: int
    epoch: int
    """Training epoch (pass over the data)."""
    epochs: int
    loss: float | None
    accuracy: float | None
    samples_per_second: float
    submitted_by: str
    submitted_at: float
    """Seconds since 1970, by the submitter's hybrid clock."""
    ended_at: float | None
    model: str
    """`name:version` once finished, else ""."""
    error: str
    fix: str
    reason: str
    """Why it is in this state: "waiting for a coordinator", "1 of 3 nodes lost at step 40, going on with 2", ..."""
    test_loss: float | None = None
    convergence: float | None = None
    """By how much of itself the loss fell in the latest whole epoch."""
    tokens_per_second: float | None = None


class AttemptStatus(msgspec.Struct, frozen=True):
    attempt: int
    epoch: str
    cause: str
    strategy: str
    nodes: tuple[str, ...]
    members: tuple[str, ...]
    outcome: str
    resume_step: int
    adopted: tuple[str, ...]
    """Epochs of the coordinators that adopted it."""


class JobDetail(msgspec.Struct, frozen=True):
    summary: JobSummary
    spec: dict[str, Any]
    plan: Breakdown | None
    attempts: tuple[AttemptStatus, ...]
    workers: tuple[WorkerStatus, ...]
    checkpoint_step: int | None
    checkpoint_holders: tuple[str, ...]
    unused: str = ""
    """What was given and has no effect, in a sentence: told to who submits it, once."""


class ModelSummary(msgspec.Struct, frozen=True):
    name: str
    version: int
    job: str
    source: str
    blob: BlobRef
    holders: tuple[str, ...]
    here: bool
    metrics: dict[str, float]
    created_at: float


class Prediction(msgspec.Struct, frozen=True):
    model: str
    labels: tuple[str, ...]
    outputs: tuple[tuple[float, ...], ...]
    node: str
    seconds: float
    texts: tuple[str, ...] = ()
    """How the samples go on, where that was asked for."""


class InviteIssued(msgspec.Struct, frozen=True):
    token: str
    roles: tuple[str, ...]
    uses: int
    expires_at: float


class JoinResult(msgspec.Struct, frozen=True):
    hive: str
    roles: tuple[str, ...]
    members: int


class JobLogs(msgspec.Struct, frozen=True):
    """Lines of all nodes that could be asked, by time; `missing` names those that could not."""

    lines: tuple[dict[str, Any], ...]
    missing: tuple[str, ...]


MISSED = "missed"
"""Kind of the notice that stands for others that are lost; its `count` is 0 where that is not known."""


class Notice(msgspec.Struct, frozen=True):
    """One item of the event stream. `kind`: member, coordinator, job, progress, model, missed. `data` is the matching
    structure of this module as plain data. `id` is what a reader that comes back names."""

    kind: str
    at: float
    data: dict[str, Any]
    id: str = ""


class NodeService(Protocol):
    """What the admin endpoint needs of a node. Every method may raise a HiveError."""

    @property
    def members(self) -> MemberService: ...

    def status(self) -> Status: ...

    def jobs(self) -> tuple[JobSummary, ...]:
        """Newest first."""
        ...

    def job(self, ref: str) -> JobDetail:
        """By id, unique id prefix, or name (the newest of that name). Raises NotFound, InvalidInput (ambiguous)."""
        ...

    async def submit(self, data: dict[str, Any]) -> JobDetail: ...

    async def cancel(self, ref: str, reason: str) -> JobDetail: ...

    async def plan(self, data: dict[str, Any]) -> Breakdown:
        """What would be chosen now, without submitting."""
        ...

    async def logs(self, ref: str) -> JobLogs: ...

    async def capacity(self) -> HiveCapacity:
        """What every member that may work offers now."""
        ...

    def models(self) -> tuple[ModelSummary, ...]: ...

    async def predict(
        self, model: str, inputs: list[list[float]], texts: list[str], continue_tokens: int
    ) -> Prediction:
        """`model` is `name` (newest version) or `name:version`; `inputs` one flattened sample a row, or `texts`
        in their place; with `continue_tokens`, how each goes on."""
        ...

    async def invite(self, roles: tuple[Role, ...], uses: int, expires_seconds: float) -> InviteIssued: ...

    async def join(self, token: str) -> JoinResult:
        """Leave the present hive (of one) and join the token's; the node restarts itself after answering."""
        ...

    async def pair_with(self, code: str, address: str) -> JoinResult:
        """The same with a pairing code that a member at `address` shows, or with "" one that is found nearby."""
        ...

    def notices(self, after: str = "") -> AsyncIterator[Notice]:
        """A bounded subscription, from after that id on if it is given; a reader that is too slow is told how many
        notices it has missed."""
        ...

    async def request_stop(self) -> None: ...
