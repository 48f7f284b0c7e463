"""What the node asks of the network. `peers` does it over TLS, `simulated` in memory and virtual time."""

from __future__ import annotations

from collections.abc import Sequence
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


class TransportHandler(Protocol):
    """Called on the event loop; must return at once."""

    def link_up(self, peer: str, address: str) -> None:
        """`address` is the one dialled, or where the peer dialled from. Never called twice without link_down."""
        ...

    def link_down(self, peer: str, why: LinkEnd) -> None: ...

    def dial_failed(self, peer: str, address: str, why: LinkEnd, detail: str) -> None:
        """`peer` is the id expected at `address`, or "" for a seed whose id is not known yet."""
        ...

    def received(self, peer: str, message: Message) -> None:
        """`peer` is the authenticated sender."""
        ...


class Transport(Protocol):
    """At most one live link per pair. Messages on a link arrive in order (per priority) or the link ends."""

    @property
    def links(self) -> Sequence[str]:
        """Ids with a live link, sorted."""
        ...

    async def start(self, handler: TransportHandler) -> tuple[str, ...]:
        """Listen; returns the addresses others may dial."""
        ...

    async def stop(self) -> None: ...

    def want(self, peer: str, addresses: Sequence[str]) -> None:
        """Keep a link to this node, dialling these addresses with backoff until `forget`. Dials at once when called
        again with a changed address. Calling it for a linked peer only updates the addresses."""
        ...

    def redial(self, peer: str) -> None:
        """Try a wanted, unlinked peer now, whatever its backoff says."""
        ...

    def forget(self, peer: str) -> None:
        """Stop dialling; a live link stays."""
        ...

    def seed(self, addresses: Sequence[str]) -> None:
        """Addresses at which some member of the hive may answer; dialled until any link is up, then rarely."""
        ...

    def drop(self, peer: str, why: LinkEnd) -> None:
        """End a live link."""
        ...

    def send(self, peer: str, message: Message) -> bool:
        """Queue for a linked peer; False if there is no link or its queue is full. Never waits."""
        ...

    async def fetch(self, peer: str, ref: BlobRef, into: BlobStore) -> None:
        """Bring a blob over on a connection of its own, resuming a partial one.
        Raises NotFound (the peer lacks it), Unavailable (connection broke), Corrupted, Exhausted."""
        ...
