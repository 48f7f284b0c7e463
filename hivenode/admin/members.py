"""Who belongs to the hive, who stands at its door, and who was shown out: answers and deeds of the admin endpoint."""

from __future__ import annotations

from dataclasses import dataclass

from hivenode.admin.doctor import Doctor
from hivenode.errors import Conflict, InvalidInput, NotFound
from hivenode.hive.admission import Admission
from hivenode.hive.contacts import Contacts, Failure, Heard, TurnedAway
from hivenode.hive.feeds import Feeds
from hivenode.hive.leadership import Leadership
from hivenode.hive.membership import Membership
from hivenode.hive.pairing_desk import PairingDesk
from hivenode.hive.roles import Roles
from hivenode.hive.swim import PRESENT
from hivenode.net.transport import Transport
from hivenode.spec.members import Diagnosis, KnownPeer, MemberChanged, PairingStatus, Peers, PendingPeer, RevokedPeer
from hivenode.spec.values import Role

MAX_PENDING = 100
UNHEARD = "unheard"


@dataclass(frozen=True)
class Members:
    """`spec.members.MemberService` over the parts of a running node."""

    me: str
    hive: str
    transport: Transport
    membership: Membership
    leadership: Leadership
    roles: Roles
    feeds: Feeds
    contacts: Contacts
    admission: Admission
    examiner: Doctor
    desk: PairingDesk

    async def revoke(self, ref: str, reason: str) -> MemberChanged:
        node = self.find(ref)
        await self.admission.revoke(node, reason)
        return self._changed(node)

    async def grant(self, ref: str, roles: tuple[Role, ...]) -> MemberChanged:
        node = self.find(ref)
        await self.admission.change(node, roles)
        return self._changed(node)

    async def forget(self, ref: str) -> MemberChanged:
        node = self.find(ref)
        member = self.membership.member(node)
        if member is not None and member.state in PRESENT:
            name = self.roles.name(node)
            raise Conflict(
                f"{name} is {member.state.value}: only a member that is gone can be forgotten.",
                fix=f"Stop it there with `hivenode down`, or shut it out with `hivenode revoke {name}`.",
            )
        await self.admission.revoke(node, "forgotten: it was gone for good")
        return self._changed(node)

    async def doctor(self, ref: str) -> Diagnosis:
        return await self.examiner.examine(self.find(ref) if ref else "")

    def pair(self, roles: tuple[Role, ...]) -> PairingStatus:
        return self.desk.open(roles)

    async def pairing(self, unlike: str, seconds: float) -> PairingStatus:
        return await self.desk.wait(unlike, seconds)

    def stop_pairing(self) -> PairingStatus:
        return self.desk.close()

    def find(self, ref: str) -> str:
        """Id of the node meant by an id, the beginning of one, or a name; a member before one that was revoked."""
        nodes = {grant.node: grant.name for grant in (*self.feeds.grants.values(), *self.roles.grants)}
        nodes |= {member.node: member.name or member.node for member in self.membership.members}
        if ref in nodes:
            return ref
        meant = [node for node, name in nodes.items() if name == ref]
        meant = [node for node in meant if not self.roles.revoked(node)] or meant
        meant = meant or [node for node in nodes if len(ref) >= 4 and node.startswith(ref)]
        if not meant:
            raise NotFound(f"There is no node {ref}.", fix="`hivenode peers` lists those this node knows.")
        if len(meant) > 1:
            raise InvalidInput(f"{ref} could mean {len(meant)} nodes.", fix="Give the id; `hivenode peers` lists them.")
        return meant[0]

    def peers(self) -> Peers:
        roles = self.roles
        listed = {member.node for member in self.membership.members}
        listed.update(grant.node for grant in roles.grants)
        known = sorted(node for node in listed if not roles.revoked(node))
        links = self.transport.links
        pending = [
            *(self._stranger(heard) for heard in self.contacts.strangers(listed, self.hive)),
            *(self._unanswered(failure) for failure in self.contacts.unanswered(listed)),
            *(self._turned_away(one) for one in self.contacts.turned_away()),
        ]
        return Peers(
            known=tuple(self._known(node, node in links) for node in known),
            pending=tuple(sorted(pending, key=lambda peer: (-peer.at, peer.node, peer.address))[:MAX_PENDING]),
            revoked=tuple(
                RevokedPeer(grant.node, grant.name, grant.serial / 1000, grant.reason, self._tried(grant.node))
                for grant in roles.grants
                if grant.revokes
            ),
        )

    def _known(self, node: str, linked: bool) -> KnownPeer:
        member, leader = self.membership.member(node), self.leadership.leader
        failures, offence = self.contacts.failures(node), self.contacts.offence(node)
        trouble = failures[0].detail if failures and not linked else ""
        return KnownPeer(
            node=node,
            name=(member.name if member else "") or self.roles.name(node),
            state=member.state.value if member else UNHEARD,
            roles=tuple(role.value for role in self.roles.of(node)),
            linked=linked or node == self.me,
            addresses=member.addresses if member else (),
            version=member.version if member else "",
            last_contact=self.contacts.last(node),
            last_error=f"It broke the protocol: {offence.what}." if offence else trouble,
            self=node == self.me,
            coordinator=leader is not None and leader.node == node,
        )

    def _stranger(self, heard: Heard) -> PendingPeer:
        said = heard.said
        if said.hive != self.hive:
            detail = f"It is in another hive, {said.hive[:8] or 'which it does not name'}."
        else:
            detail = "It says that it is of this hive; it has not been linked yet."
        address = said.addresses[0] if said.addresses else ""
        return PendingPeer(said.node, said.name, said.hive, address, heard.at, "heard", detail)

    def _unanswered(self, failure: Failure) -> PendingPeer:
        name = self.roles.name(failure.peer) if failure.peer else ""
        return PendingPeer(failure.peer, name, "", failure.address, failure.at, failure.why.value, failure.detail)

    def _turned_away(self, one: TurnedAway) -> PendingPeer:
        refusal = one.refusal
        name = refusal.name or (self.roles.name(refusal.node) if self.roles.grant(refusal.node) else "")
        return PendingPeer(
            refusal.node, name, "", refusal.address, one.at, refusal.why.value, refusal.detail, True, one.times
        )

    def _tried(self, node: str) -> float | None:
        return max((one.at for one in self.contacts.turned_away(node)), default=None)

    def _changed(self, node: str) -> MemberChanged:
        return MemberChanged(node, self.roles.name(node), tuple(role.value for role in self.roles.of(node)))
