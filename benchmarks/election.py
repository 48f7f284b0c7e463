"""How long a hive is without a coordinator, in virtual time.

    python benchmarks/election.py [--seeds 1000] [--whole 50] [--only "cores 32 stops"] [--json]

Election cores on a LAN (0.5 to 5 ms a message, 1 to 20 ms a durable write). The coordinator falls *silent* (frozen, or
cut off; nobody is told, and the failure detector would need 5.5 s and more), is *killed* (its host refuses dials, which
all know within 0.71 s, see benchmarks/membership.py), or *stops* in good order. Measured from that moment until another
one acts as coordinator. Then `--whole` runs with whole nodes on the simulated network, where detection is the real one.
Last, how often a hive whose network loses 30 % of all messages, or whose nodes' event loops lag by up to a second,
changes a coordinator that is well, in an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hivenode.net.simulated import Quality
from tests.hive.arena import Arena
from tests.simulation.loop import run
from tests.simulation.world import World

DISK = (0.001, 0.02)
KILLED_KNOWN = 0.71
TARGET = {"silent": 4.0, "killed": 4.0, "stops": 1.0}


def without(arena: Arena, how: str) -> float:
    """Seconds from the loss of the leader until another one acts."""
    first, begin = arena.leader(), arena.now
    if how == "silent":
        arena.freeze(first.node)
    elif how == "killed":
        arena.crash(first.node)
    else:
        arena._act(first.node, arena.nodes[first.node].resign(arena.now))
    while arena.now < begin + 60:
        arena.run(0.5)
        for at, node, epoch in arena.told:
            if at >= begin and epoch is not None and epoch.node == node != first.node:
                return at - begin
    return float("inf")


def cores(nodes: int, how: str, seeds: int) -> list[float]:
    found = []
    for seed in range(seeds):
        arena = Arena(nodes, seed=seed, detect=KILLED_KNOWN, disk=DISK)
        arena.run(10.0 + random.Random(seed).random())
        found.append(without(arena, how))
    return sorted(found)


def whole(nodes: int, how: str, seeds: int) -> list[float]:
    async def main(rng: random.Random) -> float:
        world = World(rng, sync_seconds=DISK)
        for number in range(nodes):
            await world.start_node(f"n{number}")
        await world.formed()
        await asyncio.sleep(20 + rng.random())
        first, begin = world.coordinator(), world.loop.time()
        lose: Callable[[str], None] = {"silent": world.freeze, "killed": world.kill}[how]
        lose(first)
        others = [machine.name for machine in world.up if machine.name != first]
        await world.until(
            lambda: any(world.machines[name].node.coordinator.leads for name in others), 60, "a new coordinator"
        )
        return world.loop.time() - begin

    return sorted(run(main, seed=seed) for seed in range(seeds))


def false_elections(nodes: int, hours: float, *, loss: float = 0.0, lag: float = 0.0, seed: int = 0) -> int:
    """Epochs of a hive whose coordinator is well all the time, beyond the first."""
    arena = Arena(nodes, seed=seed, loss=loss, disk=DISK)
    arena.run(20.0)
    first = max(arena.epochs()).counter
    rng = random.Random(seed)
    until = arena.now + hours * 3600
    while arena.now < until:
        if lag:
            node = rng.choice(arena.voters)
            arena.freeze(node)
            arena.run(rng.uniform(0.1, lag))
            arena.thaw(node)
            arena.run(rng.uniform(0.0, 0.2))
        else:
            arena.run(60.0)
    return max(arena.epochs()).counter - first


def lossy_network(nodes: int, minutes: float) -> int:
    """The same with whole nodes, whose links lose nothing but are held up by retransmissions."""

    async def main(rng: random.Random) -> int:
        world = World(rng, quality=Quality(loss=0.3), sync_seconds=DISK)
        for number in range(nodes):
            await world.start_node(f"n{number}")
        await world.formed()
        await asyncio.sleep(60)
        first = world.leader("n0")
        await asyncio.sleep(60 * minutes)
        await world.formed()
        assert first is not None
        return sum(counter > first.counter for counter in world.led)

    return run(main, seed=1)


def row(kind: str, nodes: int, how: str, found: list[float], as_json: bool) -> None:
    p50, p99 = statistics.median(found), found[min(len(found) - 1, round(0.99 * len(found)))]
    said = {"kind": kind, "nodes": nodes, "how": how, "runs": len(found), "p50": p50, "p99": p99, "max": found[-1]}
    if as_json:
        print(json.dumps(said), flush=True)
        return
    mark = "!" if p99 > TARGET[how] else " "
    print(f"{kind:6} {nodes:5} {how:7} {len(found):5} {p50:7.2f} {p99:7.2f}{mark} {found[-1]:7.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--whole", type=int, default=50, help="runs with whole nodes, for each row")
    parser.add_argument("--hours", type=float, default=1.0, help="of the watch for needless elections")
    parser.add_argument("--minutes", type=float, default=20.0, help="of the same with whole nodes")
    parser.add_argument("--only", default="", help='rows whose name begins so: "cores 32 stops", "needless 8", "lossy"')
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()

    def wanted(*name: object) -> bool:
        return " ".join(map(str, name)).startswith(args.only)

    if not args.json:
        print("cores  nodes how      runs     p50     p99      max   seconds without a coordinator")
    for nodes in (3, 8, 32):
        for how in TARGET:
            if wanted("cores", nodes, how):
                row("cores", nodes, how, cores(nodes, how, args.seeds), args.json)
    for nodes in (3, 8):
        for how in ("silent", "killed"):
            if args.whole and wanted("whole", nodes, how):
                row("whole", nodes, how, whole(nodes, how, args.whole), args.json)
    for nodes in (2, 3, 8, 32):
        if not wanted("needless", nodes):
            continue
        lossy = false_elections(nodes, args.hours, loss=0.3)
        lagging = false_elections(nodes, args.hours, lag=1.0)
        if args.json:
            said = {"nodes": nodes, "hours": args.hours, "needless_lossy": lossy, "needless_lag": lagging}
            print(json.dumps(said), flush=True)
        else:
            print(f"{nodes} nodes, {args.hours:g} h: needless elections {lossy} with 30 % loss, {lagging} with lag")
    for nodes in (3, 5):
        if not wanted("lossy", nodes):
            continue
        needless = lossy_network(nodes, args.minutes)
        if args.json:
            print(json.dumps({"whole": nodes, "minutes": args.minutes, "needless_lossy": needless}), flush=True)
        else:
            print(f"{nodes} whole nodes, {args.minutes:g} min: needless elections {needless} with 30 % loss")


if __name__ == "__main__":
    main()
