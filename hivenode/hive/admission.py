"""Who belongs to the hive: invites issued by a node that holds the hive's authority, their redemption, and the
grants that change or end a membership. A grant becomes known as an event in that node's own feed, and holds by the
authority's signature wherever it is read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

from hivenode.errors import Conflict, InvalidInput, NotFound, Refused
from hivenode.hive.papers import Papers
from hivenode.hive.roles import Roles
from hivenode.logs import get_logger
from hivenode.net.joining import JoinReply, JoinRequest
from hivenode.spec.events import Body, NodeAdmitted
from hivenode.spec.status import InviteIssued
from hivenode.spec.values import Role
from hivenode.store.ports import Journal
from hivenode.trust.authority import Grant
from hivenode.trust.identity import id_of
from hivenode.trust.invites import InviteBook

CELL = "invites"

log = get_logger("admission")


class Admission:
    """Issues and redeems invites. Every use is on disk before it is answered.

    Args:
        wall: seconds since 1970.
        rng: source of invite ids and secrets (the daemon hands in the system's).
        addresses: where a joining node may reach members, own first.
        present: where a member that is alive now can be reached; None for any other.
        roles: what the authority has said of each node so far.
        grants: the same, with what stands in parts of feeds that do not count.
        counted: how many events of an author count here.
        append: states facts in our own feed.
        admitted: told of everybody let in: the invite's id, and the name.
    """

    def __init__(
        self,
        hive: str,
        papers: Papers,
        journal: Journal,
        *,
        wall: Callable[[], float],
        rng: random.Random,
        addresses: Callable[[], tuple[str, ...]],
        present: Callable[[str], tuple[str, ...] | None],
        roles: Roles,
        grants: Callable[[], Mapping[str, Grant]],
        counted: Callable[[str], int],
        append: Callable[[Body], Awaitable[None]],
        admitted: Callable[[str, str], None] = lambda invite, name: None,
    ) -> None:
        self._hive = hive
        self._papers = papers
        self._journal = journal
        self._wall = wall
        self._rng = rng
        self._addresses = addresses
        self._present = present
        self._roles = roles
        self._grants = grants
        self._counted = counted
        self._append = append
        self._admitted = admitted
        self._book = InviteBook(journal.cell(CELL))
        self._lock = asyncio.Lock()

    async def invite(self, roles: tuple[Role, ...], uses: int, expires_seconds: float) -> InviteIssued:
        """A token with which another machine joins. Raises Refused where the authority's key is not kept."""
        self._papers.require("let nobody in", "Make the invite")
        if not roles:
            raise InvalidInput("An invite needs at least one role.", fix=f"Roles are {', '.join(Role)}.")
        if not 1 <= uses <= 10_000:
            raise InvalidInput(f"An invite for {uses} uses makes no sense.", fix="Give 1 to 10000.")
        if not 1 <= expires_seconds <= 366 * 86400:
            raise InvalidInput("An invite must last between a second and a year.", fix="Give --expires as 30m, 1h, 7d.")
        expires_at = self._wall() + expires_seconds
        async with self._lock:
            invite = self._book.issue(
                self._hive,
                self._addresses()[:4],
                roles,
                uses=uses,
                expires_at=expires_at,
                rng_bytes=self._rng.randbytes,
                now=self._wall(),
            )
            await self._journal.set_cell(CELL, self._book.state())
        log.info("invite issued", invite=invite.id, roles=[role.value for role in roles], uses=uses)
        return InviteIssued(invite.token(), tuple(role.value for role in roles), uses, expires_at)

    async def admit(self, request: JoinRequest) -> JoinReply:
        """Redeem an invite. The caller has proved that it holds the private key.

        Raises:
            Refused: the invite is not good, or the node was revoked.
            Conflict: another machine runs with this key.
        """
        authority = self._papers.require("let nobody in", "Make the invite")
        node = id_of(request.public_key)
        if self._roles.revoked(node):  # an invite that is still open must not undo what a person decided
            raise Refused(
                f"Node {node} was revoked from this hive.",
                fix=f"An admin lets it in again with `hivenode grant {node[:8]} --role ROLE`.",
            )
        where = self._present(node)
        if where is not None and not request.rejoins:
            raise Conflict(
                f"The key of node {node[:8]} is in use: {self._roles.name(node)} is alive at {', '.join(where)}.",
                fix="Keys are never copied: remove the home here, or at least its key.pem, and join with a key of its "
                "own. If it is the same machine, made anew, wait a minute until the hive has noticed.",
            )
        async with self._lock:
            now = self._wall()
            roles = self._book.redeem(request.id, request.secret, node, now)
            await self._journal.set_cell(CELL, self._book.state())
        certificate = self._papers.certify(request.public_key, now)
        known = self._roles.grant(node)
        grant = authority.grant(request.public_key, request.name, roles, serial=self._serial(known))
        if known is not None:  # the first grant stands in the newcomer's feed; who returns has one there already
            await self._append(NodeAdmitted(grant=grant))
        self._admitted(request.id, request.name)
        log.info("admitted", node_id=node, member=request.name, roles=[role.value for role in roles])
        return JoinReply(
            certificate_pem=certificate,
            grant=grant,
            authority_pem=authority.certificate_pem,
            addresses=self._addresses(),
        )

    async def change(self, node: str, roles: tuple[Role, ...]) -> None:
        """Give a node these roles instead of those it has; also lets a revoked one in again.

        Raises:
            Refused: the authority's key is not kept here.
            InvalidInput: no roles.
            NotFound: the hive never had this node.
        """
        if not roles:
            raise InvalidInput(
                "A grant needs at least one role.", fix=f"Roles are {', '.join(Role)}; `hivenode revoke` takes all."
            )
        async with self._lock:
            authority = self._papers.require("change nobody's roles", "Do it")
            held = self._held(node)
            grant = authority.grant(held.public_key, held.name, tuple(dict.fromkeys(roles)), self._serial(held))
            await self._append(NodeAdmitted(grant=grant))
        log.info("roles granted", node_id=node, member=held.name, roles=[role.value for role in roles])

    async def revoke(self, node: str, reason: str) -> None:
        """End a node's membership. What it stated until now, as far as it has come here, goes on to count.

        Raises:
            Refused: the authority's key is not kept here, or `node` is this one.
            NotFound: the hive never had this node.
            Conflict: it is revoked already.
        """
        async with self._lock:
            authority = self._papers.require("revoke nobody", "Do it")
            if node == self._papers.me:
                raise Refused(
                    "This node keeps the hive's authority key: it cannot be revoked by itself.",
                    fix="Stop it with `hivenode down`, or revoke it on another node with the admin role.",
                )
            held = self._held(node)
            if held.revokes:
                raise Conflict(f"{held.name} is revoked already.", fix="Nothing to do.")
            grant = authority.grant(
                held.public_key,
                held.name,
                (),
                self._serial(held),
                through=self._counted(node),
                reason=reason,
            )
            await self._append(NodeAdmitted(grant=grant))
        log.warning("revoked", node_id=node, member=held.name, reason=reason)

    def _held(self, node: str) -> Grant:
        grant = self._roles.grant(node) or self._grants().get(node)
        if grant is None:
            raise NotFound(f"This hive never had a node {node}.", fix="`hivenode peers` lists those it knows.")
        return grant

    def _serial(self, held: Grant | None) -> int:
        """Above the one before, even if the clock was set back."""
        return max(int(self._wall() * 1000), held.serial + 1 if held is not None else 0)
