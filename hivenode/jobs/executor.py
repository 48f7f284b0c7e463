"""The executor: carries out this node's share of attempts, by orders of coordinators whose epoch it has not outlived.

One attempt of a job at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
from pydantic import ValidationError

from hivenode import __version__
from hivenode.errors import HiveError, Refused, Unavailable
from hivenode.jobs.fence import Fence
from hivenode.jobs.host import OUT_OF_MEMORY
from hivenode.jobs.launching import Launcher
from hivenode.jobs.ledger import Ledger
from hivenode.jobs.naming import Names
from hivenode.jobs.reports import Reports
from hivenode.jobs.results import Append, Results
from hivenode.jobs.work import Work, Workspace
from hivenode.logs import get_logger
from hivenode.net.local import (
    Cancel,
    CheckpointFailed,
    CheckpointWritten,
    DebtsWritten,
    Failed,
    Finished,
    FromWorker,
    Log,
    Need,
    Peer,
    PeerJoining,
    PeerLost,
    PeersReady,
    Ready,
    ViewChanged,
    WorkerProgress,
)
from hivenode.net.messages import Adopt, Assign, Endpoint, Standing, Start, Stop, Welcome
from hivenode.spec.events import MembersChanged
from hivenode.spec.job import JobSpec
from hivenode.tasks import TaskGroup

OUTRUN_SECONDS = 10.0
CANCEL_SECONDS = 2.0
"""How long a cancelled worker has to write a last checkpoint."""
KILLED_FACTOR = 1.25
"""What a worker is taken to need, over what was planned, that the kernel has killed for want of memory."""

log = get_logger("jobs")


class Executor:
    """Runs workers for attempts.

    Args:
        name: a node's name for people.
        gone: whether a node is known to be dead or to have left.
        refuse: why this node takes no work now, or "".
    """

    def __init__(
        self,
        *,
        me: str,
        node_name: str,
        name: Callable[[str], str],
        fence: Fence,
        launcher: Launcher,
        workspace: Workspace,
        results: Results,
        reports: Reports,
        ledger: Ledger,
        append: Append,
        gone: Callable[[str], bool],
        refuse: Callable[[], str],
        tasks: TaskGroup,
    ) -> None:
        self._me = me
        self._node_name = node_name
        self._name = name
        self._fence = fence
        self._launcher = launcher
        self._workspace = workspace
        self._results = results
        self._reports = reports
        self._ledger = ledger
        self._append = append
        self._gone = gone
        self._refuse = refuse
        self._tasks = tasks
        self._work: dict[str, Work] = {}

    @property
    def running(self) -> int:
        """Assignments being worked on."""
        return sum(1 for work in self._work.values() if work.state in ("preparing", "prepared", "running"))

    # --- orders ------------------------------------------------------------------------------------------------

    async def assign(self, order: Assign) -> Standing:
        """Prepare a worker: fetch what it needs, start it, and answer when it listens for its peers."""
        await self._fence.obey(order.epoch)
        if reason := self._refuse():
            raise Unavailable(
                f"Node {self._node_name} takes no work: {reason}.", fix="`hivenode status` there says more."
            )
        rank = next((share.rank for share in order.plan.shares if share.node == self._me), None)
        if rank is None:
            raise Refused(f"Node {self._node_name} has no share in that plan.", fix="Plan the job again.")
        name = (order.attempt, order.planned or order.epoch)
        held = self._work.get(order.job)
        if held is not None and held.name == name and not (order.joining and held.state in ("failed", "finished")):
            return held.standing()
        if held is not None:
            self._end(held, "replaced by a later worker")
        try:
            spec = JobSpec.model_validate_json(order.spec)
        except ValidationError:
            raise Refused(
                f"Node {self._node_name} does not understand the job's declaration.",
                fix=f"Update hivenode there; it runs {__version__}.",
            ) from None
        work = Work(order.job, name, order.epoch, spec, order.plan, rank)
        work.members = tuple(share.node for share in order.plan.shares)
        self._work[order.job] = work
        self._reports.note(work, "info", "preparing", rank=rank, resume_step=order.resume_step)
        try:
            await self._launcher.launch(
                work,
                order,
                heard=lambda message: self._heard(work, message),
                exited=lambda how: self._exited(work, how),
            )
        except HiveError as error:
            self._fail(work, Failed(code=error.code, message=error.sentence, fix=error.fix, retry=True))
        except Exception as error:
            log.exception("a worker could not be prepared", job=work.job)
            self._fail(work, _defect(error))
        return work.standing()

    async def start(self, order: Start) -> Standing:
        """Let a prepared worker begin with the others."""
        await self._fence.obey(order.epoch)
        work = self._work.get(order.job)
        if work is None or work.name != (order.attempt, order.planned):
            return Standing(job=order.job, attempt=order.attempt, state="none")
        if work.state == "prepared" and work.handle is not None:
            peers = [endpoint for endpoint in order.endpoints if endpoint.node != self._me]
            ready = PeersReady(peers=tuple(_peer(endpoint) for endpoint in peers), joining=order.joining)
            work.members = tuple(e.node for e in sorted(order.endpoints, key=lambda e: e.rank))
            work.state = "running"
            work.handle.send(ready)
            self._reports.note(work, "info", "training", members=len(order.endpoints))
            for endpoint in peers:
                if self._gone(endpoint.node):
                    work.handle.send(PeerLost(node=endpoint.node))
        return work.standing()

    async def welcome(self, order: Welcome) -> Standing:
        """Tell a running worker of one that wants to join."""
        await self._fence.obey(order.epoch)
        work = self._work.get(order.job)
        if work is None or work.name != (order.attempt, order.planned):
            return Standing(job=order.job, attempt=order.attempt, state="none")
        if work.state == "running" and work.handle is not None and order.endpoint.node != self._me:
            work.handle.send(PeerJoining(_peer(order.endpoint)))
        return work.standing()

    async def adopt(self, order: Adopt) -> Standing:
        """Serve a new coordinator from now on, and say how the attempt stands."""
        await self._fence.obey(order.epoch)
        work = self._work.get(order.job)
        if work is None or work.name != (order.attempt, order.planned):
            return Standing(job=order.job, attempt=order.attempt, state="none")
        if order.epoch > work.epoch:
            work.epoch = order.epoch
            self._reports.note(work, "info", "adopted by a new coordinator")
        return work.standing()

    async def stop(self, order: Stop) -> Standing:
        """Kill this job's worker."""
        await self._fence.obey(order.epoch)
        work = self._work.get(order.job)
        if work is None:
            return Standing(job=order.job, attempt=0, state="none")
        self._end(work, order.reason)
        return work.standing()

    # --- what workers say ---------------------------------------------------------------------------------------

    def _heard(self, work: Work, message: FromWorker) -> None:
        match message:
            case Ready():
                if not work.ready.done():
                    work.ready.set_result(message)
            case WorkerProgress():
                work.step, work.steps, work.members = message.step, message.steps, message.members
                self._reports.progress(work, message)
            case ViewChanged():
                work.members, work.step = message.members, message.step
                names = self._names(work, *message.lost)
                if message.lost:
                    event = f"going on without lost workers: {names.listed(message.lost)}"
                    self._reports.note(work, "warning", event, step=message.step, left=len(message.members))
                if message.joined:
                    event = f"going on with new workers: {names.listed(message.joined)}"
                    self._reports.note(work, "info", event, step=message.step, workers=len(message.members))
                if message.members[0] == self._me:
                    changed = MembersChanged(
                        work.job, work.name[0], work.name[1], message.step, message.members, message.lost
                    )
                    self._tasks.spawn(self._append(changed), "job: members changed")
            case CheckpointWritten():
                work.keeping += 1
                self._tasks.spawn(self._keep(work, message), "job: checkpoint")
            case DebtsWritten():
                if Path(message.path).parent == Path(work.directory):
                    self._workspace.keep(work.job, message.path)
            case CheckpointFailed():
                self._reports.trouble(work, message.step, message.reason, "Free space on the disk that holds its home.")
            case Need():
                self._tasks.spawn(self._launcher.bring(work, message), "job: data")
            case Finished():
                work.finished, work.step = message, message.step
                self._tasks.spawn(self._conclude(work, message), "job: conclude")
            case Failed():
                said = self._names(work).within(message.message)
                self._fail(work, msgspec.structs.replace(message, message=said[:2000]))
            case Log():
                self._reports.write(work, message.level, self._names(work).within(message.event), dict(message.fields))
            case _:
                log.warning("a training worker said something it should not", job=work.job, said=type(message).__name__)

    def _names(self, work: Work, *others: str) -> Names:
        return Names({*(share.node for share in work.plan.shares), *work.members, *others}, self._name)

    async def _keep(self, work: Work, written: CheckpointWritten) -> None:
        try:
            await self._results.checkpoint(work.job, work.name, written.step, Path(written.path), work.members)
        except HiveError as error:
            self._reports.trouble(work, written.step, error.sentence, error.fix)
        else:
            work.trouble = ""
        finally:
            work.keeping -= 1
            if work.left:
                self._drop_directory(work)

    def _exited(self, work: Work, how: str) -> None:
        work.handle = None
        work.over.notify()
        self._reports.note(work, "info", "worker exited", how=how)
        if work.finished is None and work.state != "failed":
            failure = Failed(
                code="unavailable",
                message=f"The worker on {self._node_name} ended: {how}.",
                fix="Its log says more: `hivenode logs` of the job.",
                retry=True,
            )
            if how.startswith(OUT_OF_MEMORY):
                share = next(share for share in work.plan.shares if share.node == self._me)
                failure = msgspec.structs.replace(
                    failure,
                    code="exhausted",
                    message=f"The worker on {self._node_name} was {how}; {share.memory_bytes >> 20} MiB were planned.",
                    fix="Free memory there, or lower worker.memory_bytes to what it can have.",
                    needed_bytes=int(KILLED_FACTOR * share.memory_bytes),
                )
            self._fail(work, failure)
        if work.finished is None:
            self._drop_directory(work)

    async def _conclude(self, work: Work, finished: Finished) -> None:
        try:
            await self._results.model(work.job, work.name, work.epoch, work.spec, work.plan, finished, work.members)
        except HiveError as error:
            self._fail(work, Failed(code=error.code, message=error.sentence, fix=error.fix, retry=True))
            return
        except Exception as error:
            log.exception("a model could not be kept", job=work.job)
            self._fail(work, _defect(error))
            return
        finally:
            self._drop_directory(work)
        if work.state != "failed":
            work.state = "finished"
            self._workspace.forget(work.job)
            self._reports.ended(work)

    def _fail(self, work: Work, failure: Failed, *, ending: bool = False) -> None:
        if work.state in ("failed", "finished"):
            return
        work.failure, work.state = failure, "failed"
        self._reports.note(work, "error", failure.message, fix=failure.fix, retry=failure.retry)
        if not work.ready.done():
            work.ready.set_exception(Unavailable(failure.message, fix=failure.fix))
            work.ready.exception()  # whoever prepares may have gone already
        if work.handle is not None and not ending:
            work.handle.kill()
        self._reports.ended(work)

    def _end(self, work: Work, reason: str) -> None:
        """Stop without a result, by order."""
        if work.state in ("failed", "finished"):
            return
        if work.handle is not None:
            work.handle.send(Cancel(reason=reason))  # it writes a last checkpoint and ends by itself
            asyncio.get_running_loop().call_later(CANCEL_SECONDS, work.handle.kill)
        stopped = Failed(code="refused", message=f"Stopped: {reason}.", fix="Nothing to do.", retry=True)
        self._fail(work, stopped, ending=True)

    # --- what happens around it ---------------------------------------------------------------------------------

    def node_gone(self, node: str) -> None:
        """The failure detector has given a node up: tell the workers that wait for it."""
        for work in self._work.values():
            if node in work.members and work.handle is not None and work.state in ("prepared", "running"):
                work.handle.send(PeerLost(node=node))

    def expelled(self) -> None:
        """This node was revoked: it works for nobody any more."""
        for work in list(self._work.values()):
            self._end(work, "this node was revoked")

    def ledger_changed(self) -> None:
        """End work whose job has ended, or whose attempt has been overtaken by a higher epoch's."""
        for work in list(self._work.values()):
            job = self._ledger.jobs.get(work.job)
            if job is None:
                continue
            current = job.current
            if job.finished_by == work.name:
                if not work.outrun and work.finished is None:
                    work.outrun = True
                    self._tasks.spawn(self._outrun(work), "job: outrun")
            elif not job.open and work.finished is None:
                self._end(work, f"the job is {job.ending}")
            elif (
                current is not None
                and current.name != work.name
                and current.rank > (work.epoch, work.name[1], work.name[0])
                and work.finished is None
            ):
                self._end(work, f"attempt {current.number} of epoch {current.planned} stands")
            if not job.open and work.state in ("failed", "finished") and work.handle is None:
                del self._work[work.job]

    async def _outrun(self, work: Work) -> None:
        """Another member has registered the model already. Our worker makes the same file in a moment; if it does
        not, we take a copy."""
        await work.over.wait(OUTRUN_SECONDS)
        if work.finished is None:
            self._end(work, "the job is finished")
            await self._results.own_copy(work.job)

    def _drop_directory(self, work: Work) -> None:
        """As soon as nothing in it is being copied."""
        work.left = True
        if work.directory and not work.keeping:
            self._workspace.remove(work.directory)
            work.directory = ""


def _defect(error: Exception) -> Failed:
    return Failed(code="error", message=f"Internal error: {error!r}."[:2000], fix="See the daemon's log.", retry=True)


def _peer(endpoint: Endpoint) -> Peer:
    host, _, port = endpoint.address.rpartition(":")
    if not (host and port.isdecimal() and len(port) <= 5):
        raise Refused(f"{endpoint.address[:64]!r} is no address of a worker.", fix="Look at who ordered it.")
    return Peer(endpoint.node, endpoint.rank, host.strip("[]"), int(port), endpoint.certificate, endpoint.group_port)
