"""A node's service in memory: enough of a hive to answer every question of the admin endpoint."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from hivenode.admin.notices import Notices
from hivenode.errors import Conflict, InvalidInput, NotFound, Refused, Unavailable
from hivenode.spec.breakdown import Breakdown, Subtask
from hivenode.spec.capacity import HiveCapacity, NodeCapacity
from hivenode.spec.job import parse_job
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
from hivenode.spec.values import BlobRef, Candidate, Role, Share, Strategy
from tests.admin.members import MemoryMembers

NODES = {"ash": "a" * 32, "birch": "b" * 32, "cedar": "c" * 32}
BLOB = BlobRef(digest="0" * 64, size=123_456)

PLAN = Breakdown(
    strategy=Strategy.data_parallel,
    shares=tuple(
        Share(node=node, rank=rank, weight=1 / 3, step_seconds=0.01, memory_bytes=50_000_000)
        for rank, node in enumerate(NODES.values())
    ),
    predicted_seconds=12.5,
    reason="data_parallel on 3 nodes: 12 s predicted, 2.1 times as quick as single_node",
    explored=False,
    state=(0, 0, 1, 0),
    candidates=(
        Candidate(Strategy.single_node, True, "one node, ash", 1, 26.0, 0.0, 2, -3.2),
        Candidate(Strategy.data_parallel, True, "three nodes", 3, 12.5, 0.1, 4, -2.5),
        Candidate(Strategy.federated, False, "no data is private"),
    ),
    coordination="3 nodes take turns",
    subtasks=tuple(
        Subtask(
            node=node,
            rank=rank,
            data_range=(480 * rank, 480 * rank + 480),
            batch=21,
            layer_range=None,
            stage=None,
            line=None,
            input_shape=(1, 8, 8),
            output_shape=(10,),
            memory_bytes=50_000_000,
            step_seconds=0.01,
            receives_from=(),
            sends_to=(),
        )
        for rank, node in enumerate(NODES.values())
    ),
)


def summary(job: str = "j-abcdefghjk", **changes: Any) -> JobSummary:
    base = JobSummary(
        job=job,
        name="digits",
        state="running",
        strategy="data_parallel",
        attempt=1,
        step=10,
        steps=100,
        epoch=1,
        epochs=4,
        loss=0.5,
        accuracy=0.9,
        samples_per_second=1234.5,
        submitted_by="ash",
        submitted_at=1_700_000_000.0,
        ended_at=None,
        model="",
        error="",
        fix="",
        reason="as planned",
    )
    return msgspec.structs.replace(base, **changes)


@dataclasses.dataclass
class MemoryNode:
    """`NodeService` of a node named ash in a hive of three. Tests change its fields and look at what was asked."""

    home: str = "/nowhere"
    coordinator: str = NODES["birch"]
    healthy: bool = True
    health: tuple[str, ...] = ()
    job_list: dict[str, JobSummary] = dataclasses.field(default_factory=dict)
    model_list: tuple[ModelSummary, ...] = ()
    member_states: dict[str, str] = dataclasses.field(default_factory=lambda: dict.fromkeys(NODES, "alive"))
    asked: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    log_lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Of any job, beside two that are always there."""
    fails: Exception | None = None
    """Raised by whatever is asked next."""

    def __post_init__(self) -> None:
        self.bus = Notices(lambda: 1_700_000_000.0)
        self.stopping = asyncio.Event()
        self._members = MemoryMembers()

    @property
    def members(self) -> MemoryMembers:
        return self._members

    def _ask(self, *what: Any) -> None:
        self.asked.append(what)
        if self.fails is not None:
            raise self.fails

    def status(self) -> Status:
        self._ask("status")
        return Status(
            node=NODES["ash"],
            name="ash",
            hive="h" * 32,
            version="0.1.0",
            roles=("admin", "coordinator", "submitter", "worker"),
            addresses=("127.0.0.1:7420",),
            admin_url="http://127.0.0.1:7421",
            home=self.home,
            uptime_seconds=61.0,
            epoch="7.bbbbbb",
            coordinator=self.coordinator,
            members=tuple(
                MemberStatus(
                    node=node,
                    name=name,
                    state=self.member_states[name],
                    roles=("coordinator", "worker"),
                    addresses=("127.0.0.1:7420",),
                    version="0.1.0",
                    linked=True,
                    latency_ms=None if name == "ash" else 0.4,
                    self=name == "ash",
                    coordinator=node == self.coordinator,
                    bandwidth=None if name == "ash" else 87.5e6,
                )
                for name, node in NODES.items()
            ),
            facts=FactsStatus(seals=3, events=1200, journal_bytes=2_000_000),
            jobs_running=sum(1 for job in self.job_list.values() if job.ended_at is None),
            health=self.health,
            healthy=self.healthy,
        )

    def jobs(self) -> tuple[JobSummary, ...]:
        self._ask("jobs")
        return tuple(self.job_list.values())

    def job(self, ref: str) -> JobDetail:
        self._ask("job", ref)
        return self.detail(self._find(ref))

    def _find(self, ref: str) -> JobSummary:
        for job in self.job_list.values():
            if ref in (job.job, job.name):
                return job
        raise NotFound(f"There is no job {ref}.", fix="`hivenode jobs` lists the jobs of this hive.")

    @staticmethod
    def detail(job: JobSummary) -> JobDetail:
        return JobDetail(
            summary=job,
            spec={"name": job.name},
            plan=PLAN if job.strategy else None,
            attempts=(
                AttemptStatus(1, "7.bbbbbb", "first plan", "data_parallel", tuple(NODES), tuple(NODES), "", 0, ()),
            ),
            workers=tuple(
                WorkerStatus(node, name, "running", job.step, 0.5, 0.9, 411.5, 0.2) for name, node in NODES.items()
            ),
            checkpoint_step=5,
            checkpoint_holders=("ash", "birch"),
        )

    async def submit(self, data: dict[str, Any]) -> JobDetail:
        self._ask("submit", data)
        spec = parse_job(data)
        job = summary(name=spec.name, state="queued", strategy="", attempt=0, step=0, steps=0, reason="waiting")
        self.job_list[job.job] = job
        return msgspec.structs.replace(self.detail(job), workers=(), attempts=())

    async def cancel(self, ref: str, reason: str) -> JobDetail:
        self._ask("cancel", ref, reason)
        job = self._find(ref)
        if job.ended_at is not None:
            raise Conflict(f"Job {job.job} is already {job.state}.", fix="Nothing to do.")
        self.change(job.job, state="cancelled", ended_at=1_700_000_100.0, error=reason)
        return self.detail(self.job_list[job.job])

    async def plan(self, data: dict[str, Any]) -> Breakdown:
        self._ask("plan", data)
        parse_job(data)
        return PLAN

    async def capacity(self) -> HiveCapacity:
        return HiveCapacity(
            tuple(
                NodeCapacity(node, name, 6e10, 1e11, (number + 1) << 30, 400 << 20, 2, 12.5e6, self=name == "ash")
                for number, (name, node) in enumerate(NODES.items())
            ),
            missing=("dogwood",),
        )

    async def logs(self, ref: str) -> JobLogs:
        self._ask("logs", ref)
        job = self._find(ref)
        line = {"time": 1_700_000_000.5, "level": "info", "node": "birch", "job": job.job, "event": "started", "pid": 7}
        evil = {**line, "time": 1_700_000_001.0, "event": "evil \x1b[2J"}
        return JobLogs(lines=(line, evil, *self.log_lines), missing=("cedar",))

    def models(self) -> tuple[ModelSummary, ...]:
        self._ask("models")
        return self.model_list

    async def predict(
        self, model: str, inputs: list[list[float]], texts: list[str], continue_tokens: int
    ) -> Prediction:
        self._ask("predict", model, inputs)
        if model.partition(":")[0] != "digits":
            raise NotFound(f"There is no model {model}.", fix="`hivenode models` lists them.")
        row = tuple(0.91 if label == 3 else 0.01 for label in range(10))
        return Prediction("digits:1", tuple("0123456789"), (row,) * len(inputs), "ash", 0.01)

    async def invite(self, roles: tuple[Role, ...], uses: int, expires_seconds: float) -> InviteIssued:
        self._ask("invite", roles, uses, expires_seconds)
        return InviteIssued("hive1-TOKEN", tuple(role.value for role in roles), uses, 1_700_003_600.0)

    async def join(self, token: str) -> JoinResult:
        self._ask("join", token)
        if token == "bad":
            raise InvalidInput("That is not an invite.", fix="Copy the whole token.")
        if token == "gone":
            raise Unavailable("Nobody of that hive answers.", fix="Start a member.")
        return JoinResult("h" * 32, ("worker",), 3)

    async def pair_with(self, code: str, address: str) -> JoinResult:
        self._ask("pair_with", code, address)
        if code == "wrong":
            raise Refused("The code is wrong, and void now: there is one guess.", fix="Take a new code.")
        return JoinResult("h" * 32, ("worker",), 3)

    def notices(self, after: str = "") -> AsyncIterator[Notice]:
        return self.bus.subscribe(after)

    async def request_stop(self) -> None:
        self._ask("stop")
        self.stopping.set()

    # --- what tests make happen -------------------------------------------------------------------------------

    def change(self, job: str, **changes: Any) -> None:
        """Change a job and tell about it."""
        self.job_list[job] = msgspec.structs.replace(self.job_list[job], **changes)
        self.bus.tell("job", msgspec.to_builtins(self.job_list[job]))

    def progress(self, job: str, name: str, step: int, *, members: int = 3, state: str = "running") -> None:
        self.bus.tell(
            "progress",
            {
                "job": job, "attempt": 1, "node": NODES[name], "name": name, "step": step, "steps": 100, "epoch": 1,
                "epochs": 4, "loss": 0.4, "accuracy": 0.93, "samples_per_second": 400.0, "members": members,
                "state": state,
            },
        )  # fmt: skip

    def lose(self, name: str) -> None:
        was, self.member_states[name] = self.member_states[name], "dead"
        self.bus.tell("member", {"node": NODES[name], "name": name, "state": "dead", "was": was})
