"""Worker processes in virtual time, with the group's behaviour of the real ones and none of the arithmetic.

Workers of an attempt advance step by step while all of their view can reach each other. If some cannot any more, the
view splits: whoever is cut off goes on with those on its side; whoever stood still, or was given up by its own daemons'
failure detectors though it can be reached, is excluded and fails. The lowest rank of a view writes checkpoints.

A checkpoint holds the whole lineage of the training: for each step, which node computed which samples. So does the
record kept of every finish, and `Lineage.check` says whether every sample of every step was counted exactly once.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hivenode.data.sources import lookup
from hivenode.errors import NotFound, Unavailable
from hivenode.jobs.host import WorkerHandle, WorkerKind
from hivenode.net.local import (
    Begin,
    Cancel,
    CheckpointWritten,
    Failed,
    Finished,
    FromWorker,
    PeerJoining,
    PeerLost,
    PeersReady,
    Predict,
    Predicted,
    Ready,
    ToWorker,
    ViewChanged,
    WorkerLimits,
    WorkerProgress,
)
from hivenode.net.simulated import SimulatedNetwork
from hivenode.spec.job import JobSpec
from hivenode.spec.split import split
from hivenode.store.simulated import SimulatedDisk, open_file


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Samples [start, stop) of one step's batch, computed by one node."""

    step: int
    node: str
    start: int
    stop: int


class Lineage(msgspec.Struct, frozen=True, array_like=True):
    """How a model came to be: the parts of every step."""

    spec: bytes
    steps: tuple[tuple[Part, ...], ...] = ()

    def check(self) -> None:
        """Raises AssertionError unless all steps are there, each with all of its batch, once."""
        size = Size.of(self.spec)
        assert len(self.steps) == size.steps, f"{len(self.steps)} of {size.steps} steps"
        for number, parts in enumerate(self.steps):
            at = 0
            for part in sorted(parts, key=lambda part: (part.start, part.stop)):
                assert part.step == number, f"step {part.step} in the place of {number}"
                assert part.start == at, f"step {number}: samples {at}-{part.start} of {parts}"
                at = part.stop
            assert at == size.batch(number), f"step {number} computed {at} of {size.batch(number)} samples"


