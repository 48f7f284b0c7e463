"""The daemon's worker processes: forked from a warm forkserver per framework.

Nothing here imports a framework or blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from hivenode.errors import HiveError, Unavailable
from hivenode.jobs.forked import ForkServer, HostLimits
from hivenode.jobs.host import WorkerHandle, WorkerKind
from hivenode.net.local import FromWorker, WorkerLimits

SUPPORTED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "torch": (("torch",),),
    "transformers": (("transformers", "torch"),),
    "keras": (("keras", "tensorflow"), ("keras", "torch")),
    "sklearn": (("sklearn",),),
}
"""By framework the packages it takes, all of one of these."""
CONCERNED = ("torch", "transformers", "peft", "scikit-learn", "keras", "tensorflow")
"""Distributions whose versions other nodes are told."""


class ForkWorkers:
    """`jobs.host.WorkerHost` with real processes.

    Args:
        limits: bounds of the host itself; what a worker may use is given with each `start`.
    """

    def __init__(self, limits: HostLimits | None = None) -> None:
        self._limits = limits or HostLimits()
        self._servers: dict[str, ForkServer] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        self._warming: dict[asyncio.Task[None], None] = {}
        self._closed = False

    @property
    def frameworks(self) -> tuple[str, ...]:
        """Frameworks installed on this machine, found without importing them."""
        return tuple(name for name, ways in SUPPORTED.items() if any(all(map(_installed, way)) for way in ways))

    @cached_property
    def versions(self) -> dict[str, str]:
        """Of what jobs may need and is installed, found without importing it."""
        found = {}
        for name in CONCERNED:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)[:64]
        return found

    def prewarm(self, frameworks: Sequence[str]) -> None:
        """Begin to start the servers of these frameworks, so that the first job need not wait for an import. One
        that cannot start is tried again, and its error raised, by the first `start` that needs it."""
        for framework in frameworks:
            task = asyncio.get_running_loop().create_task(self._warm(framework), name=f"prewarm {framework}")
            self._warming[task] = None
            task.add_done_callback(lambda done: self._warming.pop(done, None))

    async def start(
        self,
        kind: WorkerKind,
        framework: str,
        limits: WorkerLimits,
        on_message: Callable[[FromWorker], None],
        on_exit: Callable[[str], None],
    ) -> WorkerHandle:
        """See `WorkerHost.start`. Neither callback is called before this returns, or at all if it raises."""
        server = await self._server(framework)
        return await server.fork(kind, limits, on_message, on_exit)

    async def close(self) -> None:
        """Kill everything and wait for it; each `on_exit` has been called when this returns."""
        self._closed = True
        for task in list(self._warming):
            task.cancel()
        await asyncio.gather(*self._warming, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in list(self._servers.values())))
        self._servers.clear()

    async def _warm(self, framework: str) -> None:
        with contextlib.suppress(HiveError):  # `start` raises it to whoever needs the framework
            await self._server(framework)

    async def _server(self, framework: str) -> ForkServer:
        if framework not in self.frameworks:
            raise Unavailable(
                f"{framework} is not installed here.", fix=f"Install it: pip install 'hivenode[{framework}]'."
            )
        async with self._starting.setdefault(framework, asyncio.Lock()):
            if self._closed:
                raise Unavailable("This node is stopping.", fix="Ask another node.")
            server = self._servers.get(framework)
            if server is None or server.gone:
                server = self._servers[framework] = ForkServer(framework, self._limits)
                try:
                    await server.start()
                except BaseException:
                    del self._servers[framework]
                    raise
            return server


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
