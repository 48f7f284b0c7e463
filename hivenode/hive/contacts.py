"""What this node has noticed of others at the door: who was heard when, which dials failed and why, who announces
itself nearby. For people who look; nothing is decided by it. Bounded."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from hivenode.net.discovery import Announced
from hivenode.net.transport import LinkEnd, Refusal, Refusing

MAX_FAILURES = 256
MAX_ANNOUNCED = 256
MAX_OFFENCES = 256
MAX_REFUSED = 256
REFUSALS = (LinkEnd.identity, LinkEnd.protocol)
"""Ends that mean: somebody is there, and the two of us will not talk."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A dial that came to nothing. `peer` is "" where nobody in particular was expected; `at` seconds since 1970."""

    peer: str
    address: str
    why: LinkEnd
    detail: str
    at: float


@dataclass(frozen=True, slots=True)
class Offence:
    """What a member did that no honest one does; `at` seconds since 1970."""

    address: str
    what: str
    at: float


@dataclass(frozen=True, slots=True)
class Heard:
    """An announcement, and when it came: seconds since 1970."""

    said: Announced
    at: float


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """Somebody who came to us and was refused: how often for that reason, and when last, seconds since 1970."""

    refusal: Refusal
    at: float
    times: int


class Contacts:
    """
    Args:
        wall: seconds since 1970.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._last: dict[str, float] = {}
        self._failures: dict[tuple[str, str], Failure] = {}
        self._announced: dict[str, Heard] = {}
        self._offences: dict[str, Offence] = {}
        self._refused: dict[tuple[str, Refusing], TurnedAway] = {}

    def linked(self, peer: str, address: str) -> None:
        """A link is up: earlier failures with this peer, or at this address, are history."""
        self._last[peer] = self._wall()
        gone = [key for key in self._failures if key[0] == peer or key[1] == address]
        for key in gone:
            del self._failures[key]
        self._refused = {key: one for key, one in self._refused.items() if one.refusal.node != peer}

    def heard(self, peer: str) -> None:
        """A member has said something."""
        self._last[peer] = self._wall()

    def failed(self, peer: str, address: str, why: LinkEnd, detail: str) -> None:
        self._failures.pop((peer, address), None)
        self._failures[peer, address] = Failure(peer, address, why, detail[:500], self._wall())
        if len(self._failures) > MAX_FAILURES:
            del self._failures[next(iter(self._failures))]

    def offended(self, peer: str, address: str, what: str) -> None:
        """A peer broke the protocol. Kept although it comes back, for a person to see."""
        before = self._offences.pop(peer, None)
        address = address or (before.address if before else "")
        self._offences[peer] = Offence(address, what[:500], self._wall())
        if len(self._offences) > MAX_OFFENCES:
            del self._offences[next(iter(self._offences))]

    def offence(self, peer: str) -> Offence | None:
        """The latest of a peer since this node started."""
        return self._offences.get(peer)

    def refused(self, refusal: Refusal) -> None:
        """Somebody came to us and was turned away."""
        key = (refusal.node or refusal.address, refusal.why)
        before = self._refused.pop(key, None)
        self._refused[key] = TurnedAway(refusal, self._wall(), before.times + 1 if before else 1)
        if len(self._refused) > MAX_REFUSED:
            del self._refused[next(iter(self._refused))]

    def turned_away(self, node: str = "") -> tuple[TurnedAway, ...]:
        """Who was refused lately, newest first; with `node`, only that one."""
        found = [one for one in self._refused.values() if not node or one.refusal.node == node]
        return tuple(sorted(found, key=lambda one: (-one.at, one.refusal.node, one.refusal.address)))

    def announced(self, said: Announced) -> None:
        """Somebody announces itself on the local network; of this hive or of another."""
        self._announced.pop(said.node, None)
        self._announced[said.node] = Heard(said, self._wall())
        if len(self._announced) > MAX_ANNOUNCED:
            del self._announced[next(iter(self._announced))]

    def forget(self, peer: str) -> None:
        self._last.pop(peer, None)
        for key in [key for key in self._failures if key[0] == peer]:
            del self._failures[key]

    def last(self, peer: str) -> float | None:
        """When a member last said anything, seconds since 1970; None if it has not since this node started."""
        return self._last.get(peer)

    def announcement(self, peer: str) -> Heard | None:
        return self._announced.get(peer)

    def failures(self, peer: str) -> tuple[Failure, ...]:
        """The latest failure at each address of a peer since it was last linked, newest first."""
        found = [failure for failure in self._failures.values() if failure.peer == peer]
        return tuple(sorted(found, key=lambda failure: (-failure.at, failure.address)))

    def strangers(self, known: Container[str], hive: str) -> tuple[Heard, ...]:
        """Who announces itself and is not among those known, newest first."""
        found = [heard for heard in self._announced.values() if heard.said.node not in known or heard.said.hive != hive]
        return tuple(sorted(found, key=lambda heard: (-heard.at, heard.said.node)))

    def unanswered(self, known: Container[str]) -> tuple[Failure, ...]:
        """Failed dials to those not known (seeds among them), and refusals by anybody; newest first."""
        found = [f for f in self._failures.values() if f.peer not in known or f.why in REFUSALS]
        return tuple(sorted(found, key=lambda failure: (-failure.at, failure.peer, failure.address)))
