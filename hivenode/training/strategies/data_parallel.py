"""Training by several nodes at once: synchronous data parallelism over the exchange between workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hivenode.net.local import Peer
from hivenode.training.exchange import Absurd, Exchange, Excluded, Seat, View, ViewChanged, WorkerKey
from hivenode.training.exchange.codecs import Codec
from hivenode.training.exchange.inheritance import State
from hivenode.training.frameworks.model import Vector
from hivenode.training.strategies.collective import Mean, MembersChanged


class Together:
    """`Collective` of workers on several nodes. Listens from its creation on.

    Args:
        seat: this worker's node, rank and address.
        key: its key; a new one if None.
        norm_limit: as in `Exchange`, of the vectors that are to be judged.
        on_view, on_note: as of `Exchange`.

    Raises:
        Conflict: there is no port to listen on.
    """

    def __init__(
        self,
        seat: Seat,
        key: WorkerKey | None = None,
        on_view: Callable[[View], None] | None = None,
        on_note: Callable[[str, bytes], Sequence[tuple[str, bytes]]] | None = None,
        norm_limit: float | None = None,
    ) -> None:
        self._exchange = Exchange(
            seat, key or WorkerKey.create(), on_view=on_view, on_note=on_note, norm_limit=norm_limit
        )

    @property
    def port(self) -> int:
        return self._exchange.port

    @property
    def certificate(self) -> str:
        return self._exchange.certificate

    @property
    def members(self) -> tuple[str, ...]:
        return self._exchange.view.members

    def connect(self, peers: tuple[Peer, ...]) -> None:
        self._exchange.connect(peers)

    def mean(
        self, vector: Vector, weight: float, codec: Codec | None = None, *, judged: bool = False, place: int = 0
    ) -> Mean:
        try:
            reduced = self._exchange.all_reduce(vector, weight, codec, judged=judged, place=place)
        except ViewChanged as changed:
            raise MembersChanged from changed
        except Absurd as blame:
            if blame.view is None:  # the others go on, and so does the job
                raise Excluded(f"The other workers go on without this one. {blame.sentence}", blame.fix) from blame
            raise MembersChanged(blame.sentence) from blame
        return Mean(reduced.late, reduced.owed, reduced.total_weight, reduced.round)

    def gate(self, state: Callable[[], State]) -> None:
        try:
            self._exchange.all_reduce(np.empty(0, np.float32), 0.0, state=state)
        except ViewChanged as changed:
            raise MembersChanged from changed

    def join(self, peers: tuple[Peer, ...], limit: int) -> Vector:
        return self._exchange.join(peers, limit)[1]

    def admit(self, peer: Peer) -> None:
        self._exchange.admit(peer)

    def tell(self, *notes: tuple[str, bytes]) -> None:
        """See `Exchange.tell`."""
        self._exchange.tell(*notes)

    def wait_for(self, holds: Callable[[View], bool], seconds: float | None = None) -> bool:
        """See `Exchange.wait_for`."""
        return self._exchange.wait_for(holds, seconds)

    def finish(self) -> None:
        self._exchange.barrier()

    def lost(self, node: str) -> None:
        self._exchange.lost(node)

    def close(self) -> None:
        self._exchange.close()
