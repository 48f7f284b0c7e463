"""Who takes part: the views workers agree on."""

from __future__ import annotations

from dataclasses import dataclass

from hivenode.training.exchange.messages import ViewId


@dataclass(frozen=True, slots=True)
class View:
    """A membership all its members agree on.

    Attributes:
        number: grows with each view; 0 is the list the exchange was given, before anybody agreed to it.
        members: node ids in rank order.
        ranks: their ranks, ascending.
    """

    number: int
    members: tuple[str, ...]
    ranks: tuple[int, ...]

    @property
    def leader(self) -> str:
        """The member of the lowest rank."""
        return self.members[0]

    def __len__(self) -> int:
        return len(self.members)


@dataclass(frozen=True, slots=True)
class RankView:
    """A view as the protocol sees it: `parent` is the view whose members agreed on this one."""

    id: ViewId
    parent: ViewId
    ranks: tuple[int, ...]
