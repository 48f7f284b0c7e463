"""The coordinator: turns open jobs into attempts, and sees each attempt through.

Runs on the elected member only, one task per open job, all of them ended the moment the lead is lost. Every order and
every event it writes carries the epoch; executors refuse lower ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from hivenode.errors import HiveError, InvalidInput, NotFound
from hivenode.jobs import shortages
from hivenode.jobs.growing import Growing
from hivenode.jobs.ledger import Attempt, AttemptName, Checkpoint, Job, Ledger
from hivenode.jobs.live import Live
from hivenode.jobs.proposals import Proposer
from hivenode.jobs.results import Append
from hivenode.jobs.waits import Waits
from hivenode.logs import get_logger
from hivenode.net.messages import (
    Adopt,
    Assign,
    Endpoint,
    Have,
    Having,
    Request,
    Response,
    Standing,
    Start,
    Stop,
    Waiting,
)
from hivenode.spec.events import AttemptAdopted, AttemptEnded, JobGivenUp, JobPlanned
from hivenode.spec.job import JobSpec
from hivenode.spec.values import Engine, Epoch, Plan
from hivenode.tasks import Signal, TaskGroup
from hivenode.validation import explain

ASSIGN_SECONDS = 90.0
ORDER_SECONDS = 5.0
POLL_SECONDS = 5.0
REGROUP_SECONDS = 5.0
"""How long a new coordinator waits for the nodes of a running attempt to be heard, and a job for its nodes to come
back before it goes on with fewer."""

CHECKED_BYTES_PER_SECOND = 100e6
"""At which a node at least looks whether what it holds is whole."""
ABSENT_SECONDS = 30.0
"""How long a job waits for an absent node that holds its only checkpoint."""

REPEAT_SECONDS = 5.0
"""After which it is said again why a job waits, for those who have come meanwhile."""

log = get_logger("coordinator")
T = TypeVar("T")


class Coordinator:
    """Sees all open jobs through while this node leads.

    Args:
        call: asks a node (this one included) and awaits the answer (peer, request, timeout seconds).
        alive: ids of members not known to be gone, this node included.
        name: a node's name for people.
        outbid: told of an epoch above ours that has planned; the election is to go beyond it.
        max_attempts: attempts in a row without any progress before a job is given up.
        waits: why open jobs do not run.
        announce: tells a reason to all, this node included.
        changed: notified when the ledger, the membership or live progress changed.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        live: Live,
        waits: Waits,
        announce: Callable[[Waiting], None],
        proposer: Proposer,
        call: Callable[[str, Request, float], Awaitable[Response]],
        append: Append,
        alive: Callable[[], tuple[str, ...]],
        name: Callable[[str], str],
        outbid: Callable[[Epoch], None],
        max_attempts: int,
        changed: Signal,
        tasks: TaskGroup,
    ) -> None:
        self._ledger = ledger
        self._live = live
        self._waits = waits
        self._announce = announce
        self._proposer = proposer
        self._call = call
        self._append = append
        self._alive = alive
        self._name = name
        self._outbid = outbid
        self._max_attempts = max_attempts
        self._changed = changed
        self._tasks = tasks
        self._drivers: dict[str, asyncio.Task[None]] = {}
        self._main: asyncio.Task[None] | None = None
        self._planning = asyncio.Lock()
        self._first_tried: dict[str, float] = {}
        self._seen_through: dict[AttemptName, None] = {}
        self._growing = Growing(ledger, proposer, self._ask, append, lambda: asyncio.get_running_loop().time())
        self._epoch: Epoch | None = None
        self._announced: dict[str, tuple[str, float]] = {}
        """What was last told of each job that waits, and when."""

    @property
    def leads(self) -> bool:
        """Whether this node coordinates now."""
        return self._main is not None

    @property
    def executors(self) -> tuple[str, ...]:
        """Nodes of the attempts that are not over, sorted."""
        current = (job.current for job in self._ledger.jobs.values() if job.open)
        return tuple(sorted({node for attempt in current if attempt and not attempt.ended for node in attempt.nodes}))

    def lead(self, epoch: Epoch | None) -> None:
        """Begin to lead in an epoch, or stop leading (None)."""
        for task in [self._main, *self._drivers.values()]:
            if task is not None:
                task.cancel()
        self._main, self._drivers, self._seen_through = None, {}, {}
        self._first_tried.clear()
        self._growing.clear()
        self._announced.clear()
        self._epoch = epoch
        if epoch is not None:
            self._main = self._tasks.spawn(self._oversee(epoch), "coordinator")

    async def _oversee(self, epoch: Epoch) -> None:
        while True:
            for job in list(self._ledger.jobs.values()):
                driver = self._drivers.get(job.id)
                if job.open and (driver is None or driver.done()):
                    self._drivers[job.id] = self._tasks.spawn(self._drive(job.id, epoch), f"coordinator: {job.id}")
                elif not job.open and driver is not None and driver.done():
                    del self._drivers[job.id]
            await self._changed.wait()

    async def _drive(self, job_id: str, epoch: Epoch) -> None:
        while (job := self._ledger.jobs.get(job_id)) is not None and job.open:
            attempt = job.current
            try:
                if job.fence > epoch:
                    self._outbid(job.fence)  # nothing that we say of it would count
                    await asyncio.sleep(1.0)
                elif attempt is None or attempt.ended is not None:
                    await self._begin(job, epoch)
                elif attempt.name in self._seen_through:
                    await self._watch(job, attempt, epoch)
                else:
                    await self._take_over(job, attempt, epoch)
            except HiveError as error:
                self._wait_for(job, str(error))
                await asyncio.sleep(1.0)
            except Exception as error:
                log.exception("internal error in a job's driver", job=job_id)
                self._wait_for(job, f"internal error on the coordinator: {error!r}")
                await asyncio.sleep(10.0)
        self._goes_on(job_id)

    # --- a new attempt ------------------------------------------------------------------------------------------

    async def _begin(self, job: Job, epoch: Epoch) -> None:
        if job.tries >= self._max_attempts:
            last = max((a for a in job.attempts.values() if a.ended), key=lambda a: (a.planned, a.number))
            assert last.ended is not None
            await self._give_up(job, epoch, f"Given up after {job.tries} attempts; the last: {last.ended.error}",
                                last.ended.fix or "See `hivenode logs` of the job.")  # fmt: skip
            return
        try:
            spec = JobSpec.model_validate_json(job.spec)
        except ValidationError as error:
            await self._give_up(job, epoch, f"The coordinator does not understand the job: {explain(error, JobSpec)}",
                                "Update hivenode on all nodes that may coordinate.")  # fmt: skip
            return
        checkpoint, damage = await self._resumable(job)
        async with self._planning:  # each plan sees what the one before has taken
            started = await self._plan_and_start(job.id, spec, epoch, checkpoint, damage)
        if not started:
            await asyncio.sleep(min(2.0**job.tries * 0.5, 15.0))

    async def _plan_and_start(
        self, job_id: str, spec: JobSpec, epoch: Epoch, checkpoint: Checkpoint | None, damage: str
    ) -> bool:
        if not self._open(job_id):
            return True
        job = self._ledger.jobs[job_id]
        plan = await self._plan(job, spec, epoch)
        if plan is None or not self._open(job_id):
            return False
        job = self._ledger.jobs[job_id]
        previous = job.current
        cause = previous.ended.error if previous and previous.ended else "first plan"
        planned = JobPlanned(
            job=job.id,
            attempt=job.next_number,
            epoch=epoch,
            plan=plan,
            cause=f"{cause.rstrip('.')}; {damage}"[:1900] if damage else cause,
            resume=checkpoint.blob if checkpoint else None,
            resume_step=checkpoint.step if checkpoint else 0,
        )
        await self._append(planned)
        self._goes_on(job.id)
        name = (planned.attempt, epoch)
        log.info("planned", job=job.id, attempt=planned.attempt, epoch=str(epoch), strategy=plan.strategy.value,
                 engine=plan.engine.value, nodes=len(plan.shares), resume_step=planned.resume_step,
                 reason=plan.reason)  # fmt: skip
        order = Assign(
            job=job.id,
            attempt=planned.attempt,
            epoch=epoch,
            spec=job.spec,
            plan=plan,
            resume=planned.resume,
            resume_step=planned.resume_step,
            resume_holders=checkpoint.holders if checkpoint else (),
        )
        nodes = [share.node for share in plan.shares]
        standings = await self._ask_all(nodes, order, ASSIGN_SECONDS)
        prepared = {
            n: s for n, s in standings.items() if isinstance(s, Standing) and s.state == "prepared" and s.endpoint
        }
        needed = len(nodes) if planned.attempt == 1 or plan.staged else 1
        if len(prepared) < min(needed, len(nodes)) or not self._open(job.id):
            await self._abandon(job, name, epoch, standings)
            return False
        endpoints = tuple(s.endpoint for s in prepared.values() if s.endpoint is not None)
        await self._start(job, name, epoch, endpoints)
        return True

    async def _resumable(self, job: Job) -> tuple[Checkpoint | None, str]:
        """The furthest checkpoint that somebody really has, whole, and a clause on those that are damaged or gone.
        While none is at hand but a node that should have one is away, waits for it a while: going on from there is
        worth more than starting at once."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + ABSENT_SECONDS
        damaged: dict[str, None] = {}
        while job.checkpoints:
            best = sorted(job.checkpoints.values(), key=lambda c: (c.step, c.blob.digest), reverse=True)[:16]
            alive = self._alive()
            for checkpoint in best:
                digest = checkpoint.blob.digest
                seconds = ORDER_SECONDS + checkpoint.blob.size / CHECKED_BYTES_PER_SECOND
                answers = await self._ask_all(alive, Have(digests=(digest,)), seconds)
                heard = {node: answer for node, answer in answers.items() if isinstance(answer, Having)}
                for node, answer in heard.items():
                    if digest in answer.damaged or (node in checkpoint.holders and digest not in answer.digests):
                        what = "damaged" if digest in answer.damaged else "gone"
                        log.warning(f"a checkpoint is {what}", job=job.id, step=checkpoint.step, node=self._name(node))
                        damaged[f"the checkpoint of step {checkpoint.step} on {self._name(node)} is {what}"] = None
                having = tuple(node for node, answer in heard.items() if digest in answer.digests)
                if having:
                    return replace(checkpoint, holders=having), ", ".join(damaged)
            absent = sorted({node for c in best for node in c.holders if node not in alive})
            if not absent or loop.time() >= patience:
                log.warning("no checkpoint is left anywhere, starting from the beginning", job=job.id)
                break
            self._wait_for(job, f"waiting for {', '.join(map(self._name, absent))}, who should have its checkpoint")
            await self._changed.wait(1.0)
        return None, ", ".join(damaged)

    async def _plan(self, job: Job, spec: JobSpec, epoch: Epoch) -> Plan | None:
        """None when it cannot be planned now (the reason is told) or never (it is given up)."""
        now = asyncio.get_running_loop().time()
        waited = now - self._first_tried.setdefault(job.id, now)
        if job.attempts and waited >= REGROUP_SECONDS:
            # It has run before: going on with fewer nodes beats waiting for the number once wished for.
            spec = spec.model_copy(update={"placement": spec.placement.model_copy(update={"min_nodes": 1})})
        if job.attempts and spec.training.engine == Engine.torch:
            # So does going on by the exchange, where those that are left trust no network.
            spec = spec.model_copy(update={"training": spec.training.model_copy(update={"engine": "auto"})})
        try:
            factor = shortages.memory_factor(job)
            plan = await self._proposer.propose(spec, salt=f"{job.id}/{job.next_number}", memory_factor=factor)
        except (InvalidInput, NotFound) as error:
            await self._give_up(job, epoch, error.sentence, error.fix)
            return None
        except HiveError as error:
            if (shortage := shortages.told(job, self._name)) and waited >= REGROUP_SECONDS:
                # Its needs are known from having been tried: there is nothing to wait for.
                await self._give_up(job, epoch, f"{shortage} {error.sentence}", error.fix)
                return None
            self._wait_for(job, str(error))
            return None
        self._first_tried.pop(job.id, None)
        return plan

    async def _start(self, job: Job, name: AttemptName, epoch: Epoch, endpoints: tuple[Endpoint, ...]) -> None:
        order = Start(job=job.id, attempt=name[0], planned=name[1], epoch=epoch, endpoints=endpoints)
        await self._ask_all([endpoint.node for endpoint in endpoints], order, ORDER_SECONDS)
        self._seen_through[name] = None

    async def _abandon(
        self, job: Job, name: AttemptName, epoch: Epoch, standings: dict[str, Response | HiveError]
    ) -> None:
        troubles = [text for node, answer in sorted(standings.items()) if (text := _trouble(answer))]
        fatal = next(
            (a for a in standings.values() if isinstance(a, Standing) and a.state == "failed" and not a.retry), None
        )
        await self._ask_all(
            list(standings), Stop(job=job.id, epoch=epoch, reason="the attempt is planned again"), ORDER_SECONDS
        )
        await self._append(
            AttemptEnded(
                job=job.id,
                attempt=name[0],
                planned=name[1],
                epoch=epoch,
                outcome="failed" if fatal else "lost",
                step=0,
                seconds=0.0,
                metrics={},
                error=fatal.detail if fatal else "; ".join(troubles)[:1900] or "no worker was ready",
                fix=fatal.fix if fatal else "See `hivenode logs` of the job.",
                shortages=shortages.seen(standings),
            )
        )

    # --- a running attempt --------------------------------------------------------------------------------------

    async def _watch(self, job: Job, attempt: Attempt, epoch: Epoch) -> None:
        """Until the attempt or the job has ended, or every worker of it is gone."""
        loop = asyncio.get_running_loop()
        polled = loop.time()
        self._growing.begun(attempt, self._alive())
        lacking: dict[str, str] = {}
        failures: dict[str, Standing] = {}
        while job.open and attempt.ended is None and self._ledger.jobs.get(job.id) is job:
            alive = self._alive()
            nodes = list(attempt.nodes)
            states = {node: self._live.state(job.id, attempt.number, node) for node in nodes}
            suspicious = any(state == "failed" for state in states.values()) or not any(n in alive for n in nodes)
            if suspicious or loop.time() - polled >= POLL_SECONDS:
                polled = loop.time()
                order = Adopt(job=job.id, attempt=attempt.number, planned=attempt.planned, epoch=epoch)
                answers = await self._ask_all([node for node in nodes if node in alive], order, ORDER_SECONDS)
                lacking = {node: "its node is gone" for node in nodes if node not in alive}
                failures = {}
                for node, answer in answers.items():
                    if isinstance(answer, Standing) and answer.state == "failed":
                        failures[node] = answer
                    elif isinstance(answer, Standing) and answer.state == "none":
                        lacking[node] = "its daemon was started anew"
                    elif isinstance(answer, Standing) and answer.state in ("preparing", "prepared"):
                        lacking[node] = "it was left out at the start"
                        await self._ask(node, Stop(job=job.id, epoch=epoch, reason=lacking[node]), ORDER_SECONDS)
                if len(lacking) + len(failures) == len(nodes) and job.open and attempt.ended is None:
                    await self._lost(job, attempt, epoch, lacking, failures)
                    return
                standings = {node: answer for node, answer in answers.items() if isinstance(answer, Standing)}
                await self._growing.grow(job, attempt, epoch, self._alive(), standings)
            await self._changed.wait(POLL_SECONDS)

    async def _lost(
        self, job: Job, attempt: Attempt, epoch: Epoch, lacking: dict[str, str], failures: dict[str, Standing]
    ) -> None:
        fatal = next((f for f in failures.values() if not f.retry), None)
        told = [f"{self._name(node)}: {why}" for node, why in lacking.items()]
        told += [f"{self._name(node)}: {failure.detail}" for node, failure in failures.items()]
        await self._append(
            AttemptEnded(
                job=job.id,
                attempt=attempt.number,
                planned=attempt.planned,
                epoch=epoch,
                outcome="failed" if fatal else "lost",
                step=max((f.step for f in failures.values()), default=0),
                seconds=0.0,
                metrics={},
                error=fatal.detail if fatal else "; ".join(told)[:1900],
                fix=fatal.fix if fatal else "It is planned again from its last checkpoint.",
                shortages=shortages.seen(failures),
            )
        )

    async def _take_over(self, job: Job, attempt: Attempt, epoch: Epoch) -> None:
        """Adopt an attempt that an earlier coordinator planned, or find that nothing of it is left."""
        nodes = [share.node for share in attempt.plan.shares]
        order = Adopt(job=job.id, attempt=attempt.number, planned=attempt.planned, epoch=epoch)
        deadline = asyncio.get_running_loop().time() + REGROUP_SECONDS
        self._wait_for(job, "the new coordinator asks the nodes how the attempt stands")
        while True:
            alive = self._alive()
            answers = await self._ask_all([node for node in nodes if node in alive], order, ORDER_SECONDS)
            standings = {node: a for node, a in answers.items() if isinstance(a, Standing)}
            going = tuple(node for node, s in standings.items() if s.state in ("running", "finished"))
            if going:
                await self._append(AttemptAdopted(job.id, attempt.number, attempt.planned, epoch, going))
                log.info("adopted", job=job.id, attempt=attempt.number, epoch=str(epoch), members=len(going))
                self._seen_through[attempt.name] = None
                self._goes_on(job.id)
                return
            remaining = deadline - asyncio.get_running_loop().time()
            if len(standings) == len(nodes) or remaining <= 0:
                break
            await self._changed.wait(min(remaining, 1.0))
            if self._ledger.jobs.get(job.id) is not job or not job.open or attempt.ended is not None:
                return  # look again with fresh eyes
        lacking = dict.fromkeys(nodes, "nothing of the attempt is left there")
        failures = {node: s for node, s in standings.items() if s.state == "failed"}
        await self._ask_all(list(standings), Stop(job=job.id, epoch=epoch, reason="planned again"), ORDER_SECONDS)
        for node in failures:
            lacking.pop(node)
        await self._lost(job, attempt, epoch, lacking, failures)

    # --- small things -------------------------------------------------------------------------------------------

    def _open(self, job_id: str) -> bool:
        job = self._ledger.jobs.get(job_id)
        return job is not None and job.open

    async def _give_up(self, job: Job, epoch: Epoch, error: str, fix: str) -> None:
        await self._append(JobGivenUp(job=job.id, epoch=epoch, error=error[:1900], fix=fix[:1900]))

    def _wait_for(self, job: Job, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        said, at = self._announced.get(job.id, ("", now))
        if said != reason:
            log.info("waiting", job=job.id, reason=reason)
        elif now - at < REPEAT_SECONDS:
            return
        if self._epoch is not None:
            self._announced[job.id] = reason, now
            self._announce(Waiting(job=job.id, epoch=self._epoch, reason=reason[:1900]))

    def _goes_on(self, job_id: str) -> None:
        self._announced.pop(job_id, None)
        self._waits.forget(job_id)

    async def _ask_all(self, nodes: Sequence[str], order: Request, seconds: float) -> dict[str, Response | HiveError]:
        """Ask nodes at the same time; an error is an answer too."""
        answers = await gather(*(self._ask(node, order, seconds) for node in nodes))
        return dict(zip(nodes, answers, strict=True))

    async def _ask(self, node: str, order: Request, seconds: float) -> Response | HiveError:
        try:
            return await self._call(node, order, seconds)
        except HiveError as error:
            return error


async def gather(*work: Coroutine[Any, Any, T]) -> list[T]:
    """Run together; if one fails the rest are cancelled (asyncio.TaskGroup), results in order."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(item) for item in work]
    return [task.result() for task in tasks]


def _trouble(answer: Response | HiveError) -> str:
    if isinstance(answer, HiveError):
        return answer.sentence
    if isinstance(answer, Standing) and answer.state != "prepared":
        return answer.detail or f"worker {answer.state}"
    return ""
