"""What a node does when something happens: on its links, in the feeds, among the members, with its own key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hivenode.admin.service import plain
from hivenode.errors import Conflict
from hivenode.hive.feeds import Entry
from hivenode.hive.swim import PRESENT, Member, MemberState
from hivenode.logs import get_logger
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
    Progress,
    PushPull,
    Reply,
    SealOffered,
    Sums,
    VoteReply,
    VoteRequest,
    Waiting,
)
from hivenode.net.transport import LinkEnd
from hivenode.node.candidacy import Candidacy
from hivenode.node.newcomers import Newcomers
from hivenode.node.services import Services
from hivenode.spec.events import (
    AttemptEnded,
    BlobHeld,
    CheckpointSaved,
    JobCancelled,
    JobGivenUp,
    JobSubmitted,
    ModelRegistered,
    NodeAdmitted,
    SealClosed,
    SealConfirmed,
    SealProposed,
)
from hivenode.spec.values import Role
from hivenode.trust.identity import verify

TIDIED_AFTER = JobSubmitted | CheckpointSaved | AttemptEnded | JobCancelled | JobGivenUp | BlobHeld
"""Events that change which blobs are needed."""

log = get_logger("node")


class Reactions:
    """The transport's handler, and what the services call when they have news for the rest of the node."""

    def __init__(self, node: Services, candidacy: Candidacy, newcomers: Newcomers) -> None:
        self._node = node
        self._candidacy = candidacy
        self._newcomers = newcomers
        self._forged = ""
        """Whose signature was wrong in the message being handled."""

    # --- the transport's handler --------------------------------------------------------------------------------

    def link_up(self, peer: str, address: str) -> None:
        node = self._node
        if not node.ready or node.roles.revoked(peer):
            node.ports.transport.drop(peer, LinkEnd.local)
            return
        node.contacts.linked(peer, address)
        log.info("linked", peer=node.roles.name(peer), peer_id=peer, address=address)
        node.replication.link_up(peer)
        node.membership.link_up(peer)
        self._candidacy.links_changed()
        node.papers.look()

    def link_down(self, peer: str, why: LinkEnd) -> None:
        node = self._node
        if node.ready:
            log.info("link ended", peer=node.roles.name(peer), peer_id=peer, why=why.value)
            if why is not LinkEnd.idle:  # what was asked may still be answered
                node.calls.link_down(peer)
            node.membership.link_down(peer, why)
            self._candidacy.links_changed()

    def dial_failed(self, peer: str, address: str, why: LinkEnd, detail: str) -> None:
        node = self._node
        if node.ready:
            log.debug("dial failed", peer=peer, address=address, why=why.value, detail=detail)
            node.contacts.failed(peer, address, why, detail)
            if peer:
                node.membership.dial_failed(peer, why)

    def received(self, peer: str, message: Message) -> None:
        node = self._node
        if not node.ready or node.roles.revoked(peer):
            return
        node.contacts.heard(peer)
        self._forged = ""
        match message:
            case Ping() | Ack() | PingRequest() | Nack() | Gossip() | PushPull() | Sums():
                node.membership.receive(peer, message)
            case VoteRequest() | VoteReply() | Heartbeat():
                if node.roles.may(peer, Role.coordinator):
                    node.leadership.receive(peer, message)
            case HeartbeatAck():  # any follower may say that it is bound to another epoch
                node.leadership.receive(peer, message)
            case FeedHeads() | FeedSummary() | FeedDelta():
                node.replication.received(peer, message)
                if isinstance(message, FeedHeads):
                    node.sealer.heard(peer, message)
            case SealOffered():
                node.sealer.offered(peer, message)
            case Progress():
                if message.node == peer and message.job in node.ledger.jobs:
                    self._hear(message)
            case Waiting():
                if peer == message.epoch.node and message.epoch == node.leadership.leader:
                    self._hear_waiting(message)
            case Call() | Reply():
                node.calls.received(peer, message)
        if self._forged:  # whoever passes statements on has checked them
            self.offended(peer, f"it passed on a statement that {node.roles.name(self._forged)} did not sign")

    def verify(self, author: str, signature: bytes, data: bytes) -> bool:
        """Whether a member signed this. A wrong signature is remembered against whoever handed it to us."""
        key = self._node.roles.public_key(author)
        if key is None or self._node.roles.revoked(author):
            return False
        if verify(key, signature, data):
            return True
        self._forged = author
        return False

    def offended(self, peer: str, reason: str) -> None:
        """A peer did what no honest node does."""
        node = self._node
        log.warning(
            "a peer broke the rules; its link is ended", peer=node.roles.name(peer), peer_id=peer, reason=reason
        )
        node.ports.transport.drop(peer, LinkEnd.protocol)
        node.contacts.offended(peer, "", reason)

    # --- facts --------------------------------------------------------------------------------------------------

    def facts_changed(self, entries: Sequence[Entry]) -> None:
        """New events were taken in."""
        node = self._node
        bodies = [entry.body for entry in entries]
        if not node.ready:
            return
        admitted = [entry.event.author for entry in entries if isinstance(entry.body, NodeAdmitted)]
        if admitted:
            self._heed_grants(entries)
            node.papers.look()
            self._newcomers.admitted(admitted)
            self._candidacy.admitted()
        node.executor.ledger_changed()
        if any(isinstance(body, TIDIED_AFTER) for body in bodies):
            node.tasks.spawn(node.tidy(), "node: tidy")
        touched = dict.fromkeys(job for body in bodies if (job := getattr(body, "job", "")))
        for job in touched:
            node.waits.forget(job)
            if job in node.ledger.jobs:
                node.notices.tell("job", plain(node.service.job(job).summary))
        registered = {body.job for body in bodies if isinstance(body, ModelRegistered)}
        for version in node.catalogue.versions if registered else ():
            if version.job in registered:
                node.notices.tell("model", {"model": version.reference, "job": version.job})
        if any(isinstance(body, SealProposed | SealConfirmed | SealClosed) for body in bodies):
            node.sealer.wake()
        node.changed.notify()

    def sealed(self) -> None:
        """Facts may have come all at once, with a snapshot."""
        node = self._node
        if not node.ready:
            return
        self._heed_grants(())
        node.papers.look()
        self._candidacy.electorate()
        for peer in node.ports.transport.links:
            node.membership.link_up(peer)
        node.executor.ledger_changed()
        node.tasks.spawn(node.tidy(), "node: tidy")
        node.changed.notify()

    def _heed_grants(self, entries: Sequence[Entry]) -> None:
        """The authority has spoken: part from whoever is revoked now, seek out whoever may come back."""
        node = self._node
        transport = node.ports.transport
        news = node.roles.news()
        if node.roles.revoked(node.me):
            known = (member.node for member in node.membership.members)
            for peer in dict.fromkeys([*node.book.sought, *known, *transport.links]):
                node.book.strike(peer)
                transport.drop(peer, LinkEnd.local)
            node.executor.expelled()
            return
        for one in filter(node.roles.revoked, news):
            if node.book.addresses(one) is not None:
                self.let_go(one)
            # It is told why before the door closes: a link that ends by our own will is flushed first.
            transport.send(one, FeedDelta(events=tuple(entry.event for entry in entries)))
            transport.drop(one, LinkEnd.local)
            transport.forget(one)
            node.membership.expel(one)
        if node.me in news:  # perhaps it is we who may come back
            node.book.seek_all()
        else:
            node.book.seek_known(news)

    # --- members ------------------------------------------------------------------------------------------------

    def member_changed(self, member: Member, was: MemberState | None) -> None:
        node = self._node
        present = member.state in PRESENT
        if member.node != node.me:
            if member.state is MemberState.left:
                self.let_go(member.node)
            elif node.book.addresses(member.node) != member.addresses or present != (was in PRESENT):
                node.book.seek(member.node, member.addresses, present=present)
                self._remember()
            if not present and was in PRESENT:
                node.executor.node_gone(member.node)
        if present:
            self._candidacy.electorate_soon(member)  # it comes, or says something of its standing, and hardly alone
        else:
            self._candidacy.electorate()
        node.notices.tell(
            "member",
            {"node": member.node, "name": member.name, "state": member.state.value, "was": was.value if was else ""},
        )
        node.changed.notify()

    def let_go(self, member: str) -> None:
        """Look for this member no longer."""
        node = self._node
        node.book.strike(member)
        node.contacts.forget(member)
        self._remember()

    def _remember(self) -> None:
        if self._node.book.changed():
            self._node.tasks.spawn(self._node.book.remember(), "node: remember peers")

    def conflict(self, addresses: tuple[str, ...]) -> None:
        """Another machine, at these addresses, runs with our own key, and it is on us to give way."""
        node = self._node
        where = ", ".join(addresses)
        alarm = Conflict(
            f"The key of this node is in use on another machine{f', at {where}' if where else ''}, so this one stops.",
            fix=f"Keys are never copied: remove {node.ports.home} here and invite this machine anew. If you do not "
            "know the other machine, somebody has taken the key: revoke the node.",
        )
        log.error("this node's key is in use on another machine; stopping", addresses=list(addresses))
        node.troubles["conflict"] = str(alarm)
        if node.ports.fail is not None:
            node.ports.fail(alarm)
        else:
            node.ports.stop()

    # --- progress -----------------------------------------------------------------------------------------------

    def broadcast(self, progress: Progress) -> None:
        """Tell everybody who may want to know how far our part of a job is."""
        self._hear(progress)
        self._spread(progress)

    def announce(self, waiting: Waiting) -> None:
        """Tell everybody who may want to know why a job does not run."""
        self._hear_waiting(waiting)
        self._spread(waiting)

    def _spread(self, message: Progress | Waiting) -> None:
        node = self._node
        job, leader = node.ledger.jobs.get(message.job), node.leadership.leader
        watching = (leader.node if leader else "", job.submitter if job else "")
        for peer in dict.fromkeys((*node.ports.transport.links, *watching)):
            if peer not in ("", node.me):
                node.ports.transport.send(peer, message)

    def _hear_waiting(self, waiting: Waiting) -> None:
        node = self._node
        if node.waits.hear(waiting) and waiting.job in node.ledger.jobs:
            node.notices.tell("job", plain(node.service.job(waiting.job).summary))

    def _hear(self, progress: Progress) -> None:
        node = self._node
        before = node.live.state(progress.job, progress.attempt, progress.node)
        if node.live.hear(progress, asyncio.get_running_loop().time()):
            told = {**plain(progress), "state": progress.state, "name": node.roles.name(progress.node)}
            node.notices.tell("progress", told)
            if progress.state != before:
                node.changed.notify()
