"""Whom this node seeks out, and at which addresses; remembered over restarts."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from hivenode.hive.roles import Roles
from hivenode.hive.swim import Member, MemberState
from hivenode.net.transport import Transport
from hivenode.store.ports import Journal

CELL = "peers"


class AddressBook:
    """Keeps the transport dialling all members but those that left or were revoked. The dead are dialled too, ever
    more rarely: that is how a partition heals.

    Args:
        members: everyone known.
    """

    def __init__(
        self,
        *,
        me: str,
        transport: Transport,
        journal: Journal,
        roles: Roles,
        members: Callable[[], tuple[Member, ...]],
    ) -> None:
        self._me = me
        self._transport = transport
        self._journal = journal
        self._roles = roles
        self._members = members
        self._wanted: dict[str, tuple[str, ...]] = {}
        self._writing = self._stale = False

    @property
    def remembered(self) -> dict[str, tuple[str, ...]]:
        """Addresses of the other members when last heard of, by id."""
        raw = self._journal.cell(CELL)
        return msgspec.msgpack.decode(raw, type=dict[str, tuple[str, ...]]) if raw else {}

    @property
    def sought(self) -> tuple[str, ...]:
        """Ids of those being dialled or linked."""
        return tuple(self._wanted)

    def addresses(self, node: str) -> tuple[str, ...] | None:
        """Where a node is sought; None if it is not."""
        return self._wanted.get(node)

    def open(self, seeds: tuple[str, ...]) -> None:
        """Begin with whoever was known before the last stop, and the seeds."""
        for node, addresses in sorted(self.remembered.items()):
            if node not in self._wanted:
                self.seek(node, addresses)
        if seeds and not self._roles.revoked(self._me):
            self._transport.seed(seeds)

    def seek(self, node: str, addresses: tuple[str, ...]) -> None:
        """Keep a link to a node, if it is one we may speak to."""
        if self._welcome(node):
            self._wanted[node] = addresses
            self._transport.want(node, addresses)

    def hint(self, node: str, addresses: tuple[str, ...]) -> None:
        """A node of this hive may be at these addresses, as discovery heard."""
        if self._welcome(node) and node not in self._transport.links:
            self._transport.want(node, addresses)

    def seek_all(self) -> None:
        """Seek whoever is not sought yet: somebody may have been let back in."""
        for member in self._members():
            if member.node not in self._wanted and member.state is not MemberState.left:
                self.seek(member.node, member.addresses)

    def strike(self, node: str) -> bool:
        """Seek a node no more; whether it was sought."""
        self._transport.forget(node)
        return self._wanted.pop(node, None) is not None

    async def remember(self) -> None:
        """Write down where everyone is, if it has changed. One write at a time, and none for each of many changes: a
        member can say every moment that it has moved. Raises Exhausted."""
        self._stale = True
        if self._writing:
            return
        self._writing = True
        try:
            while self._stale:
                self._stale = False
                await self._write()
        finally:
            self._writing = False

    async def _write(self) -> None:
        known = {
            member.node: member.addresses
            for member in self._members()
            if member.state is not MemberState.left and self._welcome(member.node)
        }
        raw = msgspec.msgpack.encode(dict(sorted(known.items())))
        if raw != self._journal.cell(CELL):
            await self._journal.set_cell(CELL, raw)

    def _welcome(self, node: str) -> bool:
        return node != self._me and not self._roles.revoked(node) and not self._roles.revoked(self._me)
