"""Makes the snapshots that seals are of, from what this node holds, and can make one again after a restart."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from hivenode.hive.feeds import Cut, Feeds
from hivenode.hive.replication import Replication
from hivenode.hive.snapshots import Snapshot, Task, digest_of, paced, take
from hivenode.hive.views import Views
from hivenode.spec.events import SealProposed
from hivenode.store.ports import Journal

CUTS = "seal.cuts"
"""Cell: the cuts of what was last proposed or confirmed."""


class _Cuts(msgspec.Struct, frozen=True, array_like=True):
    horizon: int
    cuts: dict[str, Cut]


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot, what it was made from, and its bytes."""

    cut: str
    horizon: int
    forget: int
    snapshot: Snapshot
    data: bytes


class SnapshotMaker:
    """Keeps the one made last, since it is asked for several times on the way to a seal."""

    def __init__(self, replication: Replication, feeds: Feeds, views: Views, journal: Journal) -> None:
        self._replication = replication
        self._feeds = feeds
        self._views = views
        self._journal = journal
        self._made: Made | None = None

    async def of(self, body: SealProposed) -> Made | None:
        """The snapshot of a proposal's cut, if that cut is known and held here."""
        if self._made is not None and self._same(self._made, body):
            return self._made
        for cuts in (self._kept(body.horizon), self._feeds.cuts(body.horizon)):
            if cuts is not None and digest_of(cuts) == body.cut:
                return await self.take(body.horizon, body.forget, cuts)
        return None

    def _same(self, made: Made, body: SealProposed) -> bool:
        number = self._replication.seal_number + 1
        return made.snapshot.header.number == number and (made.cut, made.horizon, made.forget) == (
            body.cut,
            body.horizon,
            body.forget,
        )

    async def take(self, horizon: int, forget: int, cuts: dict[str, Cut]) -> Made | None:
        """The next snapshot. None if an event below the cuts is not held here, or another seal came meanwhile."""
        entries = self._feeds.up_to(cuts)
        if entries is None:
            return None
        task = Task(
            horizon=horizon,
            forget=forget,
            cuts=cuts,
            entries=entries,
            before=self._replication.sealed,
            folds=self._views.folds,
            marks=self._views.bases,
            authority_key=self._feeds.authority_key,
        )
        snapshot, data = await paced(take(task))
        if snapshot.header.number != self._replication.seal_number + 1:
            return None
        self._made = Made(digest_of(cuts), horizon, forget, snapshot, data)
        return self._made

    async def keep(self, horizon: int, cuts: dict[str, Cut]) -> None:
        """Be able to make the snapshot of these cuts after a restart, too, when events of that time have come since."""
        await self._journal.set_cell(CUTS, msgspec.msgpack.encode(_Cuts(horizon, cuts)))

    def _kept(self, horizon: int) -> dict[str, Cut] | None:
        cell = self._journal.cell(CUTS)
        kept = msgspec.msgpack.decode(cell, type=_Cuts) if cell else None
        return kept.cuts if kept is not None and kept.horizon == horizon else None

    def drop(self) -> None:
        """A seal is in place: the one made last is of no more use."""
        self._made = None
