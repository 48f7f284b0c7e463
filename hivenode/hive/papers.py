"""This node's credentials as they change: its certificate is renewed long before it ends, and where the node has the
admin role it keeps a copy of the authority's key and renews the certificates of others.

A certificate for a member in good standing is of use to nobody who lacks that member's key. So anybody may pass on a
request for one, and a node whose own has expired needs to reach any member that is linked with one that can sign.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hivenode.errors import HiveError, Refused, Unavailable
from hivenode.hive.roles import Roles
from hivenode.logs import get_logger
from hivenode.net.messages import AuthorityKey, AuthorityRequest, Renew, Renewed, Request, Response
from hivenode.spec.values import Role
from hivenode.tasks import TaskGroup
from hivenode.trust.authority import Authority, open_grant
from hivenode.trust.certificates import Paper, day, span
from hivenode.trust.credentials import Credentials

ASK_SECONDS = 10.0
MAX_ASKED = 8
"""Members asked, and addresses tried, in one attempt to renew."""
RETRY_SECONDS = (15.0, 600.0)
"""Between two attempts: a twentieth of the time that is left, or of that since the end, within these bounds."""
LOOK_SECONDS = 3600.0
"""Longest wait between two looks at the clock, which may have been set."""
LATE = 0.2
"""Part of a certificate's life that is left when a person is told that it could not be renewed."""

log = get_logger("papers")


