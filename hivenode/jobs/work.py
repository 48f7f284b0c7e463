"""One node's share of an attempt, and where its files and log lines go."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal, Protocol

from hivenode.jobs.host import WorkerHandle
from hivenode.jobs.ledger import AttemptName
from hivenode.net.local import Failed, Finished, Ready
from hivenode.net.messages import Endpoint, Progress, Standing
from hivenode.spec.job import JobSpec
from hivenode.spec.values import Epoch, Plan
from hivenode.tasks import Signal

State = Literal["preparing", "prepared", "running", "finished", "failed"]


class JobLog(Protocol):
    """Where a job's own log lines go."""

    def write(self, job: str, record: dict[str, object]) -> None: ...


class Workspace(Protocol):
    """Directories for workers."""

    def make(self, job: str, attempt: int) -> str:
        """A new one, with what is kept for that job in it. Raises Exhausted."""
        ...

    def keep(self, job: str, path: str) -> None:
        """Put a file from a worker's directory aside for the job's next attempts here; of a job the last few."""
        ...

    def forget(self, job: str) -> None:
        """Remove what is kept for a job."""
        ...

    def remove(self, directory: str) -> None: ...


@dataclass(slots=True)
class Work:
    """This node's share of one attempt."""

    job: str
    name: AttemptName
    epoch: Epoch
    spec: JobSpec
    plan: Plan
    rank: int
    state: State = "preparing"
    handle: WorkerHandle | None = None
    directory: str = ""
    ready: asyncio.Future[Ready] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    members: tuple[str, ...] = ()
    step: int = 0
    steps: int = 0
    failure: Failed | None = None
    finished: Finished | None = None
    endpoint: Endpoint | None = None
    last: Progress | None = None
    told: float = -1.0
    """When progress was last broadcast, loop time."""
    accuracy: float | None = None
    test_loss: float | None = None
    outrun: bool = False
    trouble: str = ""
    """What it goes on in spite of."""
    over: Signal = field(default_factory=Signal)
    """When the worker has ended."""
    keeping: int = 0
    """Checkpoints in its directory that are being copied."""
    left: bool = False
    """Nothing else needs the directory."""

    def standing(self) -> Standing:
        failure = self.failure
        return Standing(
            job=self.job,
            attempt=self.name[0],
            state=self.state,
            step=self.step,
            detail=failure.message[:2000] if failure else "",
            fix=failure.fix[:2000] if failure else "",
            retry=failure.retry if failure else True,
            needed_bytes=failure.needed_bytes if failure else 0,
            endpoint=self.endpoint,
        )
