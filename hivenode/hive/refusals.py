"""Dials that are refused: the host is there and nothing listens, so the process is gone. Pure.

Once makes a suspect, twice, at least `refusal_confirm` apart and with no link in between, makes it dead. That holds
only for a member we have been linked with since it last said that it is alive: an address that never led to it (behind
a router, a container's) proves nothing, and one refuted verdict is enough to unlearn it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hivenode.hive.prober import NEVER
from hivenode.hive.profiles import Profile
from hivenode.hive.roster import PRESENT, Member, MemberState


@dataclass(slots=True)
class _Refusal:
    since: float
    incarnation: int
    redial_at: float


class Refusals:
    """Of one node.

    Args:
        members: everyone known, by id.
    """

    def __init__(self, profile: Profile, members: Mapping[str, Member]) -> None:
        self._confirm = profile.refusal_confirm
        self._members = members
        self._open: dict[str, _Refusal] = {}
        self._vouched: dict[str, None] = {}
        """Whose address has led to it since it last said that it is alive."""

    def deadline(self) -> float:
        """When the next is to be dialled again."""
        return min((refusal.redial_at for refusal in self._open.values()), default=NEVER)

    def linked(self, peer: str) -> None:
        self._open.pop(peer, None)
        self._vouched[peer] = None

    def moved(self, peer: str) -> None:
        """What a dial to where it was would say no longer counts."""
        self._vouched.pop(peer, None)

    def forget(self, peer: str) -> None:
        self._open.pop(peer, None)
        self._vouched.pop(peer, None)

    def clear(self) -> None:
        """None is to be dialled again."""
        self._open.clear()

    def refused(self, now: float, member: Member) -> MemberState | None:
        """A member without a link, not known to be gone, refuses a dial. `suspect` or `dead` if that is what to hold
        it for now."""
        refusal = self._open.get(member.node)
        if refusal is None:
            if member.node not in self._vouched:
                return None
            self._open[member.node] = _Refusal(now, member.incarnation, now + self._confirm)
            return MemberState.suspect
        if member.incarnation != refusal.incarnation:
            # It spoke to others meanwhile: that it refuses us says something about the way, not about it.
            self.forget(member.node)
            return None
        if now - refusal.since < self._confirm:
            return None
        self.forget(member.node)
        return MemberState.dead

    def due(self, now: float) -> list[str]:
        """Whom to dial again now."""
        peers = []
        for peer, refusal in list(self._open.items()):
            member = self._members.get(peer)
            if member is None or member.state not in PRESENT:
                del self._open[peer]
            elif member.incarnation != refusal.incarnation:
                self.forget(peer)
            elif now >= refusal.redial_at:
                refusal.redial_at = now + self._confirm
                peers.append(peer)
        return peers
