"""Those newly admitted: what they said of themselves before counts from now on; where it was missed it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from hivenode.node.services import Services

GATHER_SECONDS = 0.1
"""How long newcomers are gathered before what they said of themselves is taken up."""
AGAIN_SECONDS = 1.0
"""From asking once for what was missed to asking again; doubled each time. The one asked may lack it too, or have too
many who ask at once."""
TRIES = 6
"""So often it is asked for; many a node whose grant is heard of has left long ago, and nobody has anything of it."""


class Newcomers:
    def __init__(self, node: Services) -> None:
        self._node = node
        self._admitted: dict[str, None] = {}
        """Nodes of whose admission we have just heard."""
        self._missed: dict[str, None] = {}
        """Admitted, but no member to us yet."""
        self._tries = 0
        self._gathering: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None

    def close(self) -> None:
        for timer in (self._gathering, self._again):
            if timer is not None:
                timer.cancel()

    def admitted(self, nodes: Iterable[str]) -> None:
        """These are of the hive now, as we hear."""
        self._admitted.update(dict.fromkeys(nodes))
        if self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._take_up)

    def _take_up(self) -> None:
        """Take up their statements that came before, and ask for those of which none was kept."""
        node, self._gathering = self._node, None
        admitted, self._admitted = list(self._admitted), {}
        for one in admitted:
            node.membership.admitted(one)
        missed = dict.fromkeys(filter(self._lacks, admitted))
        linked = [one for one in node.ports.transport.links if one in missed] if missed else []
        for one in linked:
            node.membership.link_up(one)
        self._missed.update(missed)
        if missed and (self._again is None or self._tries > 1):
            self._tries = 0
            self._seek(ask=len(linked) < len(missed))

    def _lacks(self, one: str) -> bool:
        return self._node.membership.member(one) is None and not self._node.roles.revoked(one)

    def _seek(self, *, ask: bool = True) -> None:
        """Ask one that we are linked with for those still missed, and another one later."""
        node = self._node
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._missed = dict.fromkeys(filter(self._lacks, self._missed))
        if not self._missed or self._tries == TRIES:
            self._missed = {}
            return
        links = node.ports.transport.links if ask else ()
        if links:
            node.membership.link_up(node.ports.rng.choice(links))
        self._again = asyncio.get_running_loop().call_later(AGAIN_SECONDS * 2**self._tries, self._seek)
        self._tries += 1
