"""A membership in brief: a hash for each group of members, so that two who agree find it out for a few hundred bytes,
and two who do not exchange only the groups that differ. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from hivenode.hive.roster import Member

BYTES = 8
"""Of one group's hash."""
MEMBERS_PER_GROUP = 8
MAX_GROUPS = 1024


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


def of(members: Iterable[Member], groups: int) -> bytes:
    """The hashes of all groups: of who is in them, in which incarnation and state."""
    held: list[list[str]] = [[] for _ in range(groups)]
    for member in members:
        held[group(member.node, groups)].append(f"{member.node} {member.incarnation} {member.state.value}")
    return b"".join(hashlib.blake2b("\n".join(sorted(one)).encode(), digest_size=BYTES).digest() for one in held)


def valid(sums: bytes) -> bool:
    groups, rest = divmod(len(sums), BYTES)
    return rest == 0 and 0 < groups <= MAX_GROUPS and groups & (groups - 1) == 0


def differing(ours: bytes, theirs: bytes) -> frozenset[int]:
    """Groups that differ between two of one length."""
    return frozenset(
        at // BYTES for at in range(0, len(theirs), BYTES) if ours[at : at + BYTES] != theirs[at : at + BYTES]
    )
