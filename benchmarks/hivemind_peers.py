"""Run by an environment with hivemind in it: its averaging, for `exchange.py` to be compared with.

    python hivemind_peers.py pair --rank 0 --size 4 --floats 32000000      # one peer of a group, told what to do
    python hivemind_peers.py mosaic                                        # 16 peers in groups of 4, 5 rounds

`pair`: the time of an all-reduce alone. All peers have found each other and wait for the word before the clock
starts, which is the most favourable way to count. `mosaic`: as in hivemind's own benchmark of averaging, matchmaking
included.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time

import hivemind
import torch
from hivemind.averaging.control import AveragingStage
from hivemind.compression import Float16Compression


def say(**report: object) -> None:
    print(json.dumps(report), flush=True)


def pair(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    initial = json.loads(sys.stdin.readline())
    dht = hivemind.DHT(initial_peers=initial, start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    tensor = torch.randn(options.floats, generator=torch.Generator().manual_seed(options.rank))
    averager = hivemind.DecentralizedAverager(
        [tensor],
        dht,
        prefix="bench",
        start=True,
        target_group_size=options.size,
        min_group_size=options.size,
        min_matchmaking_time=3.0,
        request_timeout=2.0,
        compression=Float16Compression(),
    )
    say(addresses=[str(address) for address in dht.get_visible_maddrs()])
    for line in sys.stdin:
        if line.strip() != "round":
            break
        control = averager.step(wait=False, require_trigger=True, timeout=120)
        while control.stage is not AveragingStage.AWAITING_TRIGGER and not control.done():
            time.sleep(0.01)
        say(ready=not control.done())
        sys.stdin.readline()
        start = time.monotonic()
        control.allow_allreduce()
        group = control.result(timeout=120)
        say(seconds=time.monotonic() - start, group=len(group or ()))
    averager.shutdown()
    dht.shutdown()


def mosaic(options: argparse.Namespace) -> None:
    peers, rounds, group_size, floats = 16, 5, 4, 2_380_000
    torch.set_num_threads(1)
    first = hivemind.DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    known = [str(address) for address in first.get_visible_maddrs()]
    averagers = []
    for index in range(peers):
        dht = hivemind.DHT(initial_peers=known, start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
        averagers.append(
            hivemind.DecentralizedAverager(
                [torch.randn(floats)],
                dht,
                prefix="mosaic",
                start=True,
                initial_group_bits=f"{index % (peers // group_size):02b}",
                target_group_size=group_size,
                min_matchmaking_time=5.0,
                request_timeout=1.0,
                compression=Float16Compression(),
            )
        )
    done = [0] * peers

    def run(index: int) -> None:
        for _ in range(rounds):
            done[index] += averagers[index].step(timeout=30) is not None

    start = time.monotonic()
    threads = [threading.Thread(target=run, args=(index,)) for index in range(peers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(seconds=time.monotonic() - start, steps=sum(done), of=peers * rounds)
    for averager in averagers:
        averager.shutdown()
    first.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["pair", "mosaic"])
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--size", type=int, default=4)
    parser.add_argument("--floats", type=int, default=32_000_000)
    options = parser.parse_args()
    {"pair": pair, "mosaic": mosaic}[options.what](options)


if __name__ == "__main__":
    main()
