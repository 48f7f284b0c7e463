"""Who may do what: a fold over the grants that the hive's authority signed. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hivenode.errors import Refused
from hivenode.spec.events import Body, NodeAdmitted
from hivenode.spec.values import Role
from hivenode.trust.authority import Grant, open_grant


class Roles:
    """Latest grant of each node: highest serial, and of two with one serial the one whose bytes are higher. A grant
    proves itself by the authority's signature, so it does not matter in whose feed it stands, nor when it was said.

    Args:
        own: this node's own grant, which counts before its feed has begun.
    """

    topic = "roles"
    kinds: tuple[type[Body], ...] = (NodeAdmitted,)
    commuting: tuple[type[Body], ...] = (NodeAdmitted,)

    def __init__(self, authority_key: bytes, own: bytes | None = None) -> None:
        self._authority_key = authority_key
        self._own = open_grant(own, authority_key) if own is not None else None
        self._folded: dict[str, tuple[Grant, bytes]] = {}
        self._grants: dict[str, Grant] = {}
        self._news: dict[str, None] = {}
        self._revoked: dict[str, None] = {}
        self._holders: dict[Role, tuple[str, ...]] = {}
        """As last worked out, until a grant changes."""
        self.back({})

    def apply(self, author: str, hlc: int, body: Body) -> None:
        assert isinstance(body, NodeAdmitted)
        try:
            grant = open_grant(body.grant, self._authority_key)
        except Refused:
            return  # a forged grant grants nothing; the feed that carries it is otherwise valid
        self._take(grant, body.grant)

    def _take(self, grant: Grant, signed: bytes) -> None:
        held = self._folded.get(grant.node)
        if held is None or (grant.serial, signed) > (held[0].serial, held[1]):
            self._folded[grant.node] = (grant, signed)
            self._show(grant.node)

    def _show(self, node: str) -> None:
        """Go by what was folded of a node, or by our own grant where that says more of us."""
        folded = self._folded.get(node)
        grant = folded[0] if folded is not None else None
        own = self._own if self._own is not None and self._own.node == node else None
        if own is not None and (grant is None or own.serial > grant.serial):
            grant = own
        if grant == self._grants.get(node):
            return
        if grant is not None:
            self._grants[node] = grant
        else:
            del self._grants[node]
        if grant is not None and grant.revokes:
            self._revoked[node] = None
        else:
            self._revoked.pop(node, None)
        self._news[node] = None
        self._holders.clear()

    def mark(self) -> object:
        return dict(self._folded)

    def back(self, mark: object) -> None:
        assert isinstance(mark, dict)
        self._folded = dict(mark)
        own = (self._own.node,) if self._own is not None else ()
        for node in dict.fromkeys((*self._grants, *self._folded, *own)):
            self._show(node)

    def fresh(self) -> Roles:
        return Roles(self._authority_key)

    def dump(self, forget: int) -> Iterator[bytes]:
        """The grants as the authority signed them."""
        for node in sorted(self._folded):
            yield self._folded[node][1]

    def load(self, piece: bytes) -> None:
        """Raises Refused: the authority did not sign it."""
        self._take(open_grant(piece, self._authority_key), piece)

    def of(self, node: str) -> tuple[Role, ...]:
        grant = self._grants.get(node)
        return grant.roles if grant else ()

    def may(self, node: str, role: Role) -> bool:
        return role in self.of(node)

    def grant(self, node: str) -> Grant | None:
        """What the authority said last of a node; None for one it never spoke of."""
        return self._grants.get(node)

    def serial(self, node: str) -> int:
        """Of its latest grant; 0 without one."""
        grant = self._grants.get(node)
        return grant.serial if grant else 0

    def revoked(self, node: str) -> bool:
        return node in self._revoked

    def news(self) -> tuple[str, ...]:
        """Nodes whose latest grant is another than when this was asked last."""
        news, self._news = tuple(self._news), {}
        return news

    @property
    def grants(self) -> tuple[Grant, ...]:
        """The latest of each node, revoked ones included, by id."""
        return tuple(self._grants[node] for node in sorted(self._grants))

    def public_key(self, node: str) -> bytes | None:
        grant = self._grants.get(node)
        return grant.public_key if grant else None

    def name(self, node: str) -> str:
        grant = self._grants.get(node)
        return grant.name if grant else node[:8]

    def holders(self, role: Role) -> tuple[str, ...]:
        """Ids of all nodes with a role, sorted."""
        if role not in self._holders:
            self._holders[role] = tuple(sorted(node for node, grant in self._grants.items() if role in grant.roles))
        return self._holders[role]
