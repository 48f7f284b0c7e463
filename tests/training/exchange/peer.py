"""A worker in a process of its own for the tests: commands in and reports out as JSON lines."""

from __future__ import annotations

import hashlib
import json
import os
import sys

import numpy as np

from hivenode.errors import HiveError
from hivenode.net.local import Peer
from hivenode.training.exchange import Exchange, Seat, ViewChanged, WorkerKey


def contribution(rank: int, number: int, members: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """What rank brings to its call `number` when there are so many members."""
    return np.random.default_rng([rank, number, members]).standard_normal(count, np.float32)


def say(**report: object) -> None:
    print(json.dumps(report), flush=True)


def main() -> None:
    node, rank, silence = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    with Exchange(
        Seat(node, rank, "127.0.0.1"), WorkerKey.create(), silence_seconds=silence, connect_seconds=10.0
    ) as exchange:
        say(port=exchange.port, certificate=exchange.certificate, pid=os.getpid())
        exchange.connect([Peer(**peer) for peer in json.loads(sys.stdin.readline())])
        say(members=exchange.view.members)
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "close":
                exchange.barrier()
                return
            vector = contribution(rank, command["number"], len(exchange.view), command["count"])
            if command.get("poison"):
                vector[command["count"] // 2] = np.nan
            try:
                reduced = exchange.all_reduce(vector, command["weights"][rank])
            except ViewChanged as changed:
                say(changed=changed.view.members, lost=changed.lost)
            except HiveError as error:
                say(error=type(error).__name__, node=getattr(error, "node", ""), text=str(error))
            else:
                say(
                    digest=hashlib.sha256(vector.tobytes()).hexdigest(),
                    contributors=reduced.contributors,
                    total=reduced.total_weight,
                    members=reduced.view.members,
                )


if __name__ == "__main__":
    main()
