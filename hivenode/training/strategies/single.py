"""Training on one node: an attempt with one member."""

from __future__ import annotations

from hivenode.net.local import Peer
from hivenode.training.exchange.codecs import Codec
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

    def mean(self, vector: Vector, weight: float, codec: Codec | None = None) -> Mean:
        """The mean of one vector is that vector."""
        return Mean(total_weight=weight)

    def finish(self) -> None:
        """Nobody else needs the results."""

    def lost(self, node: str) -> None:
        """Nobody is waited for."""

    def close(self) -> None:
        """Nothing is open."""
