"""What a node is made of: its parts, each where the others find it, and what they ask of the whole in passing."""

from __future__ import annotations

from hivenode.admin.health import complaints
from hivenode.admin.notices import Notices
from hivenode.catalog.holders import Keeper
from hivenode.catalog.models import Catalogue, Holders
from hivenode.config import Settings
from hivenode.errors import HiveError
from hivenode.hive.address_book import AddressBook
from hivenode.hive.admission import Admission
from hivenode.hive.clock import HybridClock
from hivenode.hive.contacts import Contacts
from hivenode.hive.feeds import Feeds
from hivenode.hive.leadership import Leadership
from hivenode.hive.membership import Membership
from hivenode.hive.mesh import Mesh
from hivenode.hive.pairing_desk import PairingDesk
from hivenode.hive.papers import Papers
from hivenode.hive.replication import Replication
from hivenode.hive.roles import Roles
from hivenode.hive.sealer import Sealer
from hivenode.hive.swim import PRESENT, MemberState
from hivenode.hive.views import Views
from hivenode.jobs.coordinator import Coordinator
from hivenode.jobs.desk import Desk
from hivenode.jobs.executor import Executor
from hivenode.jobs.ledger import Ledger
from hivenode.jobs.live import Live
from hivenode.jobs.predictor import Predictor
from hivenode.jobs.preparing import Preparer
from hivenode.jobs.proposals import Proposer
from hivenode.jobs.results import Results
from hivenode.jobs.supplies import Supplies
from hivenode.jobs.waits import Waits
from hivenode.logs import get_logger
from hivenode.net.calls import Calls
from hivenode.net.messages import Request, Response
from hivenode.node.ports import Ports
from hivenode.planning.qtable import Experience
from hivenode.spec.status import NodeService
from hivenode.spec.values import Epoch, Role
from hivenode.tasks import Signal, TaskGroup
from hivenode.trust.credentials import Credentials

log = get_logger("node")


class Services:
    """The views and what is noticed are there from the start; the rest is put in by `building` as the node comes up."""

    clock: HybridClock
    calls: Calls
    replication: Replication
    sealer: Sealer
    papers: Papers
    keeper: Keeper
    results: Results
    supplies: Supplies
    preparer: Preparer
    executor: Executor
    desk: Desk
    predictor: Predictor
    proposer: Proposer
    coordinator: Coordinator
    membership: Membership
    leadership: Leadership
    admission: Admission
    pairing: PairingDesk
    service: NodeService

    def __init__(self, settings: Settings, credentials: Credentials, ports: Ports) -> None:
        self.settings = settings
        self.credentials = credentials
        self.ports = ports
        self.me = credentials.identity.node_id
        self.hive = credentials.hive_id
        self.name = settings.node.name
        self.tasks = TaskGroup(self._task_failed)
        self.changed = Signal()
        self.troubles: dict[str, str] = {}
        """Sentences about what is wrong, by cause."""
        self.addresses: tuple[str, ...] = ()
        self.ready = False
        """Whether every part is there: nothing is reacted to before or after."""
        self.roles = Roles(credentials.authority_key, credentials.grant)
        self.ledger = Ledger(credentials.authority_key)
        self.catalogue = Catalogue(self.ledger.models)
        self.holders = Holders()
        self.experience = Experience()
        self.live = Live()
        self.waits = Waits()
        self.views = Views([self.roles, self.ledger, self.holders, self.experience])
        self.feeds = Feeds(credentials.hive_id, credentials.authority_key)
        self.notices = Notices(ports.wall)
        self.book = AddressBook(
            me=self.me,
            transport=ports.transport,
            journal=ports.journal,
            roles=self.roles,
            members=lambda: self.membership.members,
            member=lambda node: self.membership.member(node),
            mesh=Mesh(self.me, credentials.hive_id, settings.network.full_mesh),
            rng=ports.rng,
        )
        self.contacts = Contacts(ports.wall)

    def _task_failed(self, name: str, error: BaseException) -> None:
        if isinstance(error, HiveError):
            log.warning("background work failed", task=name, reason=str(error))
            return
        log.error("internal error", task=name, error=repr(error), exc_info=error)
        self.troubles[name] = f"Internal error in {name}: {error!r}. Please report it with the log."

    def health(self) -> tuple[str, ...]:
        """What is wrong with this node, in sentences; empty when all is well."""
        troubles = {**self.troubles, "certificate": self.papers.trouble}
        return complaints(self.me, troubles, self.roles, self.replication, self.sealer)

    async def call_node(self, peer: str, request: Request, timeout: float) -> Response:
        """Ask a node, this one included, and await its answer, at most `timeout` seconds."""
        if peer == self.me:
            return await self.desk.ask_ourselves(request, timeout)
        return await self.calls.call(peer, request, timeout)

    def leads(self) -> Epoch | None:
        """The epoch in which this node coordinates."""
        leader = self.leadership.leader
        return leader if leader is not None and leader.node == self.me else None

    # --- members ------------------------------------------------------------------------------------------------

    def alive(self) -> tuple[str, ...]:
        """Members not known to be gone and not revoked, this node included, sorted."""
        return tuple(node for node in self.membership.alive if not self.roles.revoked(node))

    def workers(self) -> tuple[str, ...]:
        """Alive members that may work and whose word of it is taken, sorted by id."""
        alive, forked = self.alive(), self.feeds.forked
        return tuple(node for node in self.roles.holders(Role.worker) if node in alive and node not in forked)

    def gone(self, node: str) -> bool:
        member = self.membership.member(node)
        return self.roles.revoked(node) or (member is not None and member.state not in PRESENT)

    # --- addresses ----------------------------------------------------------------------------------------------

    def worker_host(self) -> str:
        """Where this node's workers listen for the others': the host of its first address."""
        return self.addresses[0].rpartition(":")[0].strip("[]")

    def seed_addresses(self) -> tuple[str, ...]:
        """Addresses a joining node may try, our own first."""
        others = [a for m in self.membership.members if m.node != self.me and m.state in PRESENT for a in m.addresses]
        return tuple(dict.fromkeys([*self.addresses, *others]))[:16]

    def present_at(self, node: str) -> tuple[str, ...] | None:
        """Addresses of a member that is well."""
        member = self.membership.member(node)
        return member.addresses if member is not None and member.state is MemberState.alive else None

    def doors(self) -> list[tuple[str, str]]:
        """Where members may answer, linked or not: ids ("" for a seed) and addresses."""
        known = {**self.book.remembered, **{member.node: member.addresses for member in self.membership.members}}
        return [
            *((node, address) for node, addresses in sorted(known.items()) for address in addresses),
            *(("", address) for address in self.ports.seeds),
        ]

    # --- blobs --------------------------------------------------------------------------------------------------

    def names(self, digest: str) -> bool:
        """Whether anything speaks of these bytes: a job, a model, a member that says it holds them, a seal, or somebody
        who is about to."""
        seal = self.sealer.file
        return (
            self.ledger.names(digest)
            or bool(self.holders.of(digest))
            or (seal is not None and seal.digest == digest)
            or self.keeper.touched(digest)
            or self.supplies.names(digest)
        )

    def concerns(self, peer: str, digest: str) -> bool:
        """Whether bytes that a peer speaks of are any business of the hive."""
        return self.ledger.works(peer) or self.ledger.submits(peer) or self.ledger.names(digest)

    async def tidy(self) -> None:
        """Delete what jobs that have ended left here."""
        await self.results.tidy()
        await self.supplies.tidy()
