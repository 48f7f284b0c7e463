"""What an assignment needs here before its worker begins: weights, and the pieces of shared data that it trains on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from pydantic import ValidationError

from hivenode.catalog.holders import Keeper
from hivenode.catalog.models import Holders
from hivenode.data.manifest import Shard, overlapping, read_manifest
from hivenode.errors import HiveError
from hivenode.jobs.ledger import Ledger
from hivenode.jobs.preparing import blob_of, manifest_of
from hivenode.net.local import Resources
from hivenode.spec.events import BlobHeld, Body
from hivenode.spec.job import JobSpec
from hivenode.spec.split import member_range
from hivenode.spec.values import BlobRef, Plan
from hivenode.store.ports import BlobStore

AT_ONCE = 4
"""Pieces fetched at the same time."""


class Supplies:
    """Brings blobs here for workers.

    Args:
        lends: what this machine's owner lends to jobs.
    """

    def __init__(
        self,
        *,
        me: str,
        blobs: BlobStore,
        keeper: Keeper,
        holders: Holders,
        ledger: Ledger,
        append: Callable[[Body], Awaitable[None]],
        lends: Callable[[], Resources],
    ) -> None:
        self._me = me
        self._blobs = blobs
        self._keeper = keeper
        self._holders = holders
        self._ledger = ledger
        self._append = append
        self._lends = lends
        self._tidying = asyncio.Lock()
        self._needed: frozenset[str] = frozenset()
        self._lists: dict[str, tuple[Shard, ...]] = {}

    async def gather(self, spec: JobSpec, plan: Plan, submitter: str) -> Resources:
        """Everything for this node's share of a plan. Raises Unavailable when something cannot be had."""
        paths: dict[str, str] = {}
        if spec.model.weights:
            ref = blob_of(spec.model.weights)
            paths |= await self.bring([ref], self._known(ref, submitter))
        if (manifest := manifest_of(spec.data)) is not None:
            sources = self._sources(manifest, plan, submitter)
            paths |= await self.bring([manifest], sources)
            read = await self._blobs.read(manifest.digest, limit=manifest.size)
            described = await asyncio.to_thread(read_manifest, read)
            wanted = [*_mine(described.train, plan, self._me), *_mine(described.test, plan, self._me)]
            await self.bring([BlobRef(shard.digest, shard.size) for shard in wanted], sources)
        lent = self._lends()
        return Resources(directories=lent.directories, packages=lent.packages, private=lent.private, blobs=paths)

    async def more(self, spec: JobSpec, plan: Plan, submitter: str, wanted: Sequence[BlobRef]) -> dict[str, str]:
        """Paths of pieces that a worker asks for, because its range has moved. Raises Unavailable."""
        manifest = manifest_of(spec.data)
        return {} if manifest is None else await self.bring(wanted, self._sources(manifest, plan, submitter))

    async def bring(self, wanted: Sequence[BlobRef], sources: Sequence[str]) -> dict[str, str]:
        """Have blobs here; returns their paths by digest."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(ref: BlobRef) -> None:
            async with gate:
                await self._keeper.obtain(ref, sources)

        missing = [ref for ref in wanted if not self._blobs.has(ref.digest)]
        for result in await asyncio.gather(*map(one, missing), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        return {ref.digest: str(self._blobs.path(ref.digest)) for ref in wanted}

    def names(self, digest: str) -> bool:
        """Whether an open job's data have this piece, as of the latest `tidy`."""
        return digest in self._needed

    async def tidy(self) -> None:
        """Delete the pieces of shared data that are here for jobs that have ended, unless an open job has the same."""
        async with self._tidying:
            ended: dict[str, BlobRef] = {}
            needed: set[str] = set()
            for job in list(self._ledger.jobs.values()):
                ref = _shared(job.spec)
                if ref is not None and job.open:
                    needed |= {ref.digest, *(shard.digest for shard in await self._listed(ref))}
                elif ref is not None and self._blobs.has(ref.digest) and not self._keeper.touched(ref.digest):
                    ended[ref.digest] = ref
            self._needed = frozenset(needed)
            self._lists = {digest: shards for digest, shards in self._lists.items() if digest in needed}
            for ref in ended.values():
                if ref.digest in needed:
                    continue
                for shard in await self._listed(ref):
                    if shard.digest not in needed and not self._ledger.names(shard.digest):
                        await self._blobs.delete(shard.digest)
                if not self._ledger.names(ref.digest):
                    await self._blobs.delete(ref.digest)
                    if self._me in self._holders.of(ref.digest):
                        await self._append(BlobHeld(digest=ref.digest, size=ref.size, held=False))

    async def _listed(self, ref: BlobRef) -> tuple[Shard, ...]:
        """The pieces that a list names; none if it is not here, or is none."""
        if ref.digest not in self._lists and self._blobs.has(ref.digest):
            try:
                read = await self._blobs.read(ref.digest, limit=ref.size)
                self._lists[ref.digest] = (await asyncio.to_thread(read_manifest, read)).shards
            except HiveError:
                return ()
        return self._lists.get(ref.digest, ())

    def _known(self, ref: BlobRef, submitter: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self._holders.of(ref.digest), submitter]))

    def _sources(self, manifest: BlobRef, plan: Plan, submitter: str) -> tuple[str, ...]:
        """Those who hold all pieces, then those who hold some."""
        return tuple(dict.fromkeys([*self._known(manifest, submitter), *(share.node for share in plan.shares)]))


def _shared(spec: bytes) -> BlobRef | None:
    """The list of pieces that a stated declaration names."""
    if b'"shared:' not in spec:
        return None
    try:
        return manifest_of(JobSpec.model_validate_json(spec).data)
    except ValidationError:
        return None  # of a newer version, or nonsense


def _mine(shards: Sequence[Shard], plan: Plan, me: str) -> tuple[Shard, ...]:
    shares = sorted(plan.shares, key=lambda share: share.rank)
    rows = sum(shard.rows for shard in shards)
    weights = {share.node: share.weight for share in shares}
    return overlapping(shards, member_range(rows, [share.node for share in shares], weights, me))
