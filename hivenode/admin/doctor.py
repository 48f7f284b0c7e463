"""Examining this node's connections: what is wrong, and the one thing to do about it."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hivenode.admin.verdicts import MAX_SKEW_SECONDS, Findings, verdict
from hivenode.errors import Unavailable
from hivenode.hive.contacts import Contacts
from hivenode.hive.membership import Membership
from hivenode.hive.papers import Papers
from hivenode.hive.roles import Roles
from hivenode.hive.swim import MemberState
from hivenode.net.addresses import is_loopback, split_address
from hivenode.net.discovery import Interface
from hivenode.net.probing import Probe
from hivenode.net.transport import Transport
from hivenode.spec.members import Check, Diagnosis, PeerExamined, ProbedAddress
from hivenode.trust.certificates import day, gap
from hivenode.walls import REMEDY

MAX_PEERS = 64
MAX_ADDRESSES = 8
AT_ONCE = 16


class Instruments(Protocol):
    """What the doctor needs of the machine. In simulation there is none."""

    @property
    def used(self) -> tuple[Interface, ...]:
        """Interfaces whose addresses are given out."""
        ...

    @property
    def skipped(self) -> tuple[Interface, ...]: ...

    @property
    def discovery(self) -> str:
        """State of discovery; "" when the settings switch it off."""
        ...

    @property
    def walls(self) -> str:
        """Those around workers that this system has, in words."""
        ...

    @property
    def lacking(self) -> tuple[str, ...]:
        """Sentences on those that it lacks."""
        ...

    async def probe(self, peer: str, address: str) -> Probe: ...


@dataclass(frozen=True)
class Doctor:
    """
    Args:
        addresses: what this node gives out as its own.
        instruments: None where there is no real network.
    """

    me: str
    addresses: Sequence[str]
    transport: Transport
    membership: Membership
    roles: Roles
    contacts: Contacts
    papers: Papers
    instruments: Instruments | None

    async def examine(self, peer: str) -> Diagnosis:
        """Examine this node, and the connections to one peer, or with "" to every member that should be there.

        Raises:
            Unavailable: there is no real network.
        """
        if self.instruments is None:
            raise Unavailable("There is no real network to examine.", fix="Ask a daemon.")
        peers = [peer] if peer else self._expected()
        room = asyncio.Semaphore(AT_ONCE)
        own = await asyncio.gather(*(self._probe(room, self.me, address) for address in self.addresses[:MAX_ADDRESSES]))
        examined = await asyncio.gather(*(self._examine(room, node) for node in peers if node != self.me))
        checks = (
            *self._network(),
            self._port(own),
            _clock([one.skew_seconds for each in examined for one in each.addresses if one.skew_seconds is not None]),
            self._certificate(),
            self._membership(),
            self._walls(),
        )
        healthy = all(check.ok for check in checks) and all(each.ok for each in examined)
        return Diagnosis(healthy=healthy, checks=checks, peers=tuple(examined))

    def _expected(self) -> list[str]:
        """Members that should be there, those not linked first."""
        links = self.transport.links
        nodes = [
            member.node
            for member in self.membership.members
            if member.state is not MemberState.left and not self.roles.revoked(member.node)
        ]
        return sorted(nodes, key=lambda node: (node in links, node))[:MAX_PEERS]

    async def _probe(self, room: asyncio.Semaphore, peer: str, address: str) -> Probe:
        assert self.instruments is not None
        async with room:
            return await self.instruments.probe(peer, address)

    # --- this node --------------------------------------------------------------------------------------------

    def _network(self) -> tuple[Check, ...]:
        assert self.instruments is not None
        used = ", ".join(f"{one.name} {one.address}" for one in self.instruments.used) or "none"
        skipped = ", ".join(f"{one.name} {one.address}" for one in self.instruments.skipped) or "none"
        only_here = all(is_loopback(split_address(address)[0]) for address in self.addresses)
        state = self.instruments.discovery
        working = not state.startswith("not working")
        return (
            Check("interfaces", True, f"Used: {used}. Skipped: {skipped}."),
            Check(
                "addresses",
                True,
                f"Others are told to dial {', '.join(self.addresses)}."
                + (" No other machine can: these are this machine's own." if only_here else ""),
                "To be found by other machines, set network.listen and network.advertise." if only_here else "",
            ),
            Check(
                "discovery",
                working,
                f"Discovery by multicast: {state or 'switched off by network.discovery'}.",
                "" if working else "Allow UDP port 5353 between the machines, or name members in network.seeds.",
            ),
        )

    def _port(self, own: Sequence[Probe]) -> Check:
        failed = [probe for probe in own if probe.error and not probe.refused]  # to be turned away is to be answered
        if not failed:
            return Check("port", True, f"It answers at {', '.join(probe.address for probe in own)}.")
        said = "; ".join(f"{probe.address}: {probe.error}" for probe in failed)
        fix = "Open the port in this machine's firewall, and correct network.advertise if it is set."
        return Check("port", len(failed) < len(own), f"This node cannot reach itself at {said}.", fix)

    def _certificate(self) -> Check:
        paper, (trouble, cure) = self.papers.paper, self.papers.complaint
        if paper is None:
            return Check("certificate", True, "There are no certificates here.")
        if trouble:
            return Check("certificate", False, trouble, cure)
        found = f"Good until {day(paper.ends)}, and renewed before. The authority's key is kept by {self._holders()}."
        others = [member for member in self.membership.members if member.node != self.me]
        lone = len(self.papers.holders) < 2 and len(others) > 0
        fix = (
            "If that machine is lost, nobody can be let in and certificates end: back up its home, and give a second "
            "one the admin role too (`hivenode grant NODE --role admin --role ...`)."
        )
        return Check("certificate", True, found, fix if lone else "")

    def _membership(self) -> Check:
        grant = self.roles.grant(self.me)
        if grant is not None and grant.revokes:
            reason = grant.reason.rstrip(". ") or "no reason was given"
            fix = "Ask an admin of the hive to grant it roles again, or join another hive."
            return Check("membership", False, f"This node was revoked: {reason}.", fix)
        return Check("membership", True, f"Its roles are {', '.join(self.roles.of(self.me))}.")

    def _walls(self) -> Check:
        assert self.instruments is not None
        if lacking := self.instruments.lacking:
            return Check("walls", False, " ".join(lacking), REMEDY)
        return Check("walls", True, f"Workers are kept apart by {self.instruments.walls}.")

    # --- a peer -----------------------------------------------------------------------------------------------

    async def _examine(self, room: asyncio.Semaphore, node: str) -> PeerExamined:
        member = self.membership.member(node)
        heard = self.contacts.announcement(node)
        failures = self.contacts.failures(node)
        addresses = dict.fromkeys(
            [
                *(member.addresses if member else ()),
                *(heard.said.addresses if heard else ()),
                *(failure.address for failure in failures),
            ]
        )
        tried = list(addresses)[:MAX_ADDRESSES]
        probes = await asyncio.gather(*(self._probe(room, node, address) for address in tried))
        linked = node in self.transport.links
        offence, last = self.contacts.offence(node), self.contacts.last(node)
        if offence is not None and last is not None and last > offence.at:
            offence = None  # it has come back and behaved since
        revoked, came = self.roles.revoked(node), self.contacts.turned_away(node)
        found, fix = verdict(
            Findings(
                name=self.roles.name(node),
                state=member.state.value if member else "",
                revoked=revoked,
                linked=linked,
                probes=probes,
                failure=failures[0].detail if failures else "",
                turned_away=came[0].refusal.detail if came else "",
                offence=f"{offence.what} (from {offence.address or 'somewhere'})" if offence else "",
                holders=self._holders(),
            )
        )
        return PeerExamined(
            node=node,
            name=(member.name if member else "") or self.roles.name(node),
            state="revoked" if revoked else member.state.value if member else "unheard",
            linked=linked,
            version=member.version if member else "",
            multicast_at=heard.at if heard else None,
            last_contact=last,
            last_error=failures[0].detail if failures else came[0].refusal.detail if came else "",
            addresses=tuple(
                ProbedAddress(p.address, p.tcp, p.identity, p.build, p.protocols, p.skew_seconds, p.error)
                for p in probes
            ),
            ok=not fix,
            found=found,
            fix=fix,
        )

    def _holders(self) -> str:
        """Names of the members that keep the authority's key."""
        return ", ".join(self.roles.name(node) for node in self.papers.holders) or "the founder"


def _clock(skews: Sequence[float]) -> Check:
    """Whose clock is wrong when many differ from ours, all to the same side: ours."""
    if not skews:
        return Check("clock", True, "No other member's clock could be compared.")
    middle = statistics.median(skews)
    if len(skews) > 1 and abs(middle) > MAX_SKEW_SECONDS:
        fix = "Set it by the network: `timedatectl set-ntp true`."
        return Check("clock", False, f"This machine's clock is {gap(-middle)} most others'.", fix)
    return Check("clock", True, f"The clocks of other members differ from it by {max(map(abs, skews)):.1f} s at most.")
