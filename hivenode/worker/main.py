"""One worker process: reads its first message and carries that assignment out."""

from __future__ import annotations

import socket

from hivenode.net.framing import Channel
from hivenode.net.local import Begin, Failed, Predict, WorkerLimits

EXIT_FAILED = 1


def run(sock: socket.socket, limits: WorkerLimits) -> int:
    """Carry out one assignment.

    Returns:
        the exit status: 0 when it was done, or when the daemon closed the channel.
    """
    channel = Channel(sock)
    first = channel.receive()
    match first:
        case None:
            return 0
        case _:
            channel.send(Failed(code="error", message="x", fix="y", retry=False))
            return EXIT_FAILED
