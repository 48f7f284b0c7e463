"""How fit a node is to coordinate, as one small number that it signs and tells with its membership. Pure.

A standing is compared from the left: the owner's priority, mains rather than battery, links with most of those that
vote, a healthy event loop, and having been up for a while. 0 says: I can neither vote nor lead (a full disk). What
only differs in the last place orders candidates; everything before it also decides (`clearly`) who may be asked to give
way to whom. Nobody can check what a node says of itself; a liar wins at most a role that it was granted anyhow.
"""

from __future__ import annotations

from dataclasses import dataclass

UNABLE = 0
"""The standing of a node that can neither vote nor lead."""
SETTLED_SECONDS = 120.0
"""A node up for less than this stands behind others."""
SPREAD_SECONDS = 4.0
"""For each member of the hive: over how long those that started together say one after another that they have settled.
Each such word costs every member some 5 KB of gossip."""
WELL_HEALTH = 3
"""Worst local health score (0 to 7) of a node that is well."""
MOST = 0.5
"""Share of the other voters a node must be linked with."""
_SETTLED, _WELL, _REACHES, _MAINS, _PRIORITY = 1, 2, 4, 8, 16


def compose(priority: int, *, mains: bool, reaches: bool, well: bool, settled: bool) -> int:
    """The standing of a node that can vote; `priority` 0 to 10."""
    return (priority + 1) * _PRIORITY + mains * _MAINS + reaches * _REACHES + well * _WELL + settled * _SETTLED


ORDINARY = compose(5, mains=True, reaches=True, well=True, settled=False)
"""Of a node that has just started and of which nothing else is known."""


def clearly(standing: int) -> int:
    """The part in which one standing must exceed another to be clearly better."""
    return standing >> 1


@dataclass(frozen=True, slots=True)
class Signs:
    """What a node sees of itself."""

    able: bool = True
    """Its votes can be written."""
    battery: bool = False
    health: int = 0
    linked: float = 1.0
    """Share of the other voters it is linked with."""
    members: int = 1
    """How many are present in the hive."""


class _Flag:
    """True until `worsens` seconds of False in a row, and again after `mends` seconds of True."""

    def __init__(self, worsens: float, mends: float, value: bool = True) -> None:
        self._worsens, self._mends = worsens, mends
        self._value = value
        self._otherwise: float | None = None

    def see(self, now: float, value: bool) -> bool:
        if value == self._value:
            self._otherwise = None
            return self._value
        if self._otherwise is None:
            self._otherwise = now
        if now - self._otherwise >= (self._worsens if self._value else self._mends):
            self._value, self._otherwise = value, None
        return self._value


class SelfAssessment:
    """Turns signs into a standing that does not flap: it worsens soon and mends late.

    Args:
        priority: the owner's wish, 0 to 10.
        now: when the node started, in the seconds of all later calls.
        turn: 0 to 1, of its own for each node: when it may say that it has settled, among those that started together.
    """

    def __init__(self, priority: int, now: float, turn: float = 0.0) -> None:
        self._priority = priority
        self._started = now
        self._turn = turn
        self._settled = False
        self._begun = False
        self._able = _Flag(0.0, 10.0)
        self._mains = _Flag(3.0, 60.0)
        self._reaches = _Flag(30.0, 60.0)
        self._well = _Flag(30.0, 60.0)

    def assess(self, now: float, signs: Signs) -> int:
        """The standing to tell; to be asked about once a second."""
        if not self._begun:
            self._begun = True
            self._mains = _Flag(3.0, 60.0, not signs.battery)
        able = self._able.see(now, signs.able)
        mains = self._mains.see(now, not signs.battery)
        reaches = self._reaches.see(now, signs.linked >= MOST)
        well = self._well.see(now, signs.health <= WELL_HEALTH)
        if not able:
            return UNABLE
        if now - self._started >= SETTLED_SECONDS + SPREAD_SECONDS * self._turn * signs.members:
            self._settled = True  # for good, however the hive grows
        return compose(self._priority, mains=mains, reaches=reaches, well=well, settled=self._settled)
