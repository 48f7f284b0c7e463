"""Whom to keep a link to. Pure.

Up to a size, everybody. Above it the neighbours on a few rings: each ring orders all members by a hash of their ids, so
everyone works out the same neighbours for everyone, both ends of a link agree on it, and a member that comes or goes
touches only those beside it (consistent hashing: Karger et al., 1997). The union of independent random rings is, with
high probability, an expander (Friedman, "A proof of Alon's second eigenvalue conjecture", 2003; Law and Siu,
"Distributed construction of random expander networks", 2003), so news crosses it in few hops and it stays connected
when many members vanish at once.

There are two sets of rings. One holds those that are present: it is what the living are held together by. The other
holds the gone as well, until they are forgotten: that members of the two sides of a split network go on seeking each
other is how it heals.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, insort
from collections.abc import Iterable

MAX_RINGS = 10
"""Enough for a million members."""
MAX_NEEDED = 64
"""Links at most that are kept because somebody asks for them."""
_KEY_BYTES = 8


def rings_for(members: int) -> int:
    """How many rings hold so many members together: two neighbours on each make about log2(n) + 4."""
    return min(MAX_RINGS, math.ceil((math.log2(max(2, members)) + 4) / 2))


def ring_keys(hive: str, node: str) -> tuple[bytes, ...]:
    """Where a node stands on each ring."""
    stream = hashlib.shake_128(f"hive.mesh.v1/{hive}/{node}".encode()).digest(MAX_RINGS * _KEY_BYTES)
    return tuple(stream[at : at + _KEY_BYTES] for at in range(0, len(stream), _KEY_BYTES))


Gap = tuple[bytes, bytes]
"""Two places on a ring, one after the other; the last and the first meet."""


class Rings:
    """Members in the order of each ring: by key, and then by id."""

    def __init__(self) -> None:
        self._rings: tuple[list[bytes], ...] = tuple([] for _ in range(MAX_RINGS))
        self._members: dict[str, tuple[bytes, ...]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, node: str) -> bool:
        return node in self._members

    def add(self, node: str, keys: tuple[bytes, ...]) -> None:
        self._members[node] = keys
        name = node.encode()
        for ring, key in zip(self._rings, keys, strict=True):
            insort(ring, key + name)

    def remove(self, node: str) -> None:
        name = node.encode()
        for ring, key in zip(self._rings, self._members.pop(node), strict=True):
            del ring[bisect_left(ring, key + name)]

    def gaps(self, node: str, keys: tuple[bytes, ...]) -> list[Gap]:
        """Between whom a node stands on each ring in use, or would."""
        if not self._members:
            return []
        count, name, found = len(self._members) + (node not in self._members), node.encode(), list[Gap]()
        for ring, key in zip(self._rings[: rings_for(count)], keys, strict=False):
            at = bisect_left(ring, key + name)
            found.append((ring[at - 1], ring[(at + (ring[at : at + 1] == [key + name])) % len(ring)]))
        return found

    def beside(self, node: str, keys: tuple[bytes, ...]) -> Iterable[str]:
        """The two neighbours on each ring in use; of a node that is not on them, where it would stand."""
        return (place[_KEY_BYTES:].decode() for gap in self.gaps(node, keys) for place in gap)


def comes_between(gaps: Iterable[Gap], node: str, keys: tuple[bytes, ...]) -> bool:
    """Whether a node stands in one of these gaps, each on its ring."""
    name = node.encode()
    for (before, after), key in zip(gaps, keys, strict=False):
        place = key + name
        if (before < place < after) if before < after else (place > before or place < after):
            return True
    return False


class Mesh:
    """The links that one node should keep.

    Args:
        me: its id.
        hive: the hive's id, which seeds the rings.
        full: members, this node included, up to which everybody is linked with everybody. Once there are more, the mesh
            is partial until they are a quarter fewer, so that a hive around that size does not swing to and fro.
    """

    def __init__(self, me: str, hive: str, full: int) -> None:
        self._me = me
        self._hive = hive
        self._full = full
        self._keys = ring_keys(hive, me)
        self._known = Rings()
        self._present = Rings()
        self._partial = False
        self._beside: dict[str, None] = {}
        """Our neighbours on the rings, while partial."""
        self._gaps: tuple[list[Gap], list[Gap]] = ([], [])
        """Where we stand between them: among those present, and among all."""

    @property
    def partial(self) -> bool:
        """Whether links are kept to some members only."""
        return self._partial

    @property
    def limit(self) -> int:
        """Links at most, once partial."""
        return 4 * MAX_RINGS + MAX_NEEDED

    def set(self, node: str, *, present: bool) -> bool:
        """A member to seek, present or gone. Returns whether `neighbours` may be others now."""
        if node == self._me:
            return False
        new = node not in self._known
        came = present and node not in self._present
        if new or came:
            keys = ring_keys(self._hive, node)
            if new:
                self._known.add(node, keys)
            if came:
                self._present.add(node, keys)
            if self._elsewhere(node, keys):
                return False
        elif not present and node in self._present:
            self._present.remove(node)
        else:
            return False
        return self._review() or (new and not self._partial)

    def _elsewhere(self, node: str, keys: tuple[bytes, ...]) -> bool:
        """Whether a node that has just come leaves our neighbours as they are: most do, and they come in crowds."""
        same = all(
            len(gaps) == rings_for(len(rings) + 1)
            for gaps, rings in zip(self._gaps, (self._present, self._known), strict=True)
        )
        return self._partial and same and not any(comes_between(gaps, node, keys) for gaps in self._gaps)

    def drop(self, node: str) -> None:
        """Not to be sought any more."""
        for rings in (self._known, self._present):
            if node in rings:
                rings.remove(node)
        self._review()

    def neighbours(self, needed: Iterable[str] = ()) -> frozenset[str]:
        """Whom to keep a link to.

        Args:
            needed: others that somebody here wants to be linked with; of those known, the first `MAX_NEEDED` count.
        """
        if not self._partial:
            return frozenset(self._known._members)
        wanted = [node for node in dict.fromkeys(needed) if node in self._known]
        return frozenset((*self._beside, *wanted[:MAX_NEEDED])) - {self._me}

    def beside(self, node: str) -> frozenset[str]:
        """Who, of those present, should keep a link to this member in a partial mesh."""
        return frozenset(self._present.beside(node, ring_keys(self._hive, node))) - {node}

    def _review(self) -> bool:
        """Look whether the mesh is partial, and who is beside us; whether either has changed."""
        before = self._partial, self._beside
        members = len(self._known) + 1
        if members > self._full:
            self._partial = True
        elif members <= self._full * 3 // 4:
            self._partial = False
        present, known = (
            rings.gaps(self._me, self._keys) if self._partial else [] for rings in (self._present, self._known)
        )
        self._gaps = present, known
        self._beside = {place[_KEY_BYTES:].decode(): None for gap in (*present, *known) for place in gap}
        return before != (self._partial, self._beside)
