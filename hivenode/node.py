"""The composition root of a node: builds every service, hands each what it needs, starts and stops them.

Everything that touches the world (network, disk, worker processes, wall clock, randomness) is handed in, so the same
node runs as a daemon and in simulation.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from hivenode import __version__
from hivenode.admin.doctor import Doctor, Instruments
from hivenode.admin.health import complaints
from hivenode.admin.members import Members
from hivenode.admin.notices import Notices
from hivenode.admin.service import Parts, Service, plain
from hivenode.catalog.holders import Keeper
from hivenode.catalog.models import Catalogue, Holders
from hivenode.config import Settings
from hivenode.errors import Conflict, HiveError, Unavailable
from hivenode.hive.address_book import AddressBook
from hivenode.hive.admission import Admission
from hivenode.hive.clock import HybridClock
from hivenode.hive.contacts import Contacts
from hivenode.hive.council import FULL, council
from hivenode.hive.election import Election, ElectionSettings
from hivenode.hive.feeds import Entry, Feeds
from hivenode.hive.leadership import Electorate, Leadership
from hivenode.hive.membership import Membership
from hivenode.hive.mesh import Mesh
from hivenode.hive.pairing_desk import PairingDesk
from hivenode.hive.papers import Papers
from hivenode.hive.replication import Replication
from hivenode.hive.roles import Roles
from hivenode.hive.sealer import DAY, Sealer, SealRules
from hivenode.hive.standing import UNABLE, SelfAssessment, Signs
from hivenode.hive.swim import PRESENT, PROFILES, Member, MemberState, Swim
from hivenode.hive.views import Views
from hivenode.jobs.coordinator import Coordinator
from hivenode.jobs.desk import Desk, ReadableJobLog
from hivenode.jobs.executor import Executor, Workspace
from hivenode.jobs.host import WorkerHost
from hivenode.jobs.ledger import Ledger
from hivenode.jobs.leftovers import Leftovers
from hivenode.jobs.live import Live
from hivenode.jobs.predictor import Predictor
from hivenode.jobs.proposals import Proposer
from hivenode.jobs.results import Results
from hivenode.logs import get_logger
from hivenode.net.calls import Calls
from hivenode.net.local import WorkerLimits
from hivenode.net.messages import (
    Ack,
    Call,
    FeedDelta,
    FeedHeads,
    FeedSummary,
    Gossip,
    Heartbeat,
    HeartbeatAck,
    Message,
    Nack,
    Ping,
    PingRequest,
    ProfileReply,
    Progress,
    PushPull,
    Reply,
    Request,
    Response,
    SealOffered,
    Sums,
    VoteReply,
    VoteRequest,
)
from hivenode.net.transport import LinkEnd, Transport
from hivenode.planning.qtable import Experience
from hivenode.spec.events import (
    AttemptEnded,
    CheckpointSaved,
    JobCancelled,
    JobGivenUp,
    ModelRegistered,
    NodeAdmitted,
    SealClosed,
    SealConfirmed,
    SealProposed,
)
from hivenode.spec.status import JoinResult, NodeService
from hivenode.spec.values import Epoch, Role
from hivenode.store.ports import BlobStore, Journal
from hivenode.tasks import Signal, TaskGroup
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import verify

BOOT = "boot"
BOOT_EPOCH = 1_577_836_800
"""2020-01-01: the boot counter begins at the seconds since then."""
MAX_CLOCK_BOOT = (1 << 31) - (1 << 24)
"""To what a clock may bring it: there are 31 bits."""
LAG_SECONDS = 0.1
LOOK_AT_LAG_SECONDS = 0.5
ASSESS_SECONDS = 1.0
"""Between two looks at how fit this node is to coordinate."""
ELECTORATE_SECONDS = 0.1
"""How long the election is spared news of members unless they go, to hear several at once."""
FEED_FANOUT = 4
"""Links to which events heard from another are passed on, where there are links to some members only."""
LOOK_FURTHER_SECONDS = 10.0
"""How long a node that reaches nobody tries the same members."""

log = get_logger("node")


@dataclass(frozen=True)
class Ports:
    """The world as a node sees it.

    Args:
        wall: seconds since 1970.
        limits: what one worker may use.
        profile: this machine as measured, once it is (`running` and `paused` are filled in here).
        join: leave this hive for the token's; the daemon restarts the node afterwards.
        stop: ask the process to end.
        admin_url: where the admin endpoint listens.
        free: bytes left on the disk that the blobs are on.
    """

    transport: Transport
    journal: Journal
    blobs: BlobStore
    workers: WorkerHost
    workspace: Workspace
    job_log: ReadableJobLog
    wall: Callable[[], float]
    rng: random.Random
    limits: Callable[[], WorkerLimits]
    profile: Callable[[], Awaitable[ProfileReply]]
    join: Callable[[str], Awaitable[JoinResult]]
    stop: Callable[[], None]
    admin_url: Callable[[], str]
    home: str
    free: Callable[[], int]
    seeds: tuple[str, ...] = ()
    """Addresses at which a member may answer."""
    instruments: Instruments | None = None
    """For the doctor; None where there is no real network."""
    on_battery: Callable[[], bool] = lambda: False
    """Whether the machine runs on battery now."""
    adopt: Callable[[Credentials], None] = lambda credentials: None
    """Keep new credentials on disk, and show their certificate from here on."""
    pair: Callable[[str, str], Awaitable[JoinResult]] | None = None
    """Join with a pairing code, of the member at an address or, with "", of one heard nearby."""
    appeal: Callable[[str, str], Awaitable[str]] | None = None
    """Ask for a new certificate without a link: member's id and address."""
    fail: Callable[[HiveError], None] | None = None
    """Ask the process to end with an error; None: just to end."""


