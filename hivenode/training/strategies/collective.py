"""How a training loop sees the other members of its attempt, whatever the strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hivenode.net.local import Peer
from hivenode.training.exchange.codecs import Codec
from hivenode.training.exchange.inheritance import State
from hivenode.training.frameworks.model import Vector


class MembersChanged(Exception):
    """The members agreed to go on without some of their number, or with more; what was being reduced has
    to be given again, cut for the members there are now. Its argument, if there is one, says why."""


@dataclass(frozen=True, slots=True)
class Mean:
    """What came of a mean, beside it.

    Attributes:
        late: what this member gave, where that came too late to be part of the mean.
        owed: first element, and what a lossy codec took from the mean there, in this member's keeping.
        total_weight: of those whose vectors are in it.
        round: its number, the same on all members.
    """

    late: Vector | None = None
    owed: tuple[int, Vector] | None = None
    total_weight: float = 0.0
    round: int = 0


class Collective(Protocol):
    """The members of an attempt. `lost` and `close` may be called from another thread than the rest."""

    @property
    def port(self) -> int:
        """Where it listens for the others; 0 when there are none."""
        ...

    @property
    def certificate(self) -> str:
        """By which the others know it; "" when there are none."""
        ...

    @property
    def members(self) -> tuple[str, ...]:
        """Node ids in rank order, this one among them."""
        ...

    def connect(self, peers: tuple[Peer, ...]) -> None:
        """Meet the others. Planned nodes missing from `peers` are left out from the start."""
        ...

    def mean(
        self, vector: Vector, weight: float, codec: Codec | None = None, *, judged: bool = False, place: int = 0
    ) -> Mean:
        """Replace `vector` by the weighted mean over all members, the same bits on each. `members` may be fewer
        after it.

        Args:
            codec: of contributions and result, the same on all members; None: float32, nothing is lost.
            judged: whose norm is far beyond the others' is put out, where the job sets a limit; the same on all.
            place: where in a step, the same on all; see `Exchange.all_reduce`.

        Raises:
            MembersChanged: give it again.
            HiveError: this member cannot go on.
        """
        ...

    def gate(self, state: Callable[[], State]) -> None:
        """Let in who wants to join, before anything else is done together. `members` may be more after it.

        Args:
            state: what a newcomer has to know, the same bytes on all members.

        Raises:
            MembersChanged: call it again.
            HiveError: this member cannot go on.
        """
        ...

    def join(self, peers: tuple[Peer, ...], limit: int) -> Vector:
        """Instead of `connect`: be let in by others at a gate of theirs. To be followed by that `gate`.

        Args:
            limit: float32 elements that the state may take.

        Returns:
            the bytes of the others' state.

        Raises:
            HiveError: it was not to be.
        """
        ...

    def admit(self, peer: Peer) -> None:
        """That one wants to join. May be called from another thread."""
        ...

    def finish(self) -> None:
        """Wait until every member has every result, so that all may leave.

        Raises:
            HiveError: this member is out, or another holds different results.
        """
        ...

    def lost(self, node: str) -> None:
        """The failure detector has given a node up."""
        ...

    def close(self) -> None:
        """Part from the others; makes a waiting `mean` fail."""
        ...
