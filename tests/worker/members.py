"""A daemon's part towards real workers: start them, hear them, let them meet."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors.numpy import load_file

from hivenode.jobs.host import WorkerHandle, WorkerHost, WorkerKind
from hivenode.net.local import Begin, Failed, Finished, FromWorker, Peer, PeersReady, Ready, Resources, WorkerLimits
from hivenode.spec.job import DataSpec, JobSpec, ModelSpec, TrainingSpec
from hivenode.spec.values import Engine, Plan, Precision, Share, Strategy

LIMITS = WorkerLimits(threads=1, memory_bytes=1 << 30, nice=0)
M = TypeVar("M", bound=FromWorker)

STOPPED, GOING = 0.009, 0.003
"""Seconds in turn, of a process that has a quarter of a processor."""


def node(number: int) -> str:
    return f"{number:032d}"


def spec(
    model: str = "zoo:cnn",
    source: str = "sklearn:digits",
    framework: str = "",
    params: Mapping[str, object] | None = None,
    **training: object,
) -> JobSpec:
    given = {"framework": framework} if framework else {}
    return JobSpec(
        name="test",
        model=ModelSpec(source=model, params=params or {}),
        data=DataSpec(source=source),
        training=TrainingSpec(**training),
        **given,
    )


def with_statistics(**training: object) -> JobSpec:
    """A job whose model keeps running statistics, and draws."""
    layers = (
        {"type": "conv", "outputs": 4},
        {"type": "batch_norm"},
        {"type": "dropout"},
        {"type": "average"},
        {"type": "dense"},
    )
    model = ModelSpec(source="layers:", layers=layers)
    return JobSpec(name="test", model=model, training=TrainingSpec(**training))


def plan(
    weights: Sequence[float],
    precision: Precision = "fp32",
    engine: Engine = Engine.exchange,
    strategy: Strategy | None = None,
) -> Plan:
    strategy = strategy or (Strategy.single_node if len(weights) == 1 else Strategy.data_parallel)
    shares = tuple(Share(node(rank), rank, weight, 0.01, 1 << 28) for rank, weight in enumerate(weights))
    reason = "as the test says"
    return Plan(strategy, shares, 1.0, reason, False, (0, 0, 0, 0), (), precision=precision, engine=engine)


class Member:
    """A worker as its daemon sees it."""

    def __init__(self) -> None:
        self.heard: list[FromWorker] = []
        self.exits: list[str] = []
        self._changed = asyncio.Condition()
        self._pending: set[asyncio.Task[None]] = set()
        self.handle: WorkerHandle

    @classmethod
    async def start(
        cls, host: WorkerHost, kind: WorkerKind = "train", limits: WorkerLimits = LIMITS, framework: str = "torch"
    ) -> Member:
        member = cls()
        member.handle = await host.start(kind, framework, limits, member._message, member._exit)
        return member

    def _message(self, message: FromWorker) -> None:
        assert not self.exits, "nothing follows the exit"
        self.heard.append(message)
        self._notify()

    def _exit(self, how: str) -> None:
        self.exits.append(how)
        self._notify()

    def _notify(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(notify())
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    def all(self, kind: type[M]) -> list[M]:
        return [message for message in self.heard if isinstance(message, kind)]

    async def expect(self, kind: type[M], count: int = 1) -> M:
        """The `count`th message of a kind; fails with what was heard if the worker ends without it."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.all(kind)) >= count or self.exits)
        found = self.all(kind)
        assert len(found) >= count, f"no {kind.__name__}: {self.heard[-3:]} {self.exits}"
        return found[count - 1]

    async def expect_any(self, kind: type[M], count: int, *others: type[FromWorker]) -> FromWorker:
        """The `count`th message of a kind, or the first of one of the others; fails as `expect` does."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: len(self.all(kind)) >= count or any(self.all(other) for other in others) or self.exits
            )
        if len(found := self.all(kind)) >= count:
            return found[count - 1]
        instead = [message for other in others for message in self.all(other)]
        assert instead, f"no {kind.__name__}: {self.heard[-3:]} {self.exits}"
        return instead[0]

    async def exit(self) -> str:
        async with self._changed:
            await self._changed.wait_for(lambda: self.exits)
        return self.exits[0]


def begin(
    job: JobSpec,
    plan: Plan,
    rank: int,
    directory: Path,
    resume: str | None = None,
    trusted: tuple[str, ...] = ("127.0.0.0/8",),
    resources: Resources | None = None,
) -> Begin:
    own = directory / node(rank)
    own.mkdir(parents=True, exist_ok=True)
    return Begin(
        job="job-1",
        attempt=1,
        node=node(rank),
        spec=job.model_dump_json().encode(),
        plan=plan,
        directory=str(own),
        host="127.0.0.1",
        ports=(0, 0),
        resume=resume,
        trusted=trusted,
        resources=resources or Resources(),
    )


async def attempt(
    host: WorkerHost,
    job: JobSpec,
    weights: Sequence[float],
    directory: Path,
    resume: str | None = None,
    absent: Sequence[int] = (),
    precision: Precision = "fp32",
    engine: Engine = Engine.exchange,
    strategy: Strategy | None = None,
    resources: Resources | None = None,
) -> list[Member]:
    """Workers of an attempt, all told to begin; those of the ranks in `absent` are killed before."""
    planned = plan(weights, precision, engine, strategy)
    members = [await Member.start(host, framework=job.runtime) for _ in weights]
    for rank, member in enumerate(members):
        member.handle.send(begin(job, planned, rank, directory, resume, resources=resources))
    ready = [await member.expect(Ready) for member in members]
    for rank in absent:
        members[rank].handle.kill()
        await members[rank].exit()
    everyone = [Peer(node(rank), rank, "127.0.0.1", r.port, r.certificate) for rank, r in enumerate(ready)]
    peers = [peer for peer in everyone if peer.rank not in absent]
    for rank, member in enumerate(members):
        member.handle.send(PeersReady(peers=tuple(peer for peer in peers if peer.rank != rank)))
    return members


async def failure(member: Member) -> Failed:
    """How it failed; it has ended when this returns."""
    failed = await member.expect(Failed)
    await member.exit()
    return failed


async def finish(members: Sequence[Member]) -> list[Finished]:
    """What each made; all must end well."""
    finished = [await member.expect(Finished) for member in members]
    for member in members:
        assert await member.exit() == "exit 0"
    return finished


def digest(path: str) -> str:
    """Of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def difference(one: str, other: str) -> float:
    """Largest between the weights of two models."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """Stop a process most of the time."""

    async def hold_back() -> None:
        with suppress(ProcessLookupError):
            while True:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(STOPPED)
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(GOING)

    task = asyncio.get_running_loop().create_task(hold_back())
    try:
        yield
    finally:
        task.cancel()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
