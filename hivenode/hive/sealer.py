"""The shell around sealing: proposes, confirms and closes seals, keeps what they leave, and brings a node that was away
to where the others are."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hivenode.errors import HiveError, Refused
from hivenode.hive.clock import seconds
from hivenode.hive.feeds import Cut, Feeds
from hivenode.hive.replication import Replication
from hivenode.hive.roles import Roles
from hivenode.hive.seals import Proposal, Round, excusable
from hivenode.hive.snapshot_maker import SnapshotMaker
from hivenode.hive.snapshots import (
    MAX_BYTES,
    Certificate,
    Snapshot,
    Steps,
    Unconfirmed,
    digest_of,
    judge,
    open_file,
    paced,
    read,
    sealed_file,
    too_many,
)
from hivenode.hive.views import Views
from hivenode.logs import get_logger
from hivenode.net.messages import FeedHeads, Message, SealOffered
from hivenode.spec.events import SealClosed, SealConfirmed, SealProposed
from hivenode.spec.status import FactsStatus
from hivenode.spec.values import BlobRef, Epoch, Role
from hivenode.store.ports import BlobStore, Journal
from hivenode.tasks import TaskGroup

LOOK_SECONDS = 60.0
OFFER_SECONDS = 10.0
"""Between two offers to the same peer."""
HASH_AT_ONCE = 1 << 20
DAY = 86400.0
FILE = "seal.file"
"""Cell: the name of the blob by which the latest seal is passed on."""

log = get_logger("seals")


@dataclass(frozen=True, slots=True)
class SealRules:
    """When and how to seal.

    Args:
        events: propose a seal once so many events are older than `after`.
        after: seconds; younger events are never sealed.
        patience: seconds after which a silent member is not waited for.
        keep: seconds that an ended job stays known.
    """

    events: int = 10_000
    after: float = 7 * DAY
    patience: float = 30 * DAY
    keep: float = 90 * DAY


class Sealer:
    """Sees to the seals of one node.

    Args:
        leads: our epoch while we coordinate.
        present: ids of the members that are there, this node included.
        fetch: brings a blob over from a peer.
        on_sealed: called after the facts before a horizon came in a snapshot.
        on_offender: called with a peer that sent something no honest node sends, and the reason.
    """

    def __init__(
        self,
        *,
        me: str,
        hive_id: str,
        rules: SealRules,
        replication: Replication,
        feeds: Feeds,
        views: Views,
        roles: Roles,
        journal: Journal,
        blobs: BlobStore,
        leads: Callable[[], Epoch | None],
        present: Callable[[], tuple[str, ...]],
        fetch: Callable[[str, BlobRef, BlobStore], Awaitable[None]],
        send: Callable[[str, Message], bool],
        wall: Callable[[], float],
        on_sealed: Callable[[], None],
        on_offender: Callable[[str, str], None],
        tasks: TaskGroup,
    ) -> None:
        self._me = me
        self._hive_id = hive_id
        self._rules = rules
        self._replication = replication
        self._feeds = feeds
        self._views = views
        self._roles = roles
        self._journal = journal
        self._blobs = blobs
        self._leads = leads
        self._present = present
        self._fetch = fetch
        self._send = send
        self._wall = wall
        self._on_sealed = on_sealed
        self._on_offender = on_offender
        self._tasks = tasks
        self._woken = asyncio.Event()
        self._stepping = asyncio.Lock()
        self._maker = SnapshotMaker(replication, feeds, views, journal)
        self._file: BlobRef | None = None
        self._offered: dict[str, float] = {}
        self._fetching = False
        self._refused: dict[str, None] = {}
        self.alarms: dict[str, str] = {}
        """Sentences on what keeps this node from sealing, by cause."""

    def start(self) -> None:
        if (file := self._journal.snapshot()) is not None:
            self._tasks.spawn(self._serve(file), "seals: serve")
        self._tasks.spawn(self._run(), "seals: look")

    def facts(self) -> FactsStatus:
        """For people."""
        return FactsStatus(self._replication.seal_number, self._feeds.size, self._journal.size)

    def wake(self) -> None:
        """Something was said about seals, or who leads has changed."""
        self._woken.set()

    async def _run(self) -> None:
        while True:
            try:
                await self.step()
            except HiveError as error:
                log.warning("sealing waits", reason=str(error))
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                continue
            finally:
                self._woken.clear()

    # --- one look -------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Do what can be done now: put a closed seal in place; confirm what is proposed; propose and close."""
        async with self._stepping:
            while await self._settle():
                pass
            said = self._round()
            if (proposal := said.current) is not None and proposal.author != self._me:
                await self._confirm(said, proposal)
            if (epoch := self._leads()) is not None:
                await self._lead(self._round(), epoch)
            while await self._settle():
                pass

    def _round(self) -> Round:
        return Round.of(self._replication.seal_number + 1, self._feeds.entries(), self._may_lead)

    def _may_lead(self, node: str) -> bool:
        return self._roles.may(node, Role.coordinator)

    async def _settle(self) -> bool:
        """Put a seal in place that is closed and whose snapshot we can make."""
        for proposal, certificate in self._round().certificates():
            if proposal.body.digest in self._refused:
                continue
            made = await self._maker.of(proposal.body)
            if made is None or made.snapshot.digest != proposal.body.digest:
                continue  # it is offered by those who have it
            try:
                await paced(judge(certificate, made.snapshot, self._hive_id))
            except Unconfirmed:
                continue  # a confirmation may come later than the closing, which follows it in another feed
            except Refused as error:
                self._refuse(proposal.body.digest, error)
                continue
            return await self._begin(made.snapshot, sealed_file(certificate, made.data))
        return False

    async def _confirm(self, said: Round, proposal: Proposal) -> None:
        body = proposal.body
        closings = [p for p, _ in said.certificates() if p.body.digest not in self._refused]
        closed_by_us = any(closing.author == self._me for closing in closings)
        if closed_by_us or self._me in said.confirmed(body.digest) or not self._sensible(body):
            return
        cuts = self._feeds.cuts(body.horizon)
        if digest_of(cuts) != body.cut:
            return  # one of the two lacks something: it comes, or is proposed anew
        made = await self._maker.of(body)
        if made is None:
            return
        if made.snapshot.digest != body.digest:
            self.alarms["seal"] = (
                f"What {self._roles.name(proposal.author)} proposes to seal is not what follows from the same events "
                "on this node. Nothing is sealed until they agree: run the same version of hivenode on both."
            )
            log.error("a seal is not confirmed: another snapshot follows here", number=body.number,
                      theirs=body.digest[:12], ours=made.snapshot.digest[:12], author=proposal.author)  # fmt: skip
            return
        self.alarms.pop("seal", None)
        await self._maker.keep(body.horizon, cuts)
        if digest_of(self._feeds.cuts(body.horizon)) == body.cut:  # what has come meanwhile must not be left out
            await self._replication.append(SealConfirmed(number=body.number, digest=body.digest))

    def _sensible(self, body: SealProposed) -> bool:
        """Whether a proposal seals nothing too young and forgets nothing too soon, by half of our own settings."""
        young = seconds(body.horizon) > self._wall() - self._rules.after / 2
        soon = seconds(body.forget) > seconds(body.horizon) - self._rules.keep / 2
        if soon:
            self.alarms["seal"] = (
                "The coordinator would forget ended jobs much sooner than this node is set to: "
                "set feeds.keep_jobs_days alike on all nodes."
            )
        return not young and not soon and body.horizon > self._views.horizon

    # --- proposing and closing ------------------------------------------------------------------------------------

    async def _lead(self, said: Round, epoch: Epoch) -> None:
        own, current = said.closable(self._me), said.current
        if own is not None and await self._stands(own):
            await self._close(said, own)
            return
        if own is None and current is not None and current.body.epoch >= epoch and current.author != self._me:
            return
        horizon = _reading(self._wall() - self._rules.after)
        if self._feeds.older(horizon) < self._rules.events:
            return
        cuts = self._feeds.cuts(horizon)
        absent = [node for node in cuts if not self._roles.revoked(node) and node not in self._present()]
        waits = set(absent).difference(self._excusable(absent))
        if waits or self._coordinators_lack(cuts):
            return
        forget = _reading(max(0.0, seconds(horizon) - self._rules.keep))
        made = await self._maker.take(horizon, forget, cuts)
        if made is None or len(made.data) > MAX_BYTES // 2 or self._leads() != epoch:
            return
        grant = made.snapshot.members.get(self._me)
        if grant is None or Role.coordinator not in grant.roles:
            return  # too new here for others to take its word
        await self._maker.keep(horizon, cuts)
        number = self._replication.seal_number + 1
        await self._replication.append(
            SealProposed(
                number=number, epoch=epoch, horizon=horizon, forget=forget, cut=made.cut, digest=made.snapshot.digest
            )
        )
        log.info("seal proposed", number=number, epoch=str(epoch), events=self._feeds.older(horizon),
                 bytes=len(made.data))  # fmt: skip
        fresh = self._round()
        if (own := fresh.closable(self._me)) is not None:
            await self._close(fresh, own)

    async def _stands(self, own: Proposal) -> bool:
        """Whether we would propose the same today; else those who know what has come since could never confirm it."""
        if digest_of(self._feeds.cuts(own.body.horizon)) != own.body.cut:
            return False
        made = await self._maker.of(own.body)
        return made is not None and made.snapshot.digest == own.body.digest

    async def _close(self, said: Round, own: Proposal) -> None:
        """Close our own proposal if everyone has confirmed it who has to."""
        made = await self._maker.of(own.body)
        if made is None or made.snapshot.digest != own.body.digest:
            return
        members = made.snapshot.members
        confirmed = {self._me, *said.confirmed(own.body.digest)}
        silent = [node for node in members if node not in confirmed]
        excused = self._excusable(silent)
        waits = [node for node in silent if node not in excused]
        late = self._wall() - seconds(own.entry.event.hlc) > self._rules.patience / 10
        if waits and late:
            self.alarms["close"] = (
                f"{', '.join(self._roles.name(node) for node in waits[:4])} has not confirmed what is to be sealed: "
                "see that node's `hivenode doctor`, or revoke it if it is gone for good."
            )
        if waits or too_many(members, confirmed):
            return
        self.alarms.pop("close", None)
        closing = SealClosed(number=own.body.number, digest=own.body.digest, excused=excused)
        await self._replication.append(closing)

    def _excusable(self, nodes: list[str]) -> tuple[str, ...]:
        return excusable(
            nodes,
            present=self._present(),
            revoked=self._roles.revoked,
            heard=self._feeds.heard,
            since=_reading(self._wall() - self._rules.patience),
        )

    def _coordinators_lack(self, cuts: dict[str, Cut]) -> bool:
        """Whether fewer than half of those who may coordinate are there: the rest may be going on without us."""
        may = [node for node in self._roles.holders(Role.coordinator) if node in cuts]
        return 2 * sum(node in self._present() for node in may) < len(may)

    async def _begin(self, snapshot: Snapshot, file: bytes) -> bool:
        if not await self._replication.seal(snapshot, file):
            return False
        self._maker.drop()
        self._refused.clear()
        self.alarms.clear()
        self._on_sealed()
        await self._serve(file)
        return True

    @property
    def file(self) -> BlobRef | None:
        """The latest seal, as it is passed on."""
        return self._file

    # --- passing seals on -----------------------------------------------------------------------------------------

    async def _serve(self, file: bytes) -> None:
        """Have the latest seal where others can fetch it, and no earlier one."""
        digest = await paced(_digest(file))
        earlier = (self._journal.cell(FILE) or b"").decode()
        if not self._blobs.has(digest):
            await self._journal.set_cell(FILE, digest.encode())
            await self._blobs.put_bytes(file)
        elif earlier != digest:
            await self._journal.set_cell(FILE, digest.encode())
        if earlier and earlier != digest:
            await self._blobs.delete(earlier)
        self._file = BlobRef(digest, len(file))

    def heard(self, peer: str, heads: FeedHeads) -> None:
        """A peer has said what it holds."""
        sealed = self._replication.sealed
        if sealed is None:
            return
        number = sealed.header.number
        told = sealed.digest if heads.seal == number else None
        if 0 < heads.seal < number:
            told = sealed.header.history[heads.seal - 1]
        if told is not None and heads.digest != told:
            self._conflict(peer, heads.seal)
            return
        now = asyncio.get_running_loop().time()
        lately = now - self._offered.get(peer, -OFFER_SECONDS) < OFFER_SECONDS
        if heads.seal < number and self._file is not None and not lately:
            self._offered = {p: at for p, at in self._offered.items() if now - at < OFFER_SECONDS} | {peer: now}
            self._send(peer, SealOffered(number=number, digest=sealed.digest, blob=self._file))

    def offered(self, peer: str, offer: SealOffered) -> None:
        """A peer has a later seal than we."""
        refused = offer.digest in self._refused or offer.blob.digest in self._refused
        if offer.number > self._replication.seal_number and not self._fetching and not refused:
            if offer.blob.size > MAX_BYTES:
                self._on_offender(peer, "it offers a seal that is too large")
                return
            self._fetching = True
            self._tasks.spawn(self._catch_up(peer, offer), "seals: catch up")

    async def _catch_up(self, peer: str, offer: SealOffered) -> None:
        ours = self._blobs.has(offer.blob.digest)  # whoever offers a seal names bytes as it likes: a model, perhaps
        try:
            await self.step()  # perhaps we can make it ourselves
            if offer.number <= self._replication.seal_number:
                return
            await self._fetch(peer, offer.blob, self._blobs)
            file = await self._blobs.read(offer.blob.digest, limit=MAX_BYTES)
            async with self._stepping:
                await self._take_over(peer, offer, file)
        except HiveError as error:
            log.warning("a seal could not be fetched", peer=peer, number=offer.number, reason=str(error))
        finally:
            self._fetching = False
            if not ours and (self._file is None or offer.blob.digest != self._file.digest):
                await self._blobs.delete(offer.blob.digest)

    async def _take_over(self, peer: str, offer: SealOffered, file: bytes) -> None:
        try:
            certificate, data = open_file(file)
            snapshot = await paced(read(data, self._views.folds, self._feeds.authority_key))
            await paced(judge(certificate, snapshot, self._hive_id))
            if (snapshot.digest, snapshot.header.number) != (offer.digest, offer.number):
                raise Refused("A seal is not the one that was offered.", fix="Look at who sent it.")
        except Refused as error:
            self._refuse(offer.blob.digest, error)  # these bytes, not the seal that they pretend to be
            self._on_offender(peer, error.sentence)
            return
        if snapshot.header.number <= self._replication.seal_number:
            return
        if trouble := self._contradiction(certificate, snapshot):
            self._refuse(offer.digest, trouble)
            return
        await self._begin(snapshot, file)

    def _contradiction(self, certificate: Certificate, snapshot: Snapshot) -> Refused | None:
        """What we know ourselves that a valid seal leaves out or says otherwise."""
        header, sealed = snapshot.header, self._replication.sealed
        if sealed is not None and header.history[sealed.header.number - 1] != sealed.digest:
            self._conflict(certificate.proposal.author, sealed.header.number)
            return _split()
        known = [node for node in self._roles.holders(Role.coordinator) if self._feeds.began(node, header.horizon)]
        if 2 * sum(node in header.cuts for node in known) < len(known):
            return Refused(
                "A seal knows nothing of most coordinators that this node has long known.",
                fix="Look at who coordinates the hive; if this node is the one in error, invite it anew.",
            )
        if author := self._feeds.agrees(header.cuts):
            return Refused(
                f"The feed of {self._roles.name(author)} forked: what is sealed of it is not what is held here.",
                fix="Invite the node whose feed forked anew; if it is this one, give it a new home.",
            )
        return None

    def _refuse(self, digest: str, error: Refused) -> None:
        log.error("a seal is refused", digest=digest[:12], reason=str(error))
        self._refused = dict([*self._refused.items(), (digest, None)][-64:])
        self.alarms["refused"] = str(error)

    def _conflict(self, peer: str, number: int) -> None:
        name = self._roles.name(peer)
        log.error("two different seals under one number", number=number, peer=peer)
        self.alarms["conflict"] = (
            f"{name} has sealed other facts than this node (seal {number}): the hive was split for longer than "
            "feeds.patience_days, and the two histories cannot be made one. Decide which goes on; every node of the "
            "other one joins anew with a new home."
        )


def _digest(file: bytes) -> Steps[str]:
    state, view = hashlib.sha256(), memoryview(file)
    for at in range(0, len(file), HASH_AT_ONCE):
        state.update(view[at : at + HASH_AT_ONCE])
        yield
    return state.hexdigest()


def _split() -> Refused:
    return Refused("A seal goes on from another one than ours.", fix="See `hivenode status` for what to do.")


def _reading(moment: float) -> int:
    """Hybrid clock reading of a moment in seconds since 1970."""
    return max(0, int(moment * 1000)) << 16