class Node:
    """One member of one hive. `start` brings it up, `stop` takes it down in good order; it is not started twice."""

    def __init__(self, settings: Settings, credentials: Credentials, ports: Ports) -> None:
        self._settings = settings
        self._credentials = credentials
        self._ports = ports
        self.me = credentials.identity.node_id
        self.hive = credentials.hive_id
        self.name = settings.node.name
        self._tasks = TaskGroup(self._task_failed)
        self._changed = Signal()
        self._troubles: dict[str, str] = {}
        self._addresses: tuple[str, ...] = ()
        self._ready = False
        self._electorate_timer: asyncio.TimerHandle | None = None
        self._lag_timer: asyncio.TimerHandle | None = None
        self._newcomers: dict[str, None] = {}
        """Nodes of whose admission we have just heard."""
        self._forged = ""
        """Whose signature was wrong in the message being handled."""
        self._build_views()

    def _build_views(self) -> None:
        self.roles = Roles(self._credentials.authority_key, self._credentials.grant)
        self.ledger = Ledger(self._credentials.authority_key)
        self.catalogue = Catalogue(self.ledger.models)
        self.holders = Holders()
        self.experience = Experience()
        self.live = Live()
        self.views = Views([self.roles, self.ledger, self.holders, self.experience])
        self.feeds = Feeds(self._credentials.hive_id, self._credentials.authority_key)
        self.notices = Notices(self._ports.wall)
        self.book = AddressBook(
            me=self.me,
            transport=self._ports.transport,
            journal=self._ports.journal,
            roles=self.roles,
            members=lambda: self.membership.members,
            mesh=Mesh(self.me, self._credentials.hive_id, self._settings.network.full_mesh),
            rng=self._ports.rng,
        )
        self.contacts = Contacts(self._ports.wall)

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring everything up. Raises Conflict (port), Corrupted (journal), Exhausted (disk)."""
        ports, identity = self._ports, self._credentials.identity
        self._alone = not (self.book.remembered or ports.seeds)
        # By the clock too, so that a key in a new or restored home speaks above what it said in an earlier one.
        boot = int.from_bytes(ports.journal.cell(BOOT) or b"", "big") + 1
        boot = max(boot, min(MAX_CLOCK_BOOT, int(ports.wall()) - BOOT_EPOCH))
        await ports.journal.set_cell(BOOT, boot.to_bytes(8, "big"))
        self.clock = HybridClock(ports.wall)
        self.calls = Calls(ports.transport.send, lambda peer, request: self.desk.serve(peer, request))
        self.replication = Replication(
            identity=identity,
            grant=self._credentials.grant,
            feeds=self.feeds,
            views=self.views,
            journal=ports.journal,
            clock=self.clock,
            links=lambda: ports.transport.links,
            send=ports.transport.send,
            rng=ports.rng,
            sync_seconds=self._settings.feeds.sync_seconds,
            wall=ports.wall,
            on_change=self._facts_changed,
            on_offender=self._offended,
            on_trouble=self._assess,
            fanout=lambda: FEED_FANOUT if self.book.partial else 0,
            expects_peers=not self._alone,
            tasks=self._tasks,
        )
        await self.replication.start()
        self._build_sealer()
        self._build_jobs()
        self.papers.start()
        self._addresses = await ports.transport.start(self)
        swim = Swim(
            self.me,
            name=self.name,
            addresses=self._addresses,
            version=__version__,
            boot=boot,
            profile=replace(
                PROFILES[self._settings.membership.profile], whole_push_pull=self._settings.network.full_mesh
            ),
            rng=ports.rng,
            sign=identity.sign,
            verify=self._verify,
            dials=self.book.dials,
        )
        self.membership = Membership(swim, ports.transport, self._member_changed, self._let_go, self._conflict)
        self._assessment = SelfAssessment(self._settings.election.priority, asyncio.get_running_loop().time())
        self.leadership = self._build_leadership()
        self.admission = Admission(
            self._credentials.hive_id,
            self.papers,
            ports.journal,
            wall=ports.wall,
            rng=ports.rng,
            addresses=self._seed_addresses,
            present=self._present,
            roles=self.roles,
            counted=self.feeds.counted,
            append=self.replication.append,
            admitted=lambda invite, name: self.pairing.admitted(invite, name),
        )
        self.pairing = PairingDesk(
            wall=ports.wall,
            may_invite=lambda: self.papers.require("let nobody in", "Show the code"),
            invite=self.admission.invite,
        )
        self.service: NodeService = Service(self._parts())
        self._ready = True
        self.membership.start()
        self.leadership.start(alone=self._alone)
        self._assess()
        self._electorate()
        self.sealer.start()
        self.book.open(ports.seeds)
        self._measure_lag(asyncio.get_running_loop().time())
        self._tasks.spawn(self._keep_assessing(), "node: standing")
        self._tasks.spawn(self._look_further(), "node: look further")
        self._tasks.spawn(self.results.tidy(), "node: tidy")
        self._tasks.spawn(Leftovers(ports.blobs, self._names).run(), "node: leftovers")

    async def stop(self) -> None:
        """Hand over, say goodbye, end workers and links, close the journal."""
        if self._ready:
            await self.leadership.resign()
            self.coordinator.lead(None)
            self.membership.leave()
            self._ready = False
        for timer in (self._lag_timer, self._electorate_timer):
            if timer is not None:
                timer.cancel()
        await self._ports.workers.close()
        await self._ports.transport.stop()
        await self._tasks.close()
        if hasattr(self, "calls"):
            await self.calls.close()
        await self._ports.journal.close()

    def _build_leadership(self) -> Leadership:
        ports, election = self._ports, self._settings.election
        settings = ElectionSettings(
            heartbeat=election.heartbeat_seconds,
            timeout=election.timeout_seconds,
            quorum=election.quorum,
            transfer=election.transfer_seconds,
        )
        return Leadership(
            lambda state: Election(self.me, settings=settings, rng=ports.rng, state=state),
            ports.transport,
            ports.journal,
            self._leader_changed,
            self._assess,
            self._tasks,
            handover_seconds=settings.window,
        )

    def _build_sealer(self) -> None:
        ports, feeds = self._ports, self._settings.feeds
        self.sealer = Sealer(
            me=self.me,
            hive_id=self._credentials.hive_id,
            rules=SealRules(
                events=feeds.seal_events,
                after=feeds.seal_after_days * DAY,
                patience=feeds.patience_days * DAY,
                keep=feeds.keep_jobs_days * DAY,
            ),
            replication=self.replication,
            feeds=self.feeds,
            views=self.views,
            roles=self.roles,
            journal=ports.journal,
            blobs=ports.blobs,
            leads=self._leads,
            present=self._alive,
            fetch=ports.transport.fetch,
            send=ports.transport.send,
            wall=ports.wall,
            on_sealed=self._sealed,
            on_offender=self._offended,
            tasks=self._tasks,
        )

    def _build_jobs(self) -> None:
        ports, settings = self._ports, self._settings
        append = self.replication.append
        self.papers = Papers(
            self._credentials,
            lifetime=timedelta(days=settings.trust.certificate_days),
            wall=ports.wall,
            rng=ports.rng,
            roles=self.roles,
            links=lambda: ports.transport.links,
            doors=self._doors,
            call=self.calls.call,
            appeal=ports.appeal or _nobody_answers,
            adopt=ports.adopt,
            tasks=self._tasks,
        )
        self.keeper = Keeper(
            me=self.me,
            transport=ports.transport,
            call=self.call_node,
            blobs=ports.blobs,
            append=append,
            room_bytes=settings.jobs.hold_gb << 30,
            free=ports.free,
            concerns=self._concerns,
        )
        self.results = Results(
            me=self.me,
            copies=settings.jobs.copies,
            blobs=ports.blobs,
            keeper=self.keeper,
            ledger=self.ledger,
            live=self.live,
            catalogue=self.catalogue,
            holders=self.holders,
            append=append,
            candidates=self._workers,
            gone=self._gone,
            changed=self._changed,
        )
        self.executor = Executor(
            me=self.me,
            node_name=self.name,
            limits=ports.limits,
            worker_host=self._worker_host,
            ports=settings.worker.ports,
            host=ports.workers,
            workspace=ports.workspace,
            blobs=ports.blobs,
            journal=ports.journal,
            keeper=self.keeper,
            results=self.results,
            ledger=self.ledger,
            append=append,
            broadcast=self._broadcast,
            gone=self._gone,
            refuse=lambda: self.desk.paused,
            highest=lambda: self.leadership.highest,
            job_log=ports.job_log,
            wall=ports.wall,
            tasks=self._tasks,
        )
        self.desk = Desk(
            me=self.me,
            name=self.name,
            enabled=settings.worker.enabled,
            max_jobs=settings.worker.max_jobs,
            roles=self.roles,
            executor=self.executor,
            keeper=self.keeper,
            papers=self.papers,
            profile=ports.profile,
            job_log=ports.job_log,
        )
        self.predictor = Predictor(ports.workers, ports.limits)
        self.proposer = Proposer(
            me=self.me,
            call=self.call_node,
            workers=self._workers,
            name=self.roles.name,
            latency=lambda node: self.membership.latency(node),
            experience=self.experience,
        )
        self.coordinator = Coordinator(
            ledger=self.ledger,
            live=self.live,
            proposer=self.proposer,
            call=self.call_node,
            append=append,
            alive=self._alive,
            name=self.roles.name,
            outbid=lambda epoch: self.leadership.outbid(epoch),
            max_attempts=settings.jobs.max_attempts,
            changed=self._changed,
            tasks=self._tasks,
        )

    def _parts(self) -> Parts:
        ports = self._ports
        return Parts(
            me=self.me,
            name=self.name,
            hive=self._credentials.hive_id,
            home=ports.home,
            started=asyncio.get_running_loop().time(),
            transport=ports.transport,
            membership=self.membership,
            leadership=self.leadership,
            roles=self.roles,
            ledger=self.ledger,
            live=self.live,
            catalogue=self.catalogue,
            holders=self.holders,
            coordinator=self.coordinator,
            proposer=self.proposer,
            predictor=self.predictor,
            keeper=self.keeper,
            blobs=ports.blobs,
            notices=self.notices,
            append=self.replication.append,
            call=self.call_node,
            wall=ports.wall,
            rng=ports.rng,
            health=lambda: complaints(
                self.me,
                {**self._troubles, "certificate": self.papers.trouble},
                self.roles,
                self.replication,
                self.sealer,
            ),
            facts=self.sealer.facts,
            admin_url=ports.admin_url,
            addresses=lambda: self._addresses,
            members=self._members(),
            invite=self.admission.invite,
            join=ports.join,
            pair=ports.pair or _nobody_pairs,
            stop=ports.stop,
        )

    def _members(self) -> Members:
        transport = self._ports.transport
        return Members(
            me=self.me,
            hive=self._credentials.hive_id,
            transport=transport,
            membership=self.membership,
            leadership=self.leadership,
            roles=self.roles,
            contacts=self.contacts,
            admission=self.admission,
            examiner=Doctor(
                me=self.me,
                addresses=self._addresses,
                transport=transport,
                membership=self.membership,
                roles=self.roles,
                contacts=self.contacts,
                papers=self.papers,
                instruments=self._ports.instruments,
            ),
            desk=self.pairing,
        )

    # --- the transport's handler ----------------------------------------------------------------------------------

    def link_up(self, peer: str, address: str) -> None:
        if not self._ready or self.roles.revoked(peer):
            self._ports.transport.drop(peer, LinkEnd.local)
            return
        self.contacts.linked(peer, address)
        log.info("linked", peer=self.roles.name(peer), peer_id=peer, address=address)
        self.replication.link_up(peer)
        self.membership.link_up(peer)
        self._links_changed()
        self.papers.look()

    def link_down(self, peer: str, why: LinkEnd) -> None:
        if self._ready:
            log.info("link ended", peer=self.roles.name(peer), peer_id=peer, why=why.value)
            if why is not LinkEnd.idle:  # what was asked may still be answered
                self.calls.link_down(peer)
            self.membership.link_down(peer, why)
            self._links_changed()

    def dial_failed(self, peer: str, address: str, why: LinkEnd, detail: str) -> None:
        if self._ready:
            log.debug("dial failed", peer=peer, address=address, why=why.value, detail=detail)
            self.contacts.failed(peer, address, why, detail)
            if peer:
                self.membership.dial_failed(peer, why)

    def received(self, peer: str, message: Message) -> None:
        if not self._ready or self.roles.revoked(peer):
            return
        self.contacts.heard(peer)
        self._forged = ""
        match message:
            case Ping() | Ack() | PingRequest() | Nack() | Gossip() | PushPull() | Sums():
                self.membership.receive(peer, message)
            case VoteRequest() | VoteReply() | Heartbeat():
                if self.roles.may(peer, Role.coordinator):
                    self.leadership.receive(peer, message)
            case HeartbeatAck():  # any follower may say that it is bound to another epoch
                self.leadership.receive(peer, message)
            case FeedHeads() | FeedSummary() | FeedDelta():
                self.replication.received(peer, message)
                if isinstance(message, FeedHeads):
                    self.sealer.heard(peer, message)
            case SealOffered():
                self.sealer.offered(peer, message)
            case Progress():
                if message.node == peer and message.job in self.ledger.jobs:
                    self._hear(message)
            case Call() | Reply():
                self.calls.received(peer, message)
        if self._forged:  # whoever passes statements on has checked them
            self._offended(peer, f"it passed on a statement that {self.roles.name(self._forged)} did not sign")

    async def call_node(self, peer: str, request: Request, timeout: float) -> Response:
        """Ask a node, this one included, and await its answer, at most `timeout` seconds."""
        if peer == self.me:
            return await self.desk.ask_ourselves(request, timeout)
        return await self.calls.call(peer, request, timeout)

    # --- what happened ------------------------------------------------------------------------------------------

    def _facts_changed(self, entries: Sequence[Entry]) -> None:
        bodies = [entry.body for entry in entries]
        if not self._ready:
            return
        admitted = [entry.event.author for entry in entries if isinstance(entry.body, NodeAdmitted)]
        if admitted:
            self._heed_grants(entries)
            self.papers.look()
            self._newcomers.update(dict.fromkeys(admitted))
            self._electorate_soon()
        self.executor.ledger_changed()
        if any(isinstance(body, CheckpointSaved | AttemptEnded | JobCancelled | JobGivenUp) for body in bodies):
            self._tasks.spawn(self.results.tidy(), "node: tidy")
        touched = dict.fromkeys(job for body in bodies if (job := getattr(body, "job", "")))
        for job in touched:
            if job in self.ledger.jobs:
                self.notices.tell("job", plain(self.service.job(job).summary))
        registered = {body.job for body in bodies if isinstance(body, ModelRegistered)}
        for version in self.catalogue.versions if registered else ():
            if version.job in registered:
                self.notices.tell("model", {"model": version.reference, "job": version.job})
        if any(isinstance(body, SealProposed | SealConfirmed | SealClosed) for body in bodies):
            self.sealer.wake()
        self._changed.notify()

    def _sealed(self) -> None:
        """Facts may have come all at once, with a snapshot."""
        if not self._ready:
            return
        self._heed_grants(())
        self.papers.look()
        self._electorate()
        for peer in self._ports.transport.links:
            self.membership.link_up(peer)
        self.executor.ledger_changed()
        self._tasks.spawn(self.results.tidy(), "node: tidy")
        self._changed.notify()

    def _leads(self) -> Epoch | None:
        leader = self.leadership.leader
        return leader if leader is not None and leader.node == self.me else None

    def _heed_grants(self, entries: Sequence[Entry]) -> None:
        """The authority has spoken: part from whoever is revoked, seek out whoever may come back."""
        transport = self._ports.transport
        if self.roles.revoked(self.me):
            known = (member.node for member in self.membership.members)
            for peer in dict.fromkeys([*self.book.sought, *known, *transport.links]):
                self.book.strike(peer)
                transport.drop(peer, LinkEnd.local)
            self.executor.expelled()
            return
        for grant in self.roles.grants:
            if grant.revokes and self.book.addresses(grant.node) is not None:
                self._let_go(grant.node)
            if grant.revokes:
                # It is told why before the door closes: a link that ends by our own will is flushed first.
                transport.send(grant.node, FeedDelta(events=tuple(entry.event for entry in entries)))
                transport.drop(grant.node, LinkEnd.local)
                transport.forget(grant.node)
                self.membership.expel(grant.node)
        self.book.seek_all()

    def _member_changed(self, member: Member, was: MemberState | None) -> None:
        present = member.state in PRESENT
        if member.node != self.me:
            if member.state is MemberState.left:
                self._let_go(member.node)
            elif self.book.addresses(member.node) != member.addresses or present != (was in PRESENT):
                self.book.seek(member.node, member.addresses, present=present)
                self._tasks.spawn(self.book.remember(), "node: remember peers")
            if not present and was in PRESENT:
                self.executor.node_gone(member.node)
        if present:
            self._electorate_soon()  # it comes, or says something of its standing, and hardly alone
        else:
            self._electorate()
        self.notices.tell(
            "member",
            {"node": member.node, "name": member.name, "state": member.state.value, "was": was.value if was else ""},
        )
        self._changed.notify()

    def _let_go(self, node: str) -> None:
        self.book.strike(node)
        self.contacts.forget(node)
        self._tasks.spawn(self.book.remember(), "node: remember peers")

    def _leader_changed(self, epoch: Epoch | None) -> None:
        self.coordinator.lead(epoch if epoch is not None and epoch.node == self.me else None)
        self._assess()
        self._tell_coordinator(epoch)
        self._changed.notify()

    def _tell_coordinator(self, epoch: Epoch | None) -> None:
        self.notices.tell(
            "coordinator",
            {
                "node": epoch.node if epoch else "",
                "name": self.roles.name(epoch.node) if epoch else "",
                "epoch": str(epoch) if epoch else "",
                "counter": epoch.counter if epoch else self.leadership.highest.counter,
                "waiting": self.leadership.waiting,
            },
        )

    def _broadcast(self, progress: Progress) -> None:
        self._hear(progress)
        job, leader = self.ledger.jobs.get(progress.job), self.leadership.leader
        watching = (leader.node if leader else "", job.submitter if job else "")
        for peer in dict.fromkeys((*self._ports.transport.links, *watching)):
            if peer not in ("", self.me):
                self._ports.transport.send(peer, progress)

    def _hear(self, progress: Progress) -> None:
        before = self.live.state(progress.job, progress.attempt, progress.node)
        if self.live.hear(progress, asyncio.get_running_loop().time()):
            told = {**plain(progress), "state": progress.state, "name": self.roles.name(progress.node)}
            self.notices.tell("progress", told)
            if progress.state != before:
                self._changed.notify()

    def _conflict(self, addresses: tuple[str, ...]) -> None:
        where = ", ".join(addresses)
        alarm = Conflict(
            f"The key of this node is in use on another machine{f', at {where}' if where else ''}, so this one stops.",
            fix=f"Keys are never copied: remove {self._ports.home} here and invite this machine anew. If you do not "
            "know the other machine, somebody has taken the key: revoke the node.",
        )
        log.error("this node's key is in use on another machine; stopping", addresses=list(addresses))
        self._troubles["conflict"] = str(alarm)
        if self._ports.fail is not None:
            self._ports.fail(alarm)
        else:
            self._ports.stop()

    def _task_failed(self, name: str, error: BaseException) -> None:
        if isinstance(error, HiveError):
            log.warning("background work failed", task=name, reason=str(error))
            return
        log.error("internal error", task=name, error=repr(error), exc_info=error)
        self._troubles[name] = f"Internal error in {name}: {error!r}. Please report it with the log."

    # --- small things ---------------------------------------------------------------------------------------------

    def _verify(self, node: str, signature: bytes, data: bytes) -> bool:
        key = self.roles.public_key(node)
        if key is None or self.roles.revoked(node):
            return False
        if verify(key, signature, data):
            return True
        self._forged = node
        return False

    def _offended(self, peer: str, reason: str) -> None:
        """A peer did what no honest node does."""
        log.warning(
            "a peer broke the rules; its link is ended", peer=self.roles.name(peer), peer_id=peer, reason=reason
        )
        self._ports.transport.drop(peer, LinkEnd.protocol)
        self.contacts.offended(peer, "", reason)

    def _electorate_soon(self) -> None:
        if self._electorate_timer is None:
            self._electorate_timer = asyncio.get_running_loop().call_later(ELECTORATE_SECONDS, self._electorate)

    def _electorate(self) -> None:
        if self._electorate_timer is not None:
            self._electorate_timer.cancel()
            self._electorate_timer = None
        if not self._ready:
            return
        self._ask_again()
        present = {member.node: member for member in self.membership.members if member.state in PRESENT}
        alive = tuple(node for node in present if not self.roles.revoked(node))
        may = self.roles.holders(Role.coordinator)
        standings = {node: present[node].standing for node in may if node in present}
        able = tuple(node for node, standing in standings.items() if standing != UNABLE)
        voters = able if self._settings.election.quorum else council(able, self.roles.serial)
        told = [Epoch(present[node].leads, node) for node in able if present[node].leads]
        waited = self.leadership.waiting
        self.leadership.electorate(
            Electorate(
                alive=able,
                known=tuple(node for node in may if self._known(node)),
                eligible=self.me in able,
                followers=alive if len(alive) <= FULL else self._near(alive),
                voters=voters,
                standings=standings,
                told=max(told, default=None),
            )
        )
        leading = self.leadership.leading
        self.book.need("heartbeats", alive if leading and len(alive) <= FULL else ())
        self.book.need("votes", voters if leading or self.me in voters else ())
        self.book.need("jobs", tuple(sorted(self.coordinator.executors)) if leading else ())
        if self.leadership.waiting != waited:
            self._tell_coordinator(self.leadership.leader)

    def _ask_again(self) -> None:
        """Ask for the statements of nodes whose admission we heard of later, unless we kept them."""
        newcomers, self._newcomers = list(self._newcomers), {}
        for node in newcomers:
            self.membership.admitted(node)
        newcomers = [node for node in newcomers if self.membership.member(node) is None]
        links = self._ports.transport.links if newcomers else ()
        for peer in [node for node in links if node in newcomers] or links[:1]:
            self.membership.link_up(peer)

    def _links_changed(self) -> None:
        if self.leadership.leading and self.membership.present > FULL:
            self._electorate()  # who is linked gets heartbeats

    def _near(self, alive: tuple[str, ...]) -> tuple[str, ...]:
        """Of a large hive, those that get heartbeats without being voters: who is linked, and who works for us."""
        links = {*self._ports.transport.links, *(self.coordinator.executors if self.leadership.leading else ())}
        return tuple(node for node in alive if node in links)

    def _assess(self) -> None:
        """Say how fit we are to coordinate, if that has changed, and whether we do."""
        if not self._ready:
            return
        now = asyncio.get_running_loop().time()
        reaches = self._ports.transport.reaches
        others = [node for node in self.leadership.voters if node != self.me]
        signs = Signs(
            able=self.leadership.able and not self.replication.trouble,  # who cannot write cannot coordinate
            battery=self._ports.on_battery(),
            health=self.membership.health,
            linked=sum(map(reaches, others)) / len(others) if others else 1.0,
        )
        leader = self.leadership.leader
        tells = leader is not None and leader.node == self.me and self.membership.present > FULL
        standing, leads = self._assessment.assess(now, signs), leader.counter if leader is not None and tells else 0
        if self.membership.declare(standing, leads):
            self._electorate()

    async def _keep_assessing(self) -> None:
        while True:
            await asyncio.sleep(ASSESS_SECONDS)
            self._assess()

    def _known(self, node: str) -> bool:
        member = self.membership.member(node)
        return member is None or member.state is not MemberState.left

    def _workers(self) -> tuple[str, ...]:
        """Alive members that may work, sorted by id."""
        alive = self._alive()
        return tuple(node for node in self.roles.holders(Role.worker) if node in alive)

    def _alive(self) -> tuple[str, ...]:
        """Members not known to be gone and not revoked, this node included, sorted."""
        return tuple(node for node in self.membership.alive if not self.roles.revoked(node))

    def _gone(self, node: str) -> bool:
        member = self.membership.member(node)
        return self.roles.revoked(node) or (member is not None and member.state not in PRESENT)

    def _names(self, digest: str) -> bool:
        """Whether anything speaks of these bytes: a job, a model, a member that says it holds them, a seal, or somebody
        who is about to."""
        seal = self.sealer.file
        return (
            self.ledger.names(digest)
            or bool(self.holders.of(digest))
            or (seal is not None and seal.digest == digest)
            or self.keeper.touched(digest)
        )

    def _concerns(self, peer: str, digest: str) -> bool:
        """Whether bytes that a peer speaks of are any business of the hive."""
        return self.ledger.works(peer) or self.ledger.names(digest)

    def _worker_host(self) -> str:
        """Where this node's workers listen for the others': the host of its first address."""
        return self._addresses[0].rpartition(":")[0].strip("[]")

    def _seed_addresses(self) -> tuple[str, ...]:
        """Addresses a joining node may try, our own first."""
        others = [a for m in self.membership.members if m.node != self.me and m.state in PRESENT for a in m.addresses]
        return tuple(dict.fromkeys([*self._addresses, *others]))[:16]

    def _present(self, node: str) -> tuple[str, ...] | None:
        member = self.membership.member(node)
        return member.addresses if member is not None and member.state is MemberState.alive else None

    def _doors(self) -> list[tuple[str, str]]:
        """Where members may answer, linked or not: ids ("" for a seed) and addresses."""
        known = {**self.book.remembered, **{member.node: member.addresses for member in self.membership.members}}
        return [
            *((node, address) for node, addresses in sorted(known.items()) for address in addresses),
            *(("", address) for address in self._ports.seeds),
        ]

    def found(self, node: str, addresses: tuple[str, ...]) -> None:
        """A hint from discovery: a node of this hive may be at these addresses."""
        if self._ready:
            self.book.hint(node, addresses)

    async def _look_further(self) -> None:
        while True:
            await asyncio.sleep(LOOK_FURTHER_SECONDS)
            self.book.look_further()

    def _measure_lag(self, due: float) -> None:
        """Look whether our own event loop comes round in time; `due`: when this was to be called."""
        loop = asyncio.get_running_loop()
        late = loop.time() - due
        if late > LAG_SECONDS:
            self.membership.lagged(late)
        again = loop.time() + LOOK_AT_LAG_SECONDS
        self._lag_timer = loop.call_at(again, self._measure_lag, again)


async def _nobody_answers(peer: str, address: str) -> str:
    raise Unavailable("There is no network.", fix="Ask a daemon.")


async def _nobody_pairs(code: str, address: str) -> JoinResult:
    raise Unavailable("There is no network.", fix="Ask a daemon.")
