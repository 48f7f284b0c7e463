"""Who votes, in a hive with more members that may coordinate than can be asked each time. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

FULL = 64
"""Up to so many members all vote, and all get heartbeats."""
SEATS = FULL - 1
"""Voters of a larger hive; odd, for an even number tolerates no more losses."""


def council(alive: Iterable[str], serial: Callable[[str], int]) -> tuple[str, ...]:
    """The voters among those alive that may coordinate, sorted by id: all of up to `FULL`, else the `SEATS` that were
    granted their roles first. Members that agree on who is alive agree on the council.

    Args:
        serial: the serial number of a member's grant.
    """
    present = sorted(alive)
    if len(present) <= FULL:
        return tuple(present)
    return tuple(sorted(node for _, node in sorted(zip(map(serial, present), present, strict=True))[:SEATS]))
