"""Whom a leader should make way for, and when. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hivenode.hive.standing import ORDINARY, UNABLE, clearly

NEVER = float("inf")


def order(nodes: Iterable[str], standings: Mapping[str, int]) -> list[str]:
    """Best first; ids decide between equals."""
    return sorted(nodes, key=lambda node: (-standings.get(node, ORDINARY), node))


class Succession:
    """Kept by a leader.

    A member that is clearly better is made leader once it has been so for `patience` seconds, so that one that comes
    and goes does not get the lead each time; at once if it is we who have become worse (a laptop was unplugged). After
    an attempt the next one waits for as long, whatever came of it.
    """

    def __init__(self, me: str, patience: float) -> None:
        self._me = me
        self._patience = patience
        self._since: dict[str, float] = {}
        self._own = 0
        self._fell = False
        self._not_before = -NEVER

    def begin(self, now: float, standings: Mapping[str, int]) -> None:
        """We lead from now on."""
        self._own = clearly(standings.get(self._me, ORDINARY))
        self._since.clear()
        self._fell = False
        self.look(now, standings)

    def look(self, now: float, standings: Mapping[str, int]) -> None:
        """The standings of all voters that are alive, ourselves included, as they are now."""
        own = clearly(standings.get(self._me, ORDINARY))
        if own != self._own:
            self._fell = own < self._own
            self._own = own
        better = [node for node, standing in standings.items() if clearly(standing) > own]
        self._since = {node: self._since.get(node, now) for node in better}
        self._fell = self._fell and bool(better)

    def due(self, now: float, reachable: Iterable[str], standings: Mapping[str, int]) -> str:
        """The member to hand over to now, or "".

        Args:
            reachable: those that have confirmed us a moment ago.
        """
        if not self._since or now < self._not_before:
            return ""
        ripe = [n for n in reachable if n in self._since and (self._fell or now - self._since[n] >= self._patience)]
        return order(ripe, standings)[0] if ripe else ""

    def tried(self, now: float) -> None:
        """A hand-over has begun."""
        self._not_before = now + self._patience

    def last_resort(self, reachable: Iterable[str], standings: Mapping[str, int]) -> str:
        """Whom to hand over to when we stop: the best there is, or ""."""
        able = [node for node in reachable if standings.get(node, ORDINARY) != UNABLE]
        return order(able, standings)[0] if able else ""
