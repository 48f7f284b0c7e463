"""What the admin endpoint answers about members and those who are not: typed, encoded as JSON by msgspec. All times are
seconds since 1970."""

from __future__ import annotations

from typing import Protocol

import msgspec

from hivenode.spec.values import Role


class MemberChanged(msgspec.Struct, frozen=True):
    """A grant was signed, and every node hears of it."""

    node: str
    name: str
    roles: tuple[str, ...]
    """None: revoked."""


class KnownPeer(msgspec.Struct, frozen=True):
    node: str
    name: str
    state: str
    """alive, suspect, dead or left; "unheard" for one that has not been heard of since this node started."""
    roles: tuple[str, ...]
    linked: bool
    addresses: tuple[str, ...]
    version: str
    last_contact: float | None
    """When it last said anything to this node; None if it has not since this node started."""
    last_error: str
    """Why the latest dial failed; "" if none has since it was linked."""
    self: bool
    coordinator: bool


class PendingPeer(msgspec.Struct, frozen=True):
    """Somebody heard, dialled, or turned away, who is not linked as a member."""

    node: str
    """Id it claims or was expected to have; "" if unknown."""
    name: str
    hive: str
    """Hive it announces; "" if unknown."""
    address: str
    at: float
    why: str
    """heard (announces itself nearby); how our dial failed: refused, unreachable, identity, protocol, reset or closed;
    or, if `inbound`, why we turned it away: hive (it is of another one), identity, expired, revoked, version or
    invite."""
    detail: str
    inbound: bool = False
    """It came to us."""
    times: int = 1
    """How often, since this node started."""


class RevokedPeer(msgspec.Struct, frozen=True):
    node: str
    name: str
    at: float
    reason: str
    tried_at: float | None = None
    """When it last came to this node and was turned away; None if it has not since this node started."""


class Peers(msgspec.Struct, frozen=True):
    known: tuple[KnownPeer, ...]
    pending: tuple[PendingPeer, ...]
    """Newest first, at most 100."""
    revoked: tuple[RevokedPeer, ...]


class Check(msgspec.Struct, frozen=True):
    """Something that was looked at."""

    about: str
    """interfaces, addresses, discovery, port, clock, certificate, membership, walls."""
    ok: bool
    found: str
    """A sentence."""
    fix: str = ""


class ProbedAddress(msgspec.Struct, frozen=True):
    """One address of a peer, dialled just now."""

    address: str
    tcp: bool
    """A TCP connection could be opened."""
    identity: bool
    """TLS was made, with the expected node."""
    build: str
    protocols: str
    """Oldest and newest protocol it speaks, "1-1"; "" if it did not say."""
    skew_seconds: float | None
    """How far its clock is ahead of ours, to about a second."""
    error: str


class PeerExamined(msgspec.Struct, frozen=True):
    node: str
    name: str
    state: str
    linked: bool
    version: str
    multicast_at: float | None
    """When its announcement was last heard by multicast."""
    last_contact: float | None
    last_error: str
    addresses: tuple[ProbedAddress, ...]
    ok: bool
    found: str
    """A sentence."""
    fix: str


class Diagnosis(msgspec.Struct, frozen=True):
    healthy: bool
    checks: tuple[Check, ...]
    peers: tuple[PeerExamined, ...]


class PairingStatus(msgspec.Struct, frozen=True):
    """How it stands with the pairing code of this node."""

    state: str
    """none; open (the code is shown); paired (somebody gave it and is joining); joined; void (a wrong one was given);
    expired; closed (taken back)."""
    code: str = ""
    """While it is open."""
    roles: tuple[str, ...] = ()
    ends_at: float = 0.0
    detail: str = ""
    """How it ended, a sentence."""
    member: str = ""
    """Who gave the code, as it calls itself."""


class MemberService(Protocol):
    """What the admin endpoint needs of a node to administer members. `ref` is an id, the beginning of one, or a name.
    Every method may raise NotFound, InvalidInput (ambiguous) and what is named."""

    async def revoke(self, ref: str, reason: str) -> MemberChanged:
        """Raises Refused (not the founder's node; or it is this node), Conflict (revoked already)."""
        ...

    async def grant(self, ref: str, roles: tuple[Role, ...]) -> MemberChanged:
        """These roles instead of the present ones. Raises Refused."""
        ...

    async def forget(self, ref: str) -> MemberChanged:
        """Revoke a member that is gone for good. Raises Conflict (it lives), Refused."""
        ...

    def peers(self) -> Peers: ...

    async def doctor(self, ref: str) -> Diagnosis:
        """Examine the connections to one peer, or with "" to all."""
        ...

    def pair(self, roles: tuple[Role, ...]) -> PairingStatus:
        """Show a new pairing code. Raises Refused."""
        ...

    async def pairing(self, unlike: str, seconds: float) -> PairingStatus:
        """How it stands, once the state is another than `unlike`, or after so many seconds."""
        ...

    def stop_pairing(self) -> PairingStatus:
        """Take the code back, if one is open."""
        ...
