"""The members of an attempt where they may also speak in plaintext."""

from __future__ import annotations

from hivenode.errors import InvalidInput, Refused
from hivenode.net.local import Peer
from hivenode.spec.networks import within
from hivenode.training.distributed.switchboard import Switchboard
from hivenode.training.exchange import Seat
from hivenode.training.frameworks.model import Vector
from hivenode.training.strategies.data_parallel import Together

UNTRUSTED = "Let the engine be the exchange, or add its network to training.trusted_subnets of that node."


class InPlaintext(Together):
    """`Together` of workers that also speak in plaintext: only with addresses that this node's owner trusts.

    Args:
        seat: as of `Together`.
        board: hears what they say for torch.distributed.
        trusted: subnets.

    Raises:
        Refused: this node's own address is not in one of them.
    """

    def __init__(self, seat: Seat, board: Switchboard, trusted: tuple[str, ...]) -> None:
        self.board, self.seat, self._trusted = board, seat, trusted
        if not within(seat.host, trusted):
            raise Refused(
                f"torch.distributed is not encrypted, and this node does not trust its own address {seat.host}.",
                fix=UNTRUSTED,
            )
        super().__init__(seat, on_view=board.on_view, on_note=board.on_note)

    def connect(self, peers: tuple[Peer, ...]) -> None:
        self._check(peers)
        super().connect(peers)

    def join(self, peers: tuple[Peer, ...], limit: int) -> Vector:
        self._check(peers)
        return super().join(peers, limit)

    def admit(self, peer: Peer) -> None:
        try:
            self._check((peer,))
        except Refused as error:
            raise InvalidInput(error.sentence, fix=error.fix) from None
        super().admit(peer)

    def close(self) -> None:
        self.board.close()
        super().close()

    def _check(self, peers: tuple[Peer, ...]) -> None:
        for peer in peers:
            if not within(peer.host, self._trusted):
                raise Refused(
                    f"torch.distributed is not encrypted, and this node does not trust the address {peer.host} of"
                    f" {peer.node}.",
                    fix=UNTRUSTED,
                )