@dataclass(frozen=True)
class Size:
    """What there is to do for a job."""

    samples: int
    batch_size: int
    epochs: int
    steps: int
    checkpoint_every: int

    @classmethod
    def of(cls, encoded: bytes) -> Size:
        spec = JobSpec.model_validate_json(encoded)
        every = lookup(spec.data).info.samples
        held_out = min(max(round(every * spec.data.test_fraction), 1), every - 1) if spec.data.test_fraction else 0
        training, samples = spec.training, every - held_out
        whole = training.epochs * -(-samples // training.batch_size)
        return cls(
            samples=samples,
            batch_size=training.batch_size,
            epochs=training.epochs,
            steps=min(whole, training.max_steps or whole),
            checkpoint_every=training.checkpoint_every_steps,
        )

    @property
    def per_epoch(self) -> int:
        return -(-self.samples // self.batch_size)

    def batch(self, step: int) -> int:
        start = step % self.per_epoch * self.batch_size
        return min(self.batch_size, self.samples - start)


@dataclass(frozen=True)
class Pace:
    """Seconds of everything that takes time; ranges are drawn from."""

    fork: tuple[float, float] = (0.02, 0.3)
    load: tuple[float, float] = (0.2, 1.0)
    step: tuple[float, float] = (0.03, 0.06)
    form: float = 10.0
    """The first view waits so long for all of its members."""
    notice: tuple[float, float] = (0.02, 0.2)
    """Until a reset, or word from a daemon, has changed the view."""
    patience: tuple[float, float] = (8.0, 12.0)
    """Until mere silence has."""
    progress: float = 0.5


@dataclass(eq=False)
class SimulatedWorker:
    """One worker process; a `WorkerHandle`."""

    fabric: Fabric
    host: str
    disk: SimulatedDisk
    pid: int
    on_message: Callable[[FromWorker], None]
    on_exit: Callable[[str], None]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    alive: bool = True
    begin: Begin | None = None
    begun: tuple[str, ...] | None = None
    """Certificates of all members named to it, once it may begin."""
    size: Size | None = None
    lineage: Lineage = field(default_factory=lambda: Lineage(b""))
    members: tuple[str, ...] = ()
    joins: frozenset[str] = frozenset()
    """Certificates of those it wants to join."""
    admitted: set[str] = field(default_factory=set)
    """Of those that it was told may join."""
    within: bool = False
    """Whether it has ever been in a view."""
    lost: set[str] = field(default_factory=set)
    """Nodes that its daemon has given up."""
    started: float = 0.0
    reported: float = 0.0

    @property
    def certificate(self) -> str:
        return f"worker-{self.pid}"

    @property
    def node(self) -> str:
        assert self.begin is not None
        return self.begin.node

    @property
    def rank(self) -> int:
        assert self.begin is not None
        return next(share.rank for share in self.begin.plan.shares if share.node == self.node)

    @property
    def step(self) -> int:
        return len(self.lineage.steps)

    # --- the daemon's end ---

    def send(self, message: ToWorker) -> None:
        if self.alive:
            self.fabric.soon(self._hear, message)

    def kill(self) -> None:
        self.end("killed by SIGKILL")

    # --- the worker's end ---

    def _hear(self, message: ToWorker) -> None:
        if not self.alive:
            return
        match message:
            case Begin():
                self.begin = message
                self.fabric.later(self.fabric.between(self.fabric.pace.load), self._ready)
            case PeersReady(peers=peers, joining=True):
                self.joins = frozenset(peer.certificate for peer in peers)
                self.fabric.await_entry(self)
            case PeerJoining(peer=peer):
                self.admitted.add(peer.certificate)
            case PeersReady(peers=peers):
                named = {peer.certificate for peer in peers} | {self.certificate}
                self.begun = tuple(sorted(named))
                self.started = self.fabric.now
                self.fabric.gather(self.begun)
            case PeerLost(node=node):
                self.lost.add(node)
            case Cancel():
                self.end("exit 0")
            case Predict(request=request, inputs=inputs):
                outputs = [[1.0] for _ in inputs]
                self.tell(Predicted(request=request, outputs=outputs, labels=["only"]))

    def _ready(self) -> None:
        if not self.alive or self.begin is None:
            return
        self.size = Size.of(self.begin.spec)
        self.lineage = Lineage(self.begin.spec)
        if self.begin.resume is not None:
            try:
                self.lineage = msgspec.msgpack.decode(open_file(self.disk, self.begin.resume), type=Lineage)
            except NotFound as error:
                self.fail(error.code, error.sentence)
                return
        shares = sorted(self.begin.plan.shares, key=lambda share: share.rank)
        self.members = tuple(share.node for share in shares)
        self.tell(Ready(self.pid, 40_000 + self.pid % 20_000, self.certificate, 1000))

    def tell(self, message: FromWorker) -> None:
        if self.alive:
            asyncio.get_running_loop().call_soon(self.on_message, message, context=self.context)

    def fail(self, code: str, message: str) -> None:
        self.tell(Failed(code=code, message=message, fix="It is tried again.", retry=True))
        self.end("exit 1")

    def end(self, how: str) -> None:
        if self.alive:
            self.alive = False
            asyncio.get_running_loop().call_soon(self.on_exit, how, context=self.context)

    def view(self, members: tuple[str, ...]) -> None:
        """Go on with these nodes."""
        lost = tuple(node for node in self.members if node not in members)
        joined = tuple(node for node in members if node not in self.members)
        self.members = members
        self.within = True
        if lost or joined:
            self.tell(ViewChanged(step=self.step, members=members, lost=lost, joined=joined))

    def advance(self, parts: tuple[Part, ...]) -> None:
        """One step is done."""
        assert self.begin is not None
        assert self.size is not None
        self.lineage = Lineage(self.lineage.spec, (*self.lineage.steps, parts))
        if self.fabric.now - self.reported >= self.fabric.pace.progress or self.step % self.size.per_epoch == 0:
            self._progress()
        leads = self.members[0] == self.node
        if leads and self.step % self.size.checkpoint_every == 0 and self.step < self.size.steps:
            path = f"{self.begin.directory}/checkpoint-{self.step}"
            self.disk.files[path] = msgspec.msgpack.encode(self.lineage)
            self.tell(CheckpointWritten(self.step, path))

    def finish(self) -> None:
        assert self.begin is not None
        assert self.size is not None
        samples = sum(part.stop - part.start for parts in self.lineage.steps for part in parts)
        path = f"{self.begin.directory}/model"
        self.disk.files[path] = msgspec.msgpack.encode(("model", self.lineage.spec, samples))
        self.fabric.finishes.append(Finish(self.begin.job, self.begin.attempt, self.node, self.lineage))
        self._progress()
        seconds = self.fabric.now - self.started
        leads = self.members[0] == self.node
        self.tell(Finished(self.step, path, seconds, {"loss": 0.1, "accuracy": 0.9}, leads))
        self.end("exit 0")

    def _progress(self) -> None:
        assert self.size is not None
        self.reported = self.fabric.now
        epoch = -(-self.step // self.size.per_epoch)
        self.tell(
            WorkerProgress(
                step=self.step,
                steps=self.size.steps,
                epoch=epoch,
                epochs=self.size.epochs,
                loss=1.0 / (1 + self.step),
                accuracy=0.5,
                samples_per_second=100.0,
                step_seconds=0.05,
                members=self.members,
            )
        )


@dataclass(frozen=True)
class Finish:
    job: str
    attempt: int
    node: str
    lineage: Lineage


class Fabric:
    """All workers of a world and what goes on between them. To be made where no simulated process is current."""

    def __init__(self, network: SimulatedNetwork, rng: random.Random, pace: Pace | None = None) -> None:
        self.network = network
        self.pace = pace or Pace()
        self.workers: dict[str, SimulatedWorker] = {}
        self.finishes: list[Finish] = []
        self._rng = rng
        self._context = contextvars.copy_context()
        self._groups: dict[tuple[str, ...], None] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._pids = itertools.count(1000)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def host_died(self, host: str) -> None:
        """Its daemon is gone, and its workers with it."""
        for worker in self.workers.values():
            if worker.host == host:
                worker.alive = False

    def born(
        self,
        host: str,
        disk: SimulatedDisk,
        on_message: Callable[[FromWorker], None],
        on_exit: Callable[[str], None],
    ) -> SimulatedWorker:
        worker = SimulatedWorker(self, host, disk, next(self._pids), on_message, on_exit)
        self.workers[worker.certificate] = worker
        return worker

    def between(self, seconds: tuple[float, float]) -> float:
        return self._rng.uniform(*seconds)

    def later(self, seconds: float, call: Callable[..., Any], *args: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, call, *args, context=self._context)

    def soon(self, call: Callable[..., Any], *args: Any) -> None:
        asyncio.get_running_loop().call_soon(call, *args, context=self._context)

    def gather(self, certificates: tuple[str, ...]) -> None:
        """A worker may begin, together with these."""
        if certificates not in self._groups:
            self._groups[certificates] = None
            self._spawn(self._form(certificates))

    def await_entry(self, worker: SimulatedWorker) -> None:
        """A worker waits to be let in."""
        self._spawn(self._enter(worker))

    async def _enter(self, worker: SimulatedWorker) -> None:
        """It gives up once it has reached none of those it wants to join for a while."""
        patience, since = self.between(self.pace.patience), self.now
        while worker.alive and not worker.within:
            others = [other for other in self.workers.values() if other.certificate in worker.joins]
            if any(self._intact([worker, other]) for other in others) or self.network.host(worker.host).frozen:
                since = self.now
            if self.now - since >= patience:
                worker.fail("unavailable", "None of the workers that it was to join can be reached.")
                return
            await asyncio.sleep(0.5)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, context=self._context)
        self._tasks[task] = None
        task.add_done_callback(self._ended, context=self._context)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled():
            task.result()

    # --- groups ---

    async def _form(self, certificates: tuple[str, ...]) -> None:
        deadline = self.now + self.pace.form
        while self.now < deadline:
            present = [w for c in certificates if (w := self.workers.get(c)) is not None and w.alive]
            if all(worker.begun == certificates for worker in present) and len(self._sides(present)) == 1:
                break
            await asyncio.sleep(0.05)
        members = [w for c in certificates if (w := self.workers.get(c)) is not None and w.begun == certificates]
        self._split([worker for worker in members if worker.alive])

    async def _run(self, members: list[SimulatedWorker]) -> None:
        """One view, until it changes or ends."""
        names = tuple(worker.node for worker in members)
        for worker in members:
            worker.view(names)
        size = members[0].size
        assert size is not None
        ahead = max(members, key=lambda worker: worker.step)
        for worker in members:  # who lacks the last result takes it from who has it
            worker.lineage = ahead.lineage
        while ahead.step < size.steps:
            await asyncio.sleep(self.between(self.pace.step))
            if await self._whole(members):
                parts = _parts(members, ahead.step, size.batch(ahead.step))
                for worker in members:
                    worker.advance(parts)
                if newcomers := self._newcomers(members):
                    self._spawn(self._run([*members, *newcomers]))
                    return
            else:
                if any(worker.alive for worker in members):
                    self._split([worker for worker in members if worker.alive])
                return
        for worker in members:
            worker.finish()

    def _newcomers(self, members: list[SimulatedWorker]) -> list[SimulatedWorker]:
        """Who may come in before the next step: whom all were told of, and who can reach all."""
        present = {worker.certificate for worker in members}
        found = []
        for worker in self.workers.values():
            wants = worker.alive and worker not in members and present <= worker.joins
            known = all(worker.certificate in member.admitted for member in members)
            if wants and known and self._intact([*members, *found, worker]):
                found.append(worker)
        return found

    async def _whole(self, members: list[SimulatedWorker]) -> bool:
        """Whether the view stands; if not, after the time it takes to find out."""
        since = self.now
        patience, notice = self.between(self.pace.patience), self.between(self.pace.notice)
        while not self._intact(members):
            if all(self.network.host(worker.host).frozen for worker in members if worker.alive):
                since = self.now  # nobody is there to become impatient
            gone = [worker for worker in members if not worker.alive]
            given_up = {node for worker in members if worker.alive for node in worker.lost}
            told = any(worker.node in given_up for worker in members)
            if self.now - since >= (notice if gone or told else patience):
                return False
            await asyncio.sleep(0.1)
        return True

    def _intact(self, members: list[SimulatedWorker]) -> bool:
        well = all(worker.alive and not self.network.host(worker.host).frozen for worker in members)
        return well and len(self._sides(members)) == 1

    def _split(self, members: list[SimulatedWorker]) -> None:
        """Go on with the parts of what was one view."""
        sides = self._sides(members)
        for number, side in enumerate(sides):
            standing = [worker for worker in side if not self.network.host(worker.host).frozen]
            earlier = [worker for before in sides[:number] for worker in before]
            if any(self.network.reachable(a.host, b.host) for a in standing for b in earlier):
                standing = []
            for worker in side:
                if worker not in standing:
                    worker.fail("unavailable", "The other workers go on without this one.")
            if standing:
                self._spawn(self._run(standing))

    def _sides(self, members: Sequence[SimulatedWorker]) -> list[list[SimulatedWorker]]:
        """Groups within which everybody reaches everybody and has given nobody up, filled by rank."""
        sides: list[list[SimulatedWorker]] = []
        for worker in sorted(members, key=lambda worker: worker.rank):
            for side in sides:
                if all(self._together(worker, other) for other in side):
                    side.append(worker)
                    break
            else:
                sides.append([worker])
        return sides

    def _together(self, a: SimulatedWorker, b: SimulatedWorker) -> bool:
        return self.network.reachable(a.host, b.host) and b.node not in a.lost and a.node not in b.lost


def _parts(members: list[SimulatedWorker], step: int, total: int) -> tuple[Part, ...]:
    begin = members[0].begin
    assert begin is not None
    weights = {share.node: share.weight for share in begin.plan.shares}
    usual = sum(weights.values()) / len(weights)
    ranges = split(total, [weights.get(worker.node, usual) for worker in members])
    return tuple(Part(step, w.node, r.start, r.stop) for w, r in zip(members, ranges, strict=True))


class SimulatedWorkers:
    """`WorkerHost` of one node."""

    frameworks: tuple[str, ...] = ("torch",)

    def __init__(self, fabric: Fabric, host: str, disk: SimulatedDisk) -> None:
        self._fabric = fabric
        self._host = host
        self._disk = disk
        self._workers: list[SimulatedWorker] = []
        self._closed = False

    async def start(
        self,
        kind: WorkerKind,
        framework: str,
        limits: WorkerLimits,
        on_message: Callable[[FromWorker], None],
        on_exit: Callable[[str], None],
    ) -> WorkerHandle:
        await asyncio.sleep(self._fabric.between(self._fabric.pace.fork))
        if self._closed:
            raise Unavailable("This node is stopping.", fix="Ask another node.")
        if framework not in self.frameworks:
            raise Unavailable(f"{framework} is not installed here.", fix="Install it.")
        worker = self._fabric.born(self._host, self._disk, on_message, on_exit)
        self._workers.append(worker)
        return worker

    async def close(self) -> None:
        self._closed = True
        for worker in self._workers:
            worker.kill()
        await asyncio.sleep(0)
