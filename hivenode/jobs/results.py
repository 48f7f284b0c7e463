"""What becomes of what workers make: checkpoints with copies elsewhere, models in the catalogue, experience."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from hivenode.catalog.holders import Keeper
from hivenode.catalog.models import Catalogue, Holders
from hivenode.errors import HiveError
from hivenode.jobs.ledger import AttemptName, Ledger
from hivenode.jobs.live import Live
from hivenode.logs import get_logger
from hivenode.net.local import Finished
from hivenode.planning.planner import experience_of
from hivenode.spec.events import AttemptEnded, BlobHeld, Body, CheckpointSaved, ModelRegistered
from hivenode.spec.job import JobSpec
from hivenode.spec.values import Epoch, Plan
from hivenode.store.ports import BlobStore
from hivenode.tasks import Signal

KEPT_CHECKPOINTS = 2
PATIENCE_SECONDS = 10.0
"""How long each member of a lower rank has to register the model before the next one does."""

log = get_logger("results")


class Append(Protocol):
    def __call__(self, *bodies: Body) -> Coroutine[Any, Any, None]: ...


class Results:
    """Publishes results of this node's workers.

    Args:
        copies: how many nodes should keep a checkpoint or model, this one included.
        candidates: ids of nodes that may keep copies, best first.
        gone: whether a node is known to be dead or to have left.
        changed: notified when the ledger, the membership or live progress changed.
    """

    def __init__(
        self,
        *,
        me: str,
        copies: int,
        blobs: BlobStore,
        keeper: Keeper,
        ledger: Ledger,
        live: Live,
        catalogue: Catalogue,
        holders: Holders,
        append: Append,
        candidates: Callable[[], tuple[str, ...]],
        gone: Callable[[str], bool],
        changed: Signal,
    ) -> None:
        self._me = me
        self._copies = copies
        self._blobs = blobs
        self._keeper = keeper
        self._ledger = ledger
        self._live = live
        self._catalogue = catalogue
        self._holders = holders
        self._append = append
        self._candidates = candidates
        self._gone = gone
        self._changed = changed
        self._tidying = asyncio.Lock()

    async def checkpoint(self, job: str, name: AttemptName, step: int, path: Path, members: tuple[str, ...]) -> None:
        """Take a checkpoint in, have another node keep a copy, then state that it exists. Raises HiveError: it does
        not; an older one still stands."""
        ref = await self._blobs.put_file(path, move=True)
        self._keeper.touch(ref.digest)
        preferred = dict.fromkeys([*members, *self._candidates()])
        others = await self._keeper.copy_out(ref, tuple(preferred), self._copies - 1, announce=False)
        await self._append(CheckpointSaved(job, name[0], step, ref, (self._me, *others)))

    async def model(
        self,
        job: str,
        name: AttemptName,
        epoch: Epoch,
        spec: JobSpec,
        plan: Plan,
        finished: Finished,
        members: tuple[str, ...],
    ) -> None:
        """Keep the model here; the first member that is still there registers it and ends the attempt."""
        ref = await self._blobs.put_file(Path(finished.path), move=True)
        await self._append(BlobHeld(digest=ref.digest, size=ref.size))
        before = members[: members.index(self._me)] if self._me in members else members
        loop = asyncio.get_running_loop()
        patience = loop.time() + PATIENCE_SECONDS * len(before)
        while not all(self._gone(node) or self._live.state(job, name[0], node) == "failed" for node in before):
            if self._ended(job):
                return
            if loop.time() >= patience:
                break  # whatever keeps them: the first registration stands, so a second does no harm
            await self._changed.wait(PATIENCE_SECONDS)
        if self._ended(job):
            return
        if len(members) < self._copies:
            others = tuple(node for node in self._candidates() if node not in members)
            await self._keeper.copy_out(ref, others, self._copies - len(members), announce=True)
        bodies: list[Body] = [
            ModelRegistered(spec.name, job, name[0], name[1], ref, spec.model.source, finished.metrics),
            AttemptEnded(job, name[0], name[1], epoch, "finished", finished.step, finished.seconds, finished.metrics),
        ]
        record = self._ledger.jobs.get(job)
        attempt = record.attempts.get(name) if record else None
        if attempt is not None and attempt.resume is None and len(members) == len(plan.shares):
            bodies.append(experience_of(job, name[0], plan, finished.seconds))
        await self._append(*bodies)

    async def own_copy(self, job: str) -> None:
        """Keep the model of a job here that others finished before our worker did."""
        version = self._catalogue.of_job(job)
        if version is None or self._blobs.has(version.blob.digest):
            return
        try:
            await self._keeper.obtain(version.blob, self._holders.of(version.blob.digest))
            await self._append(BlobHeld(digest=version.blob.digest, size=version.blob.size))
        except HiveError as error:
            log.warning("no copy of the model here", job=job, model=version.reference, reason=str(error))

    async def tidy(self) -> None:
        """Delete checkpoints that nothing needs any more. Needed are: of every open job the latest two that are here
        (later ones elsewhere may be out of reach when they are wanted) and what its attempt resumed from; models; and
        what somebody is about to speak of. The same bytes may belong to several jobs."""
        async with self._tidying:
            needed: dict[str, None] = {}
            here: dict[str, None] = {}
            for job in list(self._ledger.jobs.values()):
                held = [c for c in job.checkpoints.values() if self._blobs.has(c.blob.digest)]
                held.sort(key=lambda c: (c.step, c.blob.digest), reverse=True)
                here.update(dict.fromkeys(checkpoint.blob.digest for checkpoint in held))
                if job.open:
                    needed.update(dict.fromkeys(checkpoint.blob.digest for checkpoint in held[:KEPT_CHECKPOINTS]))
                    if job.current is not None and job.current.resume is not None:
                        needed[job.current.resume.digest] = None
            for digest in here:
                if digest not in needed and not self._catalogue.names(digest) and not self._keeper.touched(digest):
                    await self._blobs.delete(digest)

    def _ended(self, job: str) -> bool:
        record = self._ledger.jobs.get(job)
        return record is not None and not record.open
