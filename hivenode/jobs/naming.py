"""What workers say, who know each other by id only, with nodes called by their names. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

_ID = re.compile(r"\b[a-z0-9]{32}\b")
SHORT = 8
"""Characters of an id that tell apart two nodes of one name."""


class Names:
    """Of the nodes of an attempt.

    Args:
        name: a node's name for people.
    """

    def __init__(self, nodes: Iterable[str], name: Callable[[str], str]) -> None:
        named = {node: name(node) for node in nodes}
        often = Counter(named.values())
        self._spoken = {n: f"{own} ({n[:SHORT]})" if often[own] > 1 else own for n, own in named.items()}

    def listed(self, nodes: Iterable[str]) -> str:
        """Some of them."""
        return ", ".join(self._spoken.get(node, node[:SHORT]) for node in nodes)

    def within(self, text: str) -> str:
        """A sentence with their ids in it."""
        return _ID.sub(lambda found: self._spoken.get(found[0], found[0]), text)
