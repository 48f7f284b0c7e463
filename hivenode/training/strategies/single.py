"""Training on one node: an attempt with one member."""

from __future__ import annotations

from collections.abc import Callable

from hivenode.errors import InvalidInput
from hivenode.net.local import Peer
from hivenode.training.exchange.codecs import Codec
from hivenode.training.exchange.inheritance import State
from hivenode.training.frameworks.model import Vector
from hivenode.training.strategies.collective import Mean


class Alone:
    """`Collective` of one.

    Args:
        me: this node's id.
    """

    port = 0
    certificate = ""

    def __init__(self, me: str) -> None:
        self.members: tuple[str, ...] = (me,)

    def connect(self, peers: tuple[Peer, ...]) -> None:
        """There is nobody to meet."""

    def mean(
        self, vector: Vector, weight: float, codec: Codec | None = None, *, judged: bool = False, place: int = 0
    ) -> Mean:
        """The mean of one vector is that vector."""
        return Mean(total_weight=weight)

    def gate(self, state: Callable[[], State]) -> None:
        """Nobody can join."""

    def join(self, peers: tuple[Peer, ...], limit: int) -> Vector:
        """There is nobody to join."""
        raise InvalidInput("A job on one node cannot be joined.", fix="Plan it for several nodes.")

    def admit(self, peer: Peer) -> None:
        """Nobody can join."""

    def finish(self) -> None:
        """Nobody else needs the results."""

    def lost(self, node: str) -> None:
        """Nobody is waited for."""

    def close(self) -> None:
        """Nothing is open."""
