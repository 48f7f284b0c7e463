"""What a node's own person can ask of it: reads the views, states wishes as events, asks the other nodes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import ValidationError

from hivenode import __version__
from hivenode.admin.members import Members
from hivenode.admin.notices import Notices
from hivenode.catalog.holders import Keeper
from hivenode.catalog.models import Catalogue, Holders, ModelVersion
from hivenode.errors import Conflict, HiveError, InvalidInput, NotFound, Refused, Unavailable
from hivenode.hive.clock import seconds
from hivenode.hive.leadership import Leadership
from hivenode.hive.membership import Membership
from hivenode.hive.roles import Roles
from hivenode.hive.swim import MemberState
from hivenode.jobs.breakdowns import break_down, unused
from hivenode.jobs.capacities import capacity_of
from hivenode.jobs.ledger import Attempt, Job, Ledger
from hivenode.jobs.live import Live
from hivenode.jobs.predictor import Predictor
from hivenode.jobs.preparing import Preparer
from hivenode.jobs.proposals import Proposer, describe
from hivenode.jobs.results import Append
from hivenode.jobs.waits import Waits
from hivenode.net.messages import LogsReply, LogsRequest, Request, Response
from hivenode.net.transport import Transport
from hivenode.spec.breakdown import Breakdown
from hivenode.spec.capacity import HiveCapacity
from hivenode.spec.events import JobCancelled, JobSubmitted
from hivenode.spec.job import JobSpec, encoded, parse_job
from hivenode.spec.model import runtime
from hivenode.spec.status import (
    AttemptStatus,
    FactsStatus,
    InviteIssued,
    JobDetail,
    JobLogs,
    JobSummary,
    JoinResult,
    MemberStatus,
    ModelSummary,
    Notice,
    Prediction,
    Status,
    WorkerStatus,
)
from hivenode.spec.values import Plan, Role
from hivenode.store.ports import BlobStore

LOGS_SECONDS = 5.0
MAX_LOG_LINES = 20_000
NAMED = 4
"""Lost nodes that are named, at most."""
FLOAT32_MAX = 3.4028234663852886e38
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


@dataclass(frozen=True)
class Parts:
    """The parts of a node that the service reads and asks."""

    me: str
    name: str
    hive: str
    home: str
    started: float
    transport: Transport
    membership: Membership
    leadership: Leadership
    roles: Roles
    ledger: Ledger
    live: Live
    waits: Waits
    catalogue: Catalogue
    holders: Holders
    proposer: Proposer
    preparer: Preparer
    spawn: Callable[[Coroutine[Any, Any, None], str], object]
    predictor: Predictor
    keeper: Keeper
    blobs: BlobStore
    notices: Notices
    append: Append
    call: Callable[[str, Request, float], Awaitable[Response]]
    wall: Callable[[], float]
    rng: random.Random
    health: Callable[[], tuple[str, ...]]
    facts: Callable[[], FactsStatus]
    admin_url: Callable[[], str]
    addresses: Callable[[], tuple[str, ...]]
    members: Members
    invite: Callable[[tuple[Role, ...], int, float], Awaitable[InviteIssued]]
    join: Callable[[str], Awaitable[JoinResult]]
    pair: Callable[[str, str], Awaitable[JoinResult]]
    stop: Callable[[], None]
    lines: Callable[[], dict[str, float]]


class Service:
    """`spec.status.NodeService` over the parts of a running node."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts

    # --- the hive ---------------------------------------------------------------------------------------------

    @property
    def members(self) -> Members:
        return self._p.members

    def status(self) -> Status:
        p = self._p
        leader = p.leadership.leader
        return Status(
            node=p.me,
            name=p.name,
            hive=p.hive,
            version=__version__,
            roles=tuple(role.value for role in p.roles.of(p.me)),
            addresses=p.addresses(),
            admin_url=p.admin_url(),
            home=p.home,
            uptime_seconds=asyncio.get_running_loop().time() - p.started,
            epoch=str(p.leadership.highest),
            coordinator=leader.node if leader else "",
            members=self._members(leader.node if leader else ""),
            jobs_running=sum(1 for job in p.ledger.jobs.values() if job.open),
            health=self._health(),
            healthy=leader is not None and not p.health(),
            facts=p.facts(),
        )

    def _members(self, coordinator: str) -> tuple[MemberStatus, ...]:
        p = self._p
        links, lines = p.transport.links, p.lines()
        return tuple(
            MemberStatus(
                node=member.node,
                name=member.name or p.roles.name(member.node),
                state=member.state.value,
                roles=tuple(role.value for role in p.roles.of(member.node)),
                addresses=member.addresses,
                version=member.version,
                linked=member.node == p.me or member.node in links,
                latency_ms=latency * 1000 if (latency := p.membership.latency(member.node)) is not None else None,
                self=member.node == p.me,
                coordinator=member.node == coordinator,
                bandwidth=lines.get(member.node),
            )
            for member in p.membership.members
            if member.node == p.me or not p.roles.revoked(member.node)
        )

    def _health(self) -> tuple[str, ...]:
        p = self._p
        found = list(p.health())
        if p.roles.revoked(p.me):
            return tuple(found)  # whatever else is wrong follows from that
        if p.leadership.leader is None:
            why = f", {p.leadership.waiting}" if p.leadership.waiting else ""
            found.append(f"There is no coordinator yet{why}: jobs wait until one is elected.")
        found.extend(
            f"{member.name} is {member.state.value}: its jobs go on elsewhere."
            for member in p.membership.members
            if member.state in (MemberState.suspect, MemberState.dead) and not p.roles.revoked(member.node)
        )
        return tuple(found)

    async def invite(self, roles: tuple[Role, ...], uses: int, expires_seconds: float) -> InviteIssued:
        return await self._p.invite(roles, uses, expires_seconds)

    async def join(self, token: str) -> JoinResult:
        self._may_leave()
        return await self._p.join(token)

    async def pair_with(self, code: str, address: str) -> JoinResult:
        self._may_leave()
        return await self._p.pair(code, address)

    def _may_leave(self) -> None:
        p = self._p
        if not p.roles.revoked(p.me) and any(job.open for job in p.ledger.jobs.values()):
            raise Conflict(
                "This node's present hive still has unfinished jobs.",
                fix="Wait for them or `hivenode cancel` them, then join.",
            )

    async def request_stop(self) -> None:
        self._p.stop()

    def notices(self, after: str = "") -> AsyncIterator[Notice]:
        return self._p.notices.subscribe(after)

    # --- jobs -------------------------------------------------------------------------------------------------

    def jobs(self) -> tuple[JobSummary, ...]:
        newest_first = sorted(self._p.ledger.jobs.values(), key=lambda job: (job.at, job.id), reverse=True)
        return tuple(self._summary(job) for job in newest_first)

    def job(self, ref: str) -> JobDetail:
        return self._detail(self._find(ref))

    async def submit(self, data: dict[str, Any]) -> JobDetail:
        p = self._p
        if not p.roles.may(p.me, Role.submitter):
            raise Refused(
                f"Node {p.name} may not submit jobs.",
                fix="Submit on a node with the submitter role, or have an admin grant it.",
            )
        spec = parse_job(data)
        given = spec.training.model_fields_set
        self._resolve_nodes(spec)
        spec = await p.preparer.resolve(spec)
        if not p.proposer.only_nodes_know(spec):
            describe(spec)
        without_effect = unused(spec, given)
        job = "j-" + "".join(p.rng.choice(_ALPHABET) for _ in range(10))
        await p.append(JobSubmitted(job=job, name=spec.name, spec=encoded(spec)))
        p.spawn(p.preparer.spread(spec), "job: copies of its data")
        return msgspec.structs.replace(self.job(job), unused=without_effect)

    async def cancel(self, ref: str, reason: str) -> JobDetail:
        job, p = self._find(ref), self._p
        if not (p.roles.may(p.me, Role.submitter) or p.roles.may(p.me, Role.admin)):
            raise Refused(f"Node {p.name} may not cancel jobs.", fix="Cancel on a node with the submitter role.")
        if not job.open:
            raise Conflict(f"Job {job.id} is already {job.ending}.", fix="Nothing to do.")
        await p.append(JobCancelled(job=job.id, reason=reason[:1900]))
        return self._detail(p.ledger.jobs[job.id])

    async def plan(self, data: dict[str, Any]) -> Breakdown:
        spec = parse_job(data)
        given = spec.training.model_fields_set
        self._resolve_nodes(spec)
        spec = await self._p.preparer.resolve(spec, keep=False)
        found = break_down(await self._p.proposer.propose(spec, salt="dry run"), spec)
        return msgspec.structs.replace(found, unused=unused(spec, given))

    async def capacity(self) -> HiveCapacity:
        profiles, missing = await self._p.proposer.profiles()
        return HiveCapacity(tuple(capacity_of(profile, self._p.me) for profile in profiles), missing)

    async def logs(self, ref: str) -> JobLogs:
        p = self._p
        job = self._find(ref)
        nodes = sorted({share.node for attempt in job.attempts.values() for share in attempt.plan.shares} | {p.me})
        gathered = await asyncio.gather(*(self._logs_of(node, job.id) for node in nodes))
        missing = tuple(p.roles.name(node) for node, lines in zip(nodes, gathered, strict=True) if lines is None)
        lines = [line for part in gathered if part for line in part]
        lines.sort(key=lambda line: float(line.get("time", 0.0)))
        return JobLogs(lines=tuple(lines[-MAX_LOG_LINES:]), missing=missing)

    async def _logs_of(self, node: str, job: str) -> list[dict[str, Any]] | None:
        lines: list[dict[str, Any]] = []
        after = 0
        while len(lines) < MAX_LOG_LINES:
            try:
                reply = await self._p.call(node, LogsRequest(job=job, after=after), LOGS_SECONDS)
            except HiveError:
                return lines or None  # named as missing in the answer
            if not isinstance(reply, LogsReply):
                return None
            for line in reply.lines:
                item = json.loads(line)
                if isinstance(item, dict):
                    lines.append(item)
            if not reply.more or reply.next <= after:
                break
            after = reply.next
        return lines

    def _find(self, ref: str) -> Job:
        jobs = self._p.ledger.jobs
        if ref in jobs:
            return jobs[ref]
        named = sorted((job for job in jobs.values() if job.name == ref), key=lambda job: (job.at, job.id))
        if named:
            return named[-1]
        matching = [job for job in jobs.values() if ref and job.id.startswith(ref)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise InvalidInput(
                f"{ref} could mean {len(matching)} jobs.", fix="Give more of the id; `hivenode jobs` lists them."
            )
        raise NotFound(f"There is no job {ref}.", fix="`hivenode jobs` lists the jobs of this hive.")

    def _resolve_nodes(self, spec: JobSpec) -> None:
        for wanted in spec.placement.nodes:
            meant = [m for m in self._p.membership.members if wanted in (m.node, m.name)]
            if not meant:
                raise NotFound(
                    f"placement.nodes names {wanted}, which is no member.", fix="`hivenode status` lists the members."
                )
            if len(meant) > 1:
                raise InvalidInput(
                    f"placement.nodes names {wanted}, as {len(meant)} members are called.",
                    fix="Give the node's id instead; `hivenode status --json` lists them.",
                )

    def _summary(self, job: Job) -> JobSummary:
        p = self._p
        attempt = job.current
        live = p.live.of(job.id, attempt.number) if attempt else {}
        going = [
            heard.progress
            for node, heard in live.items()
            if heard.progress.state != "failed" and attempt and node in attempt.members
        ]
        furthest = max(going, key=lambda progress: progress.step, default=None)
        state = job.ending or ("queued" if attempt is None or attempt.ended else "running" if furthest else "planned")
        model = p.catalogue.of_job(job.id)
        epochs = furthest.epochs if furthest else _declared_epochs(job.spec)
        metrics = attempt.ended.metrics if attempt and attempt.ended and job.ending == "finished" else {}
        tokens = [progress.tokens_per_second for progress in going if progress.tokens_per_second is not None]
        step = furthest.step if furthest else attempt.ended.step if attempt and attempt.ended else 0
        return JobSummary(
            job=job.id,
            name=job.name,
            state=state,
            strategy=attempt.plan.strategy.value if attempt else "",
            attempt=attempt.number if attempt else 0,
            step=step,
            steps=furthest.steps if furthest else step,
            epoch=furthest.epoch if furthest else epochs if job.ending == "finished" else 0,
            epochs=epochs,
            loss=metrics.get("loss", furthest.loss if furthest else None),
            accuracy=metrics.get("accuracy", furthest.accuracy if furthest else None),
            samples_per_second=sum(progress.samples_per_second for progress in going) if job.open else 0.0,
            submitted_by=p.roles.name(job.submitter),
            submitted_at=seconds(job.at),
            ended_at=seconds(job.ended_at) if job.ended_at else None,
            model=model.reference if model and job.ending == "finished" else "",
            error=job.error,
            fix=job.fix,
            reason=self._reason(job, attempt),
            test_loss=metrics.get("test_loss", furthest.test_loss if furthest else None),
            convergence=metrics.get("convergence", furthest.convergence if furthest else None),
            tokens_per_second=sum(tokens) if job.open and tokens else None,
        )

    def _reason(self, job: Job, attempt: Attempt | None) -> str:
        p = self._p
        if not job.open:
            return f"{job.ending}: {job.error}" if job.error else job.ending
        if p.leadership.leader is None:
            return "waiting for a coordinator to be elected"
        if waiting := p.waits.why(job.id, p.leadership.leader):
            return waiting
        if attempt is None or attempt.ended is not None:
            return "waiting for the coordinator to plan it"
        planned = len(attempt.plan.shares)
        if lost := [p.roles.name(share.node) for share in attempt.plan.shares if share.node not in attempt.members]:
            who = ", ".join([*lost[:NAMED], "..."] if len(lost) > NAMED else lost)
            return f"{len(lost)} of {planned} nodes lost ({who}), going on with {len(attempt.members)}"
        return attempt.plan.reason

    def _detail(self, job: Job) -> JobDetail:
        p = self._p
        attempt = job.current
        now = asyncio.get_running_loop().time()
        live = p.live.of(job.id, attempt.number) if attempt else {}
        checkpoint = job.latest_checkpoint()
        return JobDetail(
            summary=self._summary(job),
            spec=json.loads(job.spec),
            plan=_broken_down(attempt.plan, job.spec) if attempt else None,
            attempts=tuple(
                AttemptStatus(
                    attempt=each.number,
                    epoch=str(each.planned),
                    cause=each.cause,
                    strategy=each.plan.strategy.value,
                    nodes=tuple(p.roles.name(share.node) for share in each.plan.shares),
                    members=tuple(p.roles.name(node) for node in each.members),
                    outcome=each.ended.outcome if each.ended else "",
                    resume_step=each.resume_step,
                    adopted=tuple(str(epoch) for epoch in each.adopted),
                )
                for each in sorted(job.attempts.values(), key=lambda a: (a.planned, a.number))
            ),
            workers=tuple(
                WorkerStatus(
                    node=node,
                    name=p.roles.name(node),
                    state=self._worker_state(attempt, node, heard.progress.state),
                    step=heard.progress.step,
                    loss=heard.progress.loss,
                    accuracy=heard.progress.accuracy,
                    samples_per_second=heard.progress.samples_per_second,
                    age_seconds=now - heard.at,
                    trouble=heard.progress.trouble,
                    share=heard.progress.share,
                )
                for node, heard in live.items()
            ),
            checkpoint_step=checkpoint.step if checkpoint else None,
            checkpoint_holders=tuple(p.roles.name(node) for node in checkpoint.holders) if checkpoint else (),
        )

    def _worker_state(self, attempt: Attempt | None, node: str, said: str) -> str:
        member = self._p.membership.member(node)
        gone = member is not None and member.state in (MemberState.dead, MemberState.left)
        if said == "running" and (gone or (attempt is not None and node not in attempt.members)):
            return "lost"
        return said

    # --- models -----------------------------------------------------------------------------------------------

    def models(self) -> tuple[ModelSummary, ...]:
        return tuple(self._model(version) for version in self._p.catalogue.versions)

    def _model(self, version: ModelVersion) -> ModelSummary:
        p = self._p
        return ModelSummary(
            name=version.name,
            version=version.version,
            job=version.job,
            source=version.source,
            blob=version.blob,
            holders=tuple(p.roles.name(node) for node in p.holders.of(version.blob.digest)),
            here=p.blobs.has(version.blob.digest),
            metrics=version.metrics,
            created_at=seconds(version.at),
        )

    async def predict(
        self, model: str, inputs: list[list[float]], texts: list[str], continue_tokens: int
    ) -> Prediction:
        p = self._p
        version = p.catalogue.find(model)
        if not inputs and not texts:
            raise InvalidInput("There is no sample in inputs or texts.", fix="Give at least one.")
        for number, row in enumerate(inputs, 1):
            if not all(abs(value) <= FLOAT32_MAX for value in row):
                raise InvalidInput(
                    f"Sample {number} has a value that is not a finite float32.",
                    fix="Give numbers within its range.",
                )
        if not p.blobs.has(version.blob.digest):
            await p.keeper.obtain(version.blob, p.holders.of(version.blob.digest))
        path = p.blobs.path(version.blob.digest)
        if path is None:
            raise Unavailable(
                f"The file of {version.reference} is not here.",
                fix="Predict on a node that holds it; see `hivenode models`.",
            )
        began = asyncio.get_running_loop().time()
        answer = await p.predictor.predict(
            version.blob.digest, str(path), runtime(version.source), inputs, texts, continue_tokens
        )
        return Prediction(
            model=version.reference,
            labels=tuple(answer.labels),
            outputs=tuple(tuple(row) for row in answer.outputs),
            texts=tuple(answer.texts),
            node=p.name,
            seconds=asyncio.get_running_loop().time() - began,
        )


def _declared_epochs(spec: bytes) -> int:
    """0 when this version does not understand the declaration; anybody who may submit can have stated anything."""
    try:
        return JobSpec.model_validate_json(spec).training.epochs
    except ValidationError:
        return 0


def _broken_down(plan: Plan, spec: bytes) -> Breakdown:
    """The bare plan when this version does not understand the declaration."""
    try:
        return break_down(plan, JobSpec.model_validate_json(spec))
    except (ValidationError, InvalidInput):
        return Breakdown(**msgspec.structs.asdict(plan))


def plain(value: msgspec.Struct) -> dict[str, Any]:
    """A structure as plain data, for a notice."""
    data = msgspec.to_builtins(value)
    assert isinstance(data, dict)
    return data
