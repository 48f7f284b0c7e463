"""What the node asks of the network. `peers` does it over TLS, `simulated` in memory and virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hivenode.net.messages import Message
from hivenode.spec.values import BlobRef
from hivenode.store.ports import BlobStore


class LinkEnd(StrEnum):
    """Why a link went down, or a dial failed."""

    closed = "closed"
    """The other side closed in good order."""
    reset = "reset"
    """Connection broken without a goodbye."""
    refused = "refused"
    """The host is there and nothing listens: the process is gone."""
    unreachable = "unreachable"
    """No answer in time, or no route."""
    identity = "identity"
    """TLS or identity check failed."""
    protocol = "protocol"
    """The peer broke the protocol (malformed or oversized frame)."""
    local = "local"
    """We closed it."""
    idle = "idle"
    """Neither end needs it any more: no failure."""


@dataclass(slots=True)
class Use:
    """What a live link is for, as one end sees it."""

    dialled: bool
    """By us."""
    theirs: bool
    """Whether the other end wants it kept up."""
    held: bool
    """We asked for it to be kept, for a while at least, though we do not want this peer in particular."""
    announced: bool
    """Whether the handler was told that it is up."""
    since: float
    """When it came up, in the loop's time."""
    at: float
    """When it was last used, either way, in the loop's time."""
    heard: float
    """When something last came in on it, in the loop's time."""


class Refusing(StrEnum):
    """Why somebody who came to us was turned away."""

    hive = "hive"
    """It is not of this hive."""
    identity = "identity"
    """Its certificate is not what it should be."""
    expired = "expired"
    """Its certificate is not valid now."""
    revoked = "revoked"
    version = "version"
    """The two builds have no version of the protocol in common."""
    invite = "invite"
    """It wanted to join, and its invite did not let it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Somebody came to us and was turned away.

    Args:
        node: its id where it has proved it, else "".
        address: its host.
        detail: a sentence.
        name: what it calls itself, if it said.
    """

    node: str
    address: str
    why: Refusing
    detail: str
    name: str = ""


class TransportHandler(Protocol):
    """Called on the event loop; must return at once."""

    def link_up(self, peer: str, address: str) -> None:
        """`address` is the one dialled, or where the peer dialled from. Never called twice without link_down."""
        ...

    def link_down(self, peer: str, why: LinkEnd) -> None:
        """`idle` when neither end wants it any more, though it may still carry what is under way. Also called, with no
        link_up before, for a passing link that failed; not for one closed as idle."""
        ...

    def dial_failed(self, peer: str, address: str, why: LinkEnd, detail: str) -> None:
        """`peer` is the id expected at `address`, or "" for a seed whose id is not known yet."""
        ...

    def received(self, peer: str, message: Message) -> None:
        """`peer` is the authenticated sender."""
        ...


class Transport(Protocol):
    """At most one live link per pair. Messages on a link arrive in order (per priority) or the link ends.

    A link is kept for as long as either end wants it. What is sent to a known peer that nobody keeps a link to makes a
    passing link: it carries messages both ways, is otherwise not spoken of, and is closed when it has been idle. It
    becomes a kept one when either end comes to want it.
    """

    @property
    def links(self) -> Sequence[str]:
        """Ids with a live link that either end wants, sorted."""
        ...

    def reaches(self, peer: str) -> bool:
        """Whether `send` would take something for this peer: there is a link, or it may be dialled on demand."""
        ...

    async def start(self, handler: TransportHandler) -> tuple[str, ...]:
        """Listen; returns the addresses others may dial."""
        ...

    async def stop(self) -> None: ...

    def want(self, peer: str, addresses: Sequence[str]) -> None:
        """Keep a link to this node, dialling these addresses with backoff until `forget`. Dials at once when called
        again with a changed address. Calling it for a linked peer only updates the addresses."""
        ...

    def know(self, peer: str, addresses: Sequence[str]) -> None:
        """Where to dial this node if there is something to say to it, until `forget`. No link is kept; if one was
        wanted, it is not any more."""
        ...

    def redial(self, peer: str) -> None:
        """Try a wanted or known peer now, whatever its backoff says. If it is linked and does not answer, TCP may be
        waiting to send again what was lost, for longer each time: a fresh connection does not wait, and takes the place
        of the link unless something comes in on that meanwhile. A link that is young is left alone."""
        ...

    def forget(self, peer: str) -> None:
        """Do not dial this node any more. A live link that the peer does not want either is closed once idle."""
        ...

    def seed(self, addresses: Sequence[str]) -> None:
        """Addresses at which some member of the hive may answer; dialled until any link is up, then rarely."""
        ...

    def drop(self, peer: str, why: LinkEnd) -> None:
        """End a live link."""
        ...

    def send(self, peer: str, message: Message) -> bool:
        """Queue for a linked peer, or for a known one, which is dialled; False if it is neither, or the queue is
        full. Never waits."""
        ...

    async def fetch(self, peer: str, ref: BlobRef, into: BlobStore) -> None:
        """Bring a blob over on a connection of its own, resuming a partial one.
        Raises NotFound (the peer lacks it), Unavailable (connection broke), Corrupted, Exhausted."""
        ...
