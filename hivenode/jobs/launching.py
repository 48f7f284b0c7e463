"""A worker's beginning: what its share needs is fetched, its process started, and waited for until it listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hivenode.catalog.holders import Keeper
from hivenode.errors import HiveError, Unavailable
from hivenode.jobs.host import WorkerHost
from hivenode.jobs.ledger import Ledger
from hivenode.jobs.supplies import Supplies
from hivenode.jobs.work import Work, Workspace
from hivenode.net.local import Begin, Brought, FromWorker, Need, WorkerLimits
from hivenode.net.messages import Assign, Endpoint
from hivenode.store.ports import BlobStore

READY_SECONDS = 60.0


class Launcher:
    """Starts workers for work.

    Args:
        limits: what a worker may use.
        worker_host: address that workers listen on for each other; `ports` their range.
        trusted: subnets on which they may speak in plaintext.
    """

    def __init__(
        self,
        *,
        me: str,
        node_name: str,
        limits: Callable[[], WorkerLimits],
        worker_host: Callable[[], str],
        ports: tuple[int, int],
        trusted: tuple[str, ...],
        host: WorkerHost,
        workspace: Workspace,
        blobs: BlobStore,
        keeper: Keeper,
        supplies: Supplies,
        ledger: Ledger,
    ) -> None:
        self._me = me
        self._node_name = node_name
        self._limits = limits
        self._worker_host = worker_host
        self._ports = ports
        self._trusted = trusted
        self._host = host
        self._workspace = workspace
        self._blobs = blobs
        self._keeper = keeper
        self._supplies = supplies
        self._ledger = ledger

    async def launch(
        self, work: Work, order: Assign, *, heard: Callable[[FromWorker], None], exited: Callable[[str], None]
    ) -> None:
        """Return when the worker listens for its peers, or when the work was stopped meanwhile. Raises HiveError.

        Args:
            heard: called with what the worker says; it has to set `work.ready`.
            exited: called with how it ended.
        """
        resume = None
        if order.resume is not None:
            await self._keeper.obtain(order.resume, order.resume_holders)
            resume = str(self._blobs.path(order.resume.digest))
        resources = await self._supplies.gather(work.spec, work.plan, self._submitter(work.job))
        work.directory = self._workspace.make(work.job, work.name[0])
        work.handle = await self._host.start("train", work.spec.runtime, self._limits(), heard, exited)
        if work.state != "preparing":  # stopped meanwhile
            work.handle.kill()
            return
        work.handle.send(
            Begin(
                job=work.job,
                attempt=work.name[0],
                node=self._me,
                spec=order.spec,
                plan=order.plan,
                directory=work.directory,
                host=self._worker_host(),
                ports=self._ports,
                resume=resume,
                resources=resources,
                trusted=self._trusted,
            )
        )
        try:
            async with asyncio.timeout(READY_SECONDS):
                ready = await asyncio.shield(work.ready)
        except TimeoutError:
            raise Unavailable(
                f"The worker on {self._node_name} was not ready after {READY_SECONDS:.0f} s.",
                fix="See `hivenode logs` of the job; the machine may be overloaded.",
            ) from None
        if work.state == "preparing":
            host = self._worker_host()
            host = f"[{host}]" if ":" in host else host
            work.endpoint = Endpoint(self._me, work.rank, f"{host}:{ready.port}", ready.certificate, ready.group_port)
            work.state = "prepared"

    async def bring(self, work: Work, wish: Need) -> None:
        """Fetch what a running worker finds that it needs besides, and tell it where it is, or why not."""
        try:
            paths = await self._supplies.more(work.spec, work.plan, self._submitter(work.job), wish.blobs)
            answer = Brought(paths=paths)
        except HiveError as error:
            answer = Brought(paths={}, error=error.sentence[:2000], fix=error.fix[:2000])
        if work.handle is not None:
            work.handle.send(answer)

    def _submitter(self, job: str) -> str:
        known = self._ledger.jobs.get(job)
        return known.submitter if known is not None else ""