class Papers:
    """
    Args:
        lifetime: of the certificates made here.
        links: ids of linked members.
        doors: ids and addresses of members, linked or not, "" for an id that is not known.
        call: asks a linked member.
        appeal: asks for a certificate without a link, and with an expired one: member's id and address.
        adopt: makes new credentials durable, and shows their certificate to others from here on.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        lifetime: timedelta,
        wall: Callable[[], float],
        rng: random.Random,
        roles: Roles,
        links: Callable[[], Sequence[str]],
        doors: Callable[[], Sequence[tuple[str, str]]],
        call: Callable[[str, Request, float], Awaitable[Response]],
        appeal: Callable[[str, str], Awaitable[str]],
        adopt: Callable[[Credentials], None],
        tasks: TaskGroup,
    ) -> None:
        self._credentials = credentials
        self._lifetime = lifetime
        self._wall = wall
        self._rng = rng
        self._roles = roles
        self._links = links
        self._doors = doors
        self._call = call
        self._appeal = appeal
        self._adopt = adopt
        self._tasks = tasks
        self._wake = asyncio.Event()
        self._failure = ""
        self._joined_with = open_grant(credentials.grant, credentials.authority_key).serial
        self._read()

    def _read(self) -> None:
        # In simulation there is no TLS, and so there are no certificates.
        self._paper = self._credentials.paper if self._credentials.certificate_pem else None
        self._due = self._paper.renewal_due(self._rng) if self._paper else float("inf")

    @property
    def me(self) -> str:
        return self._credentials.identity.node_id

    @property
    def authority(self) -> Authority | None:
        """The hive's authority, where this node keeps its key."""
        return self._credentials.authority

    @property
    def paper(self) -> Paper | None:
        """What this node's certificate says; None in simulation."""
        return self._paper

    @property
    def holders(self) -> tuple[str, ...]:
        """Members that should keep the authority's key, this node included, sorted."""
        return self._roles.holders(Role.admin)

    @property
    def complaint(self) -> tuple[str, str]:
        """Why this node's certificate is not renewed, and what to do, once that is urgent; empty while it is not."""
        if self._paper is None or not self._failure:
            return "", ""
        left = self._paper.ends - self._wall()
        names = ", ".join(self._roles.name(node) for node in self.holders if node != self.me) or "the founder"
        advice = f"Start {names}, or connect it. If it is gone for good, restore its home from the backup."
        if left <= 0:
            when = day(self._paper.ends)
            return f"This node's certificate ended on {when}, so the others turn it away. {self._failure}", advice
        if left < LATE * (self._paper.ends - self._paper.issued):
            return f"This node's certificate ends in {span(left)} and is not renewed. {self._failure}", advice
        return "", ""

    @property
    def trouble(self) -> str:
        """The same as one text."""
        return " ".join(filter(None, self.complaint))

    def certify(self, public_key: bytes, now: float) -> str:
        """A certificate, PEM. Raises Refused where the authority's key is not kept."""
        return self.require("certify nobody", "Do it").certify(
            public_key, now=datetime.fromtimestamp(now, UTC), lifetime=self._lifetime
        )

    def require(self, so: str, do: str) -> Authority:
        """The authority. Raises Refused where its key is not kept: `so` and `do` complete the sentences."""
        if self.authority is not None:
            return self.authority
        if self._roles.may(self.me, Role.admin):
            raise Refused(
                f"This node has the admin role but not yet the hive's authority key, so it can {so}.",
                fix="It gets the key by itself as soon as it is linked with another admin's node.",
            )
        names = ", ".join(self._roles.name(node) for node in self.holders)
        raise Refused(
            f"This node does not keep the hive's authority key, so it can {so}.",
            fix=f"{do} on the node that founded the hive, or another with the admin role"
            + (f" ({names})." if names else "."),
        )

    # --- keeping them up to date --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to renew. Where the authority is kept, an expired certificate is replaced before this returns."""
        if self._paper is None:
            return
        if self.authority is not None and self._wall() >= self._due:
            self._take(self.certify(self._credentials.identity.public_key, self._wall()))
        self._tasks.spawn(self._run(), "papers: renew")

    def look(self) -> None:
        """Somebody was linked, or roles changed: what could not be done before may be possible now."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            pause = self._due - self._wall()
            try:
                await self._keep_authority()
                if pause <= 0:
                    await self._renew()
                    self._failure = ""
                    pause = self._due - self._wall()
            except HiveError as error:
                self._failure = error.sentence
                log.warning("credentials could not be brought up to date", reason=str(error))
                pause = self._patience()
            try:
                async with asyncio.timeout(max(0.0, min(pause, LOOK_SECONDS))):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _patience(self) -> float:
        """Seconds until the next attempt, jittered."""
        assert self._paper is not None
        life, left = self._paper.ends - self._paper.issued, self._paper.ends - self._wall()
        shortest, longest = RETRY_SECONDS
        wait = min(longest, max(min(shortest, life / 20), abs(left) / 20))
        return wait * self._rng.uniform(0.5, 1.0)

    async def _renew(self) -> None:
        if self.authority is not None:
            pem = self.certify(self._credentials.identity.public_key, self._wall())
        else:
            pem = await self._obtain()
        self._take(pem)

    def _take(self, pem: str) -> None:
        fresh = self._credentials.renewed(pem)
        if trouble := fresh.paper.trouble(self._wall()):
            raise Refused(
                f"The new certificate is of no use here: {trouble}.",
                fix="Have both machines set their clocks by the network: `timedatectl set-ntp true`.",
            )
        self._change(fresh)
        log.info("certificate renewed", until=day(fresh.paper.ends))

    def _change(self, credentials: Credentials) -> None:
        self._adopt(credentials)
        self._credentials = credentials
        self._read()

    async def _obtain(self) -> str:
        """A new certificate from whoever can be reached. Raises the last refusal, or Unavailable."""
        trouble: HiveError | None = None
        for ask in self._ways()[:MAX_ASKED]:
            try:
                return await ask()
            except HiveError as error:
                trouble = error
        raise trouble or Unavailable("No other member is known.", fix="Name one in network.seeds.")

    def _ways(self) -> list[Callable[[], Awaitable[str]]]:
        """Linked members that can sign, those that may pass it on, then whoever is not linked; each group shuffled."""
        links, holders = list(self._links()), set(self.holders)
        doors = [door for door in self._doors() if door[0] not in links and door[0] != self.me]
        self._rng.shuffle(links)
        self._rng.shuffle(doors)
        links.sort(key=lambda node: node not in holders)
        doors.sort(key=lambda door: door[0] not in holders)

        def linked(node: str) -> Callable[[], Awaitable[str]]:
            async def ask() -> str:
                return await self._ask(node, self.me)

            return ask

        def knock(node: str, address: str) -> Callable[[], Awaitable[str]]:
            async def ask() -> str:
                return await self._appeal(node, address)

            return ask

        return [*map(linked, links), *(knock(*door) for door in doors)]

    async def _ask(self, peer: str, node: str) -> str:
        answer = await self._call(peer, Renew(node=node), ASK_SECONDS)
        if not isinstance(answer, Renewed):
            raise Unavailable(
                f"{self._roles.name(peer)} gave no certificate.", fix="Run the same version of hivenode there."
            )
        return answer.certificate

    async def _keep_authority(self) -> None:
        """Have the authority's key if, and only if, this node has the admin role."""
        entitled, told = self._roles.may(self.me, Role.admin), self._roles.grant(self.me)
        # Only a later grant takes the role away: after the loss of a journal the one we joined with is all we know.
        if self.authority is not None and not entitled and told is not None and told.serial > self._joined_with:
            log.warning("this node is no admin any more: its copy of the authority's key is removed")
            self._change(replace(self._credentials, authority=None))
        if self.authority is not None or not entitled:
            return
        for peer in [node for node in self._links() if node in self.holders]:
            answer = await self._call(peer, AuthorityRequest(), ASK_SECONDS)
            if not isinstance(answer, AuthorityKey):
                continue
            authority = Authority.from_private_bytes(answer.key)
            if authority.public_key != self._credentials.authority_key:
                raise Refused(
                    f"{self._roles.name(peer)} sent a key that is not this hive's.", fix=f"Revoke {peer[:8]}."
                )
            self._change(replace(self._credentials, authority=authority))
            log.info("this node keeps a copy of the authority's key from here on", source=self._roles.name(peer))
            return

    # --- what others ask for --------------------------------------------------------------------------------------

    async def serve(self, peer: str, request: Renew | AuthorityRequest) -> Renewed | AuthorityKey:
        """Answer a linked member. Raises HiveError."""
        if isinstance(request, Renew):
            return Renewed(certificate=await self.vouch(request.node, ask_others=request.node == peer))
        if not self._roles.may(peer, Role.admin):
            raise Refused(
                f"{self._roles.name(peer)} does not have the admin role, so it does not get the authority's key.",
                fix=f"`hivenode grant {self._roles.name(peer)} --role admin` with its other roles.",
            )
        key = self.require("hand it to nobody", "Ask").private_bytes()
        log.warning("the authority's key was copied to another admin's node", member=self._roles.name(peer))
        return AuthorityKey(key=key)

    async def vouch(self, node: str, *, ask_others: bool = True) -> str:
        """A new certificate, PEM, for a member in good standing.

        Args:
            ask_others: pass the request on where this node cannot sign.

        Raises:
            Refused: it is no member, or the authority's key is not kept here and nobody else may be asked.
            Unavailable: nobody that keeps the key is linked.
        """
        grant = self._roles.grant(node)
        if grant is None or grant.revokes:
            raise Refused(
                f"Node {node} is not a member of this hive.", fix="An admin may invite it, or grant it roles again."
            )
        if self.authority is not None:
            log.info("certificate made", member=grant.name, node_id=node)
            return self.certify(grant.public_key, self._wall())
        if not ask_others:
            self.require("certify nobody", "Ask")
        linked = set(self._links())
        for holder in [holder for holder in self.holders if holder in linked and holder != node]:
            return await self._ask(holder, node)
        names = ", ".join(self._roles.name(holder) for holder in self.holders) or "the founder"
        raise Unavailable(
            f"No member that keeps the authority's key can be reached ({names}).", fix=f"Start {names}, or connect it."
        )
