"""Letting machines in: invites issued by a node that holds the hive's authority, and their redemption."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime

from hivenode.errors import InvalidInput, Refused
from hivenode.logs import get_logger
from hivenode.net.joining import JoinReply, JoinRequest
from hivenode.spec.status import InviteIssued
from hivenode.spec.values import Role
from hivenode.store.ports import Journal
from hivenode.trust.authority import Authority
from hivenode.trust.credentials import Credentials
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
    """

    def __init__(
        self,
        credentials: Credentials,
        journal: Journal,
        *,
        wall: Callable[[], float],
        rng: random.Random,
        addresses: Callable[[], tuple[str, ...]],
    ) -> None:
        self._credentials = credentials
        self._journal = journal
        self._wall = wall
        self._rng = rng
        self._addresses = addresses
        self._book = InviteBook(journal.cell(CELL))
        self._lock = asyncio.Lock()

    async def invite(self, roles: tuple[Role, ...], uses: int, expires_seconds: float) -> InviteIssued:
        """A token with which another machine joins. Raises Refused where the authority's key is not kept."""
        self._authority()
        if not roles:
            raise InvalidInput("An invite needs at least one role.", fix=f"Roles are {', '.join(Role)}.")
        if not 1 <= uses <= 10_000:
            raise InvalidInput(f"An invite for {uses} uses makes no sense.", fix="Give 1 to 10000.")
        if not 1 <= expires_seconds <= 366 * 86400:
            raise InvalidInput("An invite must last between a second and a year.", fix="Give --expires as 30m, 1h, 7d.")
        expires_at = self._wall() + expires_seconds
        async with self._lock:
            invite = self._book.issue(
                self._credentials.hive_id,
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
        """Redeem an invite. The caller has proved that it holds the private key. Raises Refused."""
        authority = self._authority()
        node = id_of(request.public_key)
        async with self._lock:
            now = self._wall()
            roles = self._book.redeem(request.id, request.secret, node, now)
            await self._journal.set_cell(CELL, self._book.state())
        certificate = authority.certify(request.public_key, now=datetime.fromtimestamp(now, UTC))
        grant = authority.grant(request.public_key, request.name, roles, serial=int(now * 1000))
        log.info("admitted", node_id=node, member=request.name, roles=[role.value for role in roles])
        return JoinReply(
            certificate_pem=certificate,
            grant=grant,
            authority_pem=authority.certificate_pem,
            addresses=self._addresses(),
        )

    def _authority(self) -> Authority:
        if self._credentials.authority is None:
            raise Refused(
                "This node does not keep the hive's authority key, so it can let nobody in.",
                fix="Make the invite on the node that founded the hive.",
            )
        return self._credentials.authority
