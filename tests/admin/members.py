"""The administration of members in memory: answers like a node's and remembers what was asked."""

from __future__ import annotations

import dataclasses
from typing import Any

from hivenode.errors import NotFound, Refused
from hivenode.spec.members import (
    Check,
    Diagnosis,
    KnownPeer,
    MemberChanged,
    PairingStatus,
    PeerExamined,
    Peers,
    PendingPeer,
    ProbedAddress,
    RevokedPeer,
)
from hivenode.spec.values import Role

BIRCH = "b" * 32
AT = 1_700_000_000.0


@dataclasses.dataclass
class MemoryMembers:
    """`MemberService` of a node that knows one other, birch; `fix` is what the doctor finds wrong with it."""

    fix: str = ""
    codes: list[PairingStatus] = dataclasses.field(default_factory=list)
    """How it stands with the pairing code, one state after the other."""
    asked: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)

    async def revoke(self, ref: str, reason: str) -> MemberChanged:
        self.asked.append(("revoke", ref, reason))
        if ref == "ash":
            raise Refused("This node founded the hive: it cannot be revoked.", fix="Stop it.")
        return self._changed(ref, ())

    async def grant(self, ref: str, roles: tuple[Role, ...]) -> MemberChanged:
        self.asked.append(("grant", ref, roles))
        return self._changed(ref, roles)

    async def forget(self, ref: str) -> MemberChanged:
        self.asked.append(("forget", ref))
        return self._changed(ref, ())

    def peers(self) -> Peers:
        known = KnownPeer(
            BIRCH, "birch", "dead", ("worker",), False, ("192.0.2.2:7447",), "0.1.0", AT, "evil \x1b[2J", False, False
        )
        pending = PendingPeer("d" * 32, "dogwood", "x" * 32, "192.0.2.4:7447", AT, "heard", "It is in another hive.")
        return Peers((known,), (pending,), (RevokedPeer("c" * 32, "cedar", AT, "laptop sold"),))

    async def doctor(self, ref: str) -> Diagnosis:
        self.asked.append(("doctor", ref))
        probed = ProbedAddress(
            "192.0.2.2:7447", not self.fix, not self.fix, "0.1.0", "1-1", 0.2, self.fix and "refused"
        )
        birch = PeerExamined(
            BIRCH, "birch", "alive", True, "0.1.0", AT, AT, "", (probed,), not self.fix, "birch is as it is.", self.fix
        )
        return Diagnosis(not self.fix, (Check("clock", True, "The clock is right."),), (birch,))

    def pair(self, roles: tuple[Role, ...]) -> PairingStatus:
        self.asked.append(("pair", roles))
        if not self.codes:
            raise Refused("This node does not keep the hive's authority key.", fix="Ask ash.")
        return self.codes.pop(0)

    async def pairing(self, unlike: str, seconds: float) -> PairingStatus:
        return self.codes.pop(0)

    def stop_pairing(self) -> PairingStatus:
        self.asked.append(("stop_pairing",))
        return PairingStatus("closed")

    @staticmethod
    def _changed(ref: str, roles: tuple[Role, ...]) -> MemberChanged:
        if ref != "birch":
            raise NotFound(f"There is no node {ref}.", fix="`hivenode peers` lists those this node knows.")
        return MemberChanged(BIRCH, "birch", tuple(role.value for role in roles))
