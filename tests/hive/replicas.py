"""Nodes reduced to their feeds, views and seals: no network, no disk, no clock but the one handed in."""

from __future__ import annotations

import hashlib

from hivenode.catalog.models import Holders
from hivenode.hive.feeds import Cut, Entry, Feeds
from hivenode.hive.roles import Roles
from hivenode.hive.seals import Proposal, Round
from hivenode.hive.snapshots import Snapshot, Task, digest_of, finish, judge, open_file, read, sealed_file, take
from hivenode.hive.views import Views
from hivenode.jobs.ledger import Ledger
from hivenode.net.messages import Event
from hivenode.planning.qtable import Experience
from hivenode.spec.events import Body, NodeAdmitted, SealClosed, SealConfirmed, SealProposed
from hivenode.spec.values import Epoch, Role
from hivenode.trust.authority import Authority
from hivenode.trust.identity import Identity

AUTHORITY = Authority.from_seed(b"replicas")


class Replica:
    def __init__(self, number: int, roles: tuple[Role, ...] = tuple(Role)) -> None:
        self.identity = Identity.from_seed(bytes([number]) * 32)
        self.number = number
        self.grant = AUTHORITY.grant(self.identity.public_key, f"n{number}", roles, serial=1)
        self.ledger = Ledger(AUTHORITY.public_key)
        self.feeds = Feeds(AUTHORITY.hive_id, AUTHORITY.public_key)
        self.roles = Roles(AUTHORITY.public_key, self.grant)
        self.views = Views([self.roles, self.ledger, Holders(), Experience()])
        self.sealed: Snapshot | None = None
        self.file = b""
        self.last = 0

    @property
    def id(self) -> str:
        return self.identity.node_id

    @property
    def number_sealed(self) -> int:
        return self.sealed.header.number if self.sealed is not None else 0

    def dump(self) -> bytes:
        """All that is folded, as bytes."""
        return b"|".join(piece for fold in self.views.folds for piece in fold.dump(0))

    # --- events ---------------------------------------------------------------------------------------------------

    def say(self, now: int, *bodies: Body) -> list[Entry]:
        if self.id not in self.feeds.heads:
            bodies = (NodeAdmitted(grant=self.grant), *bodies)

        def clock() -> int:
            self.last = max(self.last + 1, now)
            return self.last

        fresh = self.feeds.compose(self.identity, clock, bodies)
        self._keep(fresh)
        return fresh

    def take(self, events: list[Event]) -> None:
        self._keep(list(self.feeds.examine(events).fresh))

    def _keep(self, entries: list[Entry]) -> None:
        recount = [self.feeds.accept(entry) for entry in entries]
        if any(recount):
            self.views.rebuild(list(self.feeds.entries()))
        else:
            self.views.add([entry for entry in entries if self.feeds.counts(entry.event)])

    def send(self, other: Replica, limit: int = 1 << 20) -> bool:
        """What the other lacks, up to a size; whether there is more."""
        events, more = self.feeds.missing(other.feeds.heads, limit)
        other.take(list(events))
        return more

    # --- seals ----------------------------------------------------------------------------------------------------

    def round(self) -> Round:
        return Round.of(
            self.number_sealed + 1, self.feeds.entries(), lambda node: self.roles.may(node, Role.coordinator)
        )

    def make(self, horizon: int, forget: int, cuts: dict[str, Cut]) -> tuple[Snapshot, bytes] | None:
        entries = self.feeds.up_to(cuts)
        if entries is None:
            return None
        task = Task(
            horizon=horizon, forget=forget, cuts=cuts, entries=entries, before=self.sealed, folds=self.views.folds,
            marks=self.views.bases, authority_key=AUTHORITY.public_key,
        )  # fmt: skip
        return finish(take(task))

    def propose(self, now: int, epoch: int, horizon: int, forget: int = 0) -> SealProposed:
        cuts = self.feeds.cuts(horizon)
        made = self.make(horizon, forget, cuts)
        assert made is not None
        body = SealProposed(
            number=self.number_sealed + 1, epoch=Epoch(epoch, self.id), horizon=horizon, forget=forget,
            cut=digest_of(cuts), digest=made[0].digest,
        )  # fmt: skip
        self.say(now, body)
        return body

    def snapshot_of(self, body: SealProposed) -> tuple[Snapshot, bytes] | None:
        """Of a proposal whose cut is just what is held here."""
        cuts = self.feeds.cuts(body.horizon)
        made = self.make(body.horizon, body.forget, cuts) if digest_of(cuts) == body.cut else None
        return made if made is not None and made[0].digest == body.digest else None

    def confirm(self, now: int) -> bool:
        proposal = self.round().current
        if proposal is None or proposal.author == self.id or self.id in self.round().confirmed(proposal.body.digest):
            return False
        if self.snapshot_of(proposal.body) is None:
            return False
        self.say(now, SealConfirmed(number=proposal.body.number, digest=proposal.body.digest))
        return True

    def close(self, now: int, excused: tuple[str, ...] = (), *, anyway: bool = False) -> bool:
        own: Proposal | None = self.round().closable(self.id)
        made = self.snapshot_of(own.body) if own is not None else None
        if own is None or made is None:
            return False
        silent = set(made[0].members) - {self.id, *self.round().confirmed(own.body.digest), *excused}
        if silent and not anyway:
            return False
        self.say(now, SealClosed(number=own.body.number, digest=own.body.digest, excused=tuple(sorted(excused))))
        return True

    def settle(self) -> bool:
        """Put a closed seal in place that can be made here."""
        for proposal, certificate in self.round().certificates():
            if (made := self.snapshot_of(proposal.body)) is not None:
                finish(judge(certificate, made[0], AUTHORITY.hive_id))
                self.begin(made[0], sealed_file(certificate, made[1]))
                return True
        return False

    def catch_up(self, file: bytes) -> None:
        """Take a seal over from elsewhere."""
        certificate, data = open_file(file)
        snapshot = finish(read(data, self.views.folds, AUTHORITY.public_key))
        finish(judge(certificate, snapshot, AUTHORITY.hive_id))
        assert not self.feeds.agrees(snapshot.header.cuts)
        if snapshot.header.number > self.number_sealed:
            self.begin(snapshot, file)

    def begin(self, snapshot: Snapshot, file: bytes) -> None:
        self.sealed, self.file = snapshot, file
        self.feeds.begin(snapshot.header.cuts, snapshot.grants)
        self.views.rebase(snapshot.header.horizon, snapshot.marks, list(self.feeds.entries()))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
