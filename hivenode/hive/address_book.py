"""Whom this node seeks out, and at which addresses; remembered over restarts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence

import msgspec

from hivenode.hive.mesh import Mesh
from hivenode.hive.roles import Roles
from hivenode.hive.swim import PRESENT, Member, MemberState
from hivenode.net.transport import Transport
from hivenode.store.ports import Journal

CELL = "peers"
GATHER_SECONDS = 0.2
"""How long changes are gathered before they are written; with more than `FEW` members longer in proportion, since all
of them are written each time."""
FEW = 64
TRIED_AT_ONCE = 8
"""Members that a node without any link tries besides its neighbours."""


class AddressBook:
    """Knows where all members are but those that left or were revoked, and keeps the transport dialling those that
    the mesh chooses, the dead among them, ever more rarely: that is how a partition heals. The others are dialled when
    there is something to say to them.

    Args:
        members: everyone known.
        member: what is known of one.
    """

    def __init__(
        self,
        *,
        me: str,
        transport: Transport,
        journal: Journal,
        roles: Roles,
        members: Callable[[], tuple[Member, ...]],
        member: Callable[[str], Member | None],
        mesh: Mesh,
        rng: random.Random,
    ) -> None:
        self._me = me
        self._transport = transport
        self._journal = journal
        self._roles = roles
        self._members = members
        self._member = member
        self._mesh = mesh
        self._rng = rng
        self._known: dict[str, tuple[str, ...]] = {}
        self._kept: dict[str, None] = {}
        """Of those known, whom the transport keeps a link to."""
        self._needed: dict[str, tuple[str, ...]] = {}
        self._tried: tuple[str, ...] = ()
        self._writing = self._stale = False

    @property
    def remembered(self) -> dict[str, tuple[str, ...]]:
        """Addresses of the other members when last heard of, by id."""
        raw = self._journal.cell(CELL)
        return msgspec.msgpack.decode(raw, type=dict[str, tuple[str, ...]]) if raw else {}

    @property
    def sought(self) -> tuple[str, ...]:
        """Ids of those that may be dialled."""
        return tuple(self._known)

    @property
    def partial(self) -> bool:
        """Whether links are kept to some members only."""
        return self._mesh.partial

    def addresses(self, node: str) -> tuple[str, ...] | None:
        """Where a node is sought; None if it is not."""
        return self._known.get(node)

    def dials(self, node: str) -> bool:
        """Whether a message to this node, with no link to it, dials it."""
        return node in self._known and node not in self._kept

    def beside(self, node: str) -> tuple[str, ...]:
        """Who should keep a link to this node, where not everybody does."""
        return tuple(sorted(self._mesh.beside(node))) if self._mesh.partial else ()

    def open(self, seeds: tuple[str, ...]) -> None:
        """Begin with whoever was known before the last stop, and the seeds."""
        for node, addresses in sorted(self.remembered.items()):
            if node not in self._known:
                self.seek(node, addresses, present=False)
        if seeds and not self._roles.revoked(self._me):
            self._transport.seed(seeds)

    def seek(self, node: str, addresses: tuple[str, ...], *, present: bool = True) -> None:
        """Know where a node is, if it is one we may speak to, and keep a link to it if the mesh has it so.

        Args:
            present: whether it is not known to be gone.
        """
        if not self._welcome(node):
            return
        moved = self._known.get(node) != addresses
        self._known[node] = addresses
        stirred = self._mesh.set(node, present=present)
        if moved and node in self._kept:
            self._transport.want(node, addresses)
        elif moved:
            self._transport.know(node, addresses)
        if stirred or node in self._tried or any(node in nodes for nodes in self._needed.values()):
            self._review()

    def need(self, purpose: str, nodes: Sequence[str]) -> None:
        """Keep links to these as well, for this purpose, instead of those named for it before."""
        if self._needed.get(purpose, ()) != tuple(nodes):
            self._needed[purpose] = tuple(nodes)
            self._review()

    def hint(self, node: str, addresses: tuple[str, ...]) -> None:
        """A node of this hive may be at these addresses, as discovery heard."""
        if not self._welcome(node) or node in self._transport.links:
            return
        if not self._mesh.partial or node in self._kept:
            self._transport.want(node, addresses)
        elif node not in self._known:
            self._transport.know(node, addresses)
            if not self._transport.links:
                self._transport.redial(node)

    def look_further(self) -> None:
        """While nobody at all can be reached, try others than those the mesh has chosen."""
        tried = self._tried
        if self._transport.links or not self._mesh.partial:
            self._tried = ()
        else:
            self._tried = tuple(self._rng.sample(list(self._known), min(TRIED_AT_ONCE, len(self._known))))
        if tried != self._tried:
            self._review()

    def seek_all(self) -> None:
        """Seek every member that is not sought yet."""
        self._seek_missing(self._members())

    def seek_known(self, nodes: Iterable[str]) -> None:
        """Seek those of these that are members and not sought yet: they may have been let back in."""
        self._seek_missing(member for node in nodes if (member := self._member(node)) is not None)

    def _seek_missing(self, members: Iterable[Member]) -> None:
        for member in members:
            if member.node not in self._known and member.state is not MemberState.left:
                self.seek(member.node, member.addresses, present=member.state in PRESENT)

    def strike(self, node: str) -> bool:
        """Seek a node no more; whether it was sought."""
        self._transport.forget(node)
        self._kept.pop(node, None)
        self._mesh.drop(node)
        known = self._known.pop(node, None) is not None
        self._review()
        return known

    def changed(self) -> bool:
        """Somebody came, moved or left; whether `remember` is to be called."""
        self._stale = True
        return not self._writing

    async def remember(self) -> None:
        """Write down where everyone is, if it has changed: at once, and then what has gathered meanwhile. Many changes
        may come together, and a member can say every moment that it has moved. Raises Exhausted."""
        if self._writing:
            return
        self._writing = True
        try:
            while self._stale:
                self._stale = False
                await self.write()
                await asyncio.sleep(GATHER_SECONDS * max(1.0, len(self._known) / FEW))
        finally:
            self._writing = False

    async def write(self) -> None:
        """Write down where everyone is now, if that is not what is written. Raises Exhausted."""
        known = {
            member.node: member.addresses
            for member in self._members()
            if member.state is not MemberState.left and self._welcome(member.node)
        }
        raw = msgspec.msgpack.encode(dict(sorted(known.items())))
        if raw != self._journal.cell(CELL):
            await self._journal.set_cell(CELL, raw)

    def _review(self) -> None:
        """Have the transport keep the links that should be kept, and no others."""
        needed = [node for nodes in self._needed.values() for node in nodes]
        chosen = self._mesh.neighbours([*needed, *self._tried])
        if len(chosen) == len(self._kept) and all(node in chosen for node in self._kept):
            return
        for node in [node for node in self._kept if node not in chosen]:
            del self._kept[node]
            self._transport.know(node, self._known[node])
        for node in sorted(chosen):
            if node not in self._kept:
                self._kept[node] = None
                self._transport.want(node, self._known[node])

    def _welcome(self, node: str) -> bool:
        return node != self._me and not self._roles.revoked(node) and not self._roles.revoked(self._me)
