"""What the daemon says while the work is going on, heard by a thread of its own."""

from __future__ import annotations

import os
import threading
import traceback
from typing import Protocol

from hivenode.errors import HiveError, InvalidInput
from hivenode.net.framing import Channel
from hivenode.net.local import Brought, Cancel, Log, Peer, PeerJoining, PeerLost, PeersReady
from hivenode.training.strategies.group import Cancelled

EXIT_ORPHANED = 3
"""Exit status of a worker whose daemon closed the channel before the work was done."""
EXIT_CHANNEL = 4
"""Exit status of a worker whose daemon said something it does not understand."""


class Others(Protocol):
    """What the other members of an attempt are reached through."""

    def lost(self, node: str) -> None: ...

    def admit(self, peer: Peer) -> None: ...

    def close(self) -> None: ...


class Orders:
    """Listens from its creation on.

    Args:
        collective: told of lost peers, and closed by a cancel so that nothing waits for the others any more.
    """

    def __init__(self, channel: Channel, collective: Others) -> None:
        self._channel = channel
        self._collective = collective
        self._changed = threading.Condition()
        self._peers: PeersReady | None = None
        self._reason: str | None = None
        self._brought: Brought | None = None
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    @property
    def cancelled(self) -> str | None:
        """The reason to stop, once there is one."""
        return self._reason

    def wait_for_peers(self) -> PeersReady:
        """Until the daemon lets the work begin. Raises Cancelled instead if it calls it off."""
        with self._changed:
            self._changed.wait_for(lambda: self._peers is not None or self._reason is not None)
            if self._peers is None or self._reason is not None:
                raise Cancelled(self._reason or "")
            return self._peers

    def wait_for_data(self) -> Brought:
        """The answer to a `Need`. Raises Cancelled instead if the work is called off."""
        with self._changed:
            self._changed.wait_for(lambda: self._brought is not None or self._reason is not None)
            brought, self._brought = self._brought, None
            if brought is None:
                raise Cancelled(self._reason or "")
            return brought

    def _admit(self, peer: Peer) -> None:
        """One that cannot be let in stays out, and gives up by itself."""
        try:
            self._collective.admit(peer)
        except InvalidInput as error:
            self._channel.send(
                Log(level="warning", event="a newcomer is not let in", fields={"node": peer.node, "reason": str(error)})
            )

    def _listen(self) -> None:
        try:
            while (message := self._channel.receive()) is not None:
                match message:
                    case PeersReady():
                        with self._changed:
                            self._peers = message
                            self._changed.notify()
                    case Brought():
                        with self._changed:
                            self._brought = message
                            self._changed.notify()
                    case PeerJoining(peer=peer):
                        self._admit(peer)
                    case PeerLost(node=node):
                        self._collective.lost(node)
                    case Cancel(reason=reason):
                        with self._changed:
                            self._reason = reason
                            self._changed.notify()
                        self._collective.close()
                    case _:
                        raise TypeError(f"{type(message).__name__} is not for a worker that trains")
        except (HiveError, TypeError):
            traceback.print_exc()
            os._exit(EXIT_CHANNEL)
        os._exit(EXIT_ORPHANED)
