"""What a worker carries out, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hivenode.data.dataset import Dataset
from hivenode.net.local import Peer
from hivenode.training.checkpoints import State
from hivenode.training.frameworks.model import Layout
from hivenode.training.loop import Result
from hivenode.training.modelfile import Kept


class Run(Protocol):
    """A member's run, of steps or not."""

    @property
    def step(self) -> int:
        """Finished steps."""
        ...

    @property
    def data(self) -> Dataset:
        """As it is trained on."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this is the lowest rank of the view."""
        ...

    def begin(self, peers: tuple[Peer, ...]) -> None:
        """Meet the other members. Raises as `run` does."""
        ...

    def join(self, peers: tuple[Peer, ...]) -> None:
        """Meet members that have begun already. Raises as `run` does, InvalidInput when it cannot be joined."""
        ...

    def run(self) -> Result:
        """To the end. Raises Cancelled, HiveError."""
        ...

    def state(self) -> State:
        """As of the last finished step; not a copy."""
        ...


@dataclass(frozen=True)
class Prepared:
    """Attributes:
    layout: of the weights and buffers in its checkpoints.
    kept: what it has come to, once it is done.
    """

    run: Run
    layout: Layout
    kept: Callable[[], Kept]
