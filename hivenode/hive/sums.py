"""A membership in brief: a hash for each group of members, so that two who agree find it out for a few hundred bytes,
and two who do not exchange only the groups that differ. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

from hivenode.hive.roster import Member

BYTES = 8
"""Of one group's hash."""
MEMBERS_PER_GROUP = 8
MAX_GROUPS = 1024
KEPT = 3
"""Ways to split that are kept up to date: ours, and those of others that know more or less."""


def groups_for(members: int) -> int:
    """A power of two that leaves each group with a few members."""
    groups = 1
    while groups < MAX_GROUPS and groups * MEMBERS_PER_GROUP < members:
        groups *= 2
    return groups


def group(node: str, groups: int) -> int:
    return hash32(node) % groups


@lru_cache(maxsize=16_384)
def hash32(node: str) -> int:
    return int.from_bytes(hashlib.blake2b(node.encode(), digest_size=4).digest(), "big")


class Summary:
    """The hashes of all groups: of who is in them, in which incarnation and state. Worked out anew only for groups in
    which something has changed, since where a crowd joins they are asked for at every link.

    Args:
        members: the live list, by id; `touch` is to be called after every change.
    """

    def __init__(self, members: Mapping[str, Member]) -> None:
        self._members = members
        self._splits: dict[int, tuple[list[dict[str, None]], list[bytes]]] = {}
        """By number of groups, as lately asked for: who is in each, and its hash, empty until worked out."""

    def touch(self, node: str) -> None:
        """This member has come, changed or gone."""
        for groups, (held, hashes) in self._splits.items():
            at = group(node, groups)
            hashes[at] = b""
            if node in self._members:
                held[at][node] = None
            else:
                held[at].pop(node, None)

    def of(self, groups: int) -> bytes:
        held, hashes = self._split(groups)
        for at, known in enumerate(hashes):
            if not known:
                lines = sorted(map(_line, map(self._members.__getitem__, held[at])))
                hashes[at] = hashlib.blake2b("\n".join(lines).encode(), digest_size=BYTES).digest()
        return b"".join(hashes)

    def members(self, groups: int, wanted: Iterable[int]) -> list[str]:
        """Who is in these groups."""
        held, _ = self._split(groups)
        return [node for at in sorted(wanted) for node in held[at]]

    def _split(self, groups: int) -> tuple[list[dict[str, None]], list[bytes]]:
        split = self._splits.pop(groups, None)
        if split is None:
            held: list[dict[str, None]] = [{} for _ in range(groups)]
            for node in self._members:
                held[group(node, groups)][node] = None
            split = held, [b""] * groups
        self._splits[groups] = split
        if len(self._splits) > KEPT:
            del self._splits[next(iter(self._splits))]
        return split


def _line(member: Member) -> str:
    return f"{member.node} {member.incarnation} {member.state.value}"


def valid(sums: bytes) -> bool:
    groups, rest = divmod(len(sums), BYTES)
    return rest == 0 and 0 < groups <= MAX_GROUPS and groups & (groups - 1) == 0


def differing(ours: bytes, theirs: bytes) -> frozenset[int]:
    """Groups that differ between two of one length."""
    return frozenset(
        at // BYTES for at in range(0, len(theirs), BYTES) if ours[at : at + BYTES] != theirs[at : at + BYTES]
    )
