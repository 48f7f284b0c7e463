"""What the executor asks of whoever runs worker processes. `workers` forks real ones; simulation has its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from hivenode.net.local import FromWorker, ToWorker, WorkerLimits

WorkerKind = Literal["train", "predict", "trace"]
OUT_OF_MEMORY = "killed by the kernel, which had run out of memory"
"""How a worker ended, where that is known."""


class WorkerHandle(Protocol):
    """One worker process."""

    @property
    def pid(self) -> int: ...

    def send(self, message: ToWorker) -> None:
        """Queue a message; ignored once the worker is gone."""
        ...

    def kill(self) -> None:
        """SIGKILL. `on_exit` still follows."""
        ...


class WorkerHost(Protocol):
    @property
    def frameworks(self) -> tuple[str, ...]:
        """Frameworks installed on this machine, found without importing them."""
        ...

    async def start(
        self,
        kind: WorkerKind,
        framework: str,
        limits: WorkerLimits,
        on_message: Callable[[FromWorker], None],
        on_exit: Callable[[str], None],
    ) -> WorkerHandle:
        """A new process forked from the warm server of `framework` (started on first use).
        `on_exit` is called exactly once, after the last message, with a sentence ("exit 0", "killed by SIGKILL", ...).
        Raises Unavailable when the framework is not installed or its server cannot start."""
        ...

    async def close(self) -> None:
        """Kill everything and wait for it."""
        ...
