"""Signing, checking and ordering the four statements of membership.

`Alive` and `Left` carry their subject's signature, `Suspect` and `Dead` their accuser's. Signatures are over
a tag, the kind and every other field, so that none can stand for another.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from hivenode.hive.standing import ORDINARY
from hivenode.net.messages import Alive, Dead, Left, Statement, Suspect

Sign = Callable[[bytes], bytes]
"""Our own Ed25519 signature of these bytes."""
Verify = Callable[[str, bytes, bytes], bool]
"""verify(node, signature, data): False as well for nodes that are not of this hive."""

_encode = msgspec.msgpack.Encoder().encode
_TAG = "hive.swim.v1"
_UNSIGNED = bytes(64)


def signed_part(statement: Statement) -> bytes:
    """The bytes a statement's signature covers."""
    if isinstance(statement, Alive):
        return _encode((_TAG, "alive", statement.node, statement.incarnation, statement.name,
                        statement.addresses, statement.version, statement.standing, statement.leads))  # fmt: skip
    if isinstance(statement, Left):
        return _encode((_TAG, "left", statement.node, statement.incarnation))
    kind = "suspect" if isinstance(statement, Suspect) else "dead"
    return _encode((_TAG, kind, statement.node, statement.incarnation, statement.by))


def author(statement: Statement) -> str:
    """Whose signature it must carry."""
    return statement.node if isinstance(statement, Alive | Left) else statement.by


def valid(statement: Statement, verify: Verify) -> bool:
    """Whether the right node signed it. A node does not accuse itself."""
    if isinstance(statement, Suspect | Dead) and statement.by == statement.node:
        return False
    return verify(author(statement), statement.signature, signed_part(statement))


def size(statement: Statement) -> int:
    """Encoded length in bytes."""
    return len(_encode(statement))


def alive(
    sign: Sign, node: str, incarnation: int, name: str, addresses: tuple[str, ...], version: str,
    standing: int = ORDINARY, leads: int = 0,
) -> Alive:  # fmt: skip
    draft = Alive(node, incarnation, name, addresses, version, standing, leads, _UNSIGNED)
    return msgspec.structs.replace(draft, signature=sign(signed_part(draft)))


def left(sign: Sign, node: str, incarnation: int) -> Left:
    draft = Left(node, incarnation, _UNSIGNED)
    return msgspec.structs.replace(draft, signature=sign(signed_part(draft)))


def suspect(sign: Sign, node: str, incarnation: int, by: str) -> Suspect:
    draft = Suspect(node, incarnation, by, _UNSIGNED)
    return msgspec.structs.replace(draft, signature=sign(signed_part(draft)))


def dead(sign: Sign, node: str, incarnation: int, by: str) -> Dead:
    draft = Dead(node, incarnation, by, _UNSIGNED)
    return msgspec.structs.replace(draft, signature=sign(signed_part(draft)))
